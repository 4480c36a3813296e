"""How many operators measuring parameters takes off the CPU, counted on a device without memory."""

import pytest
import torch
from torch import nn

from benchmarks.launches import DEVICE, GPT, Count, accelerator, on_device
from internist.measures.spectral_stacks import reduce_, spectra
from internist.model.outline import outline
from internist.observe.captures import Captures
from internist.observe.faults import Faults
from internist.observe.own import Probe
from internist.observe.sampling import Due, Sampling
from internist.observe.speaker import Speaker
from internist.observe.taps import Gate
from internist.observe.tokens import OWN_TOKENS
from internist.record.recorder import Recorder
from internist.record.series_book import SeriesBook

LIGHT = Due(light=True)
QUARTER = Due(light=True, matrices=1)


class Nowhere:
    """Takes records and keeps none."""

    dropped = 0

    def put(self, *_: object) -> bool:
        return True


@pytest.fixture
def device():
    with accelerator():
        yield


def launches(kind, *, metrics=None, width=96, samples=3):
    """Operators of a step's parameters, once everything is warm."""
    sampling = Sampling(wanted=None if metrics is None else frozenset(metrics))
    model = on_device(GPT(layers=12, width=width, vocabulary=50304 if width == 768 else 100))
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    book, faults = SeriesBook(sampling.wants), Faults()
    recorder = Recorder(Nowhere(), book)
    captures = Captures(outline(model), Gate(), book=book, faults=faults, sampling=sampling, speaker=Speaker())
    parameters = captures.parameters
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    for step in range(samples):
        for watched in captures.activations._outline.modules:
            captures.activations.series.widths[watched.order] = (width, width)
            tokens = probe_tokens(watched.module)
            if tokens is not None and sampling.wants("update.own", "update.own_mean"):
                captures.activations.probes[watched.order] = Probe(tokens)
        with torch.no_grad(), Count() as count:
            owned = parameters.owned_by(optimizer)
            parameters.gradients(owned, optimizer, recorder, kind)
            parameters.snapshot(owned, step, kind)
            parameters.updates(owned, recorder, kind)
            parameters.groups(recorder, optimizer)
            parameters.finish(recorder, step)
        measured = len(parameters.spectra.measured_now)
        recorder.discard_step()
        captures.reset()
    assert not faults._reasons
    return count.operators, measured


def probe_tokens(module):
    if isinstance(module, nn.Embedding):
        return torch.empty(OWN_TOKENS, dtype=torch.long, device=DEVICE)
    if isinstance(module, nn.Linear):
        return torch.empty(OWN_TOKENS, module.in_features, device=DEVICE)
    return (
        torch.empty(OWN_TOKENS, module.normalized_shape[0], device=DEVICE) if isinstance(module, nn.LayerNorm) else None
    )


@pytest.mark.parametrize("width", [96, 768], ids=["all at once", "in rotation"])
def test_all_parameters_of_twelve_layers_take_ninety_launches(device, width):
    operators, _ = launches(LIGHT, width=width)

    assert operators.total() <= 90, operators.most_common(20)


@pytest.mark.parametrize("width", [96, 768], ids=["exact", "in powers"])
def test_the_spectra_of_a_quarter_of_twelve_layers_take_ninety_launches_more(device, width):
    light, _ = launches(LIGHT, width=width)
    heavy, measured = launches(QUARTER, width=width)

    assert measured == 12
    assert heavy.total() - light.total() <= 90, (heavy - light).most_common(20)


def test_large_matrices_take_two_dozen_launches_a_step_of_the_iteration_however_many_there_are(device):
    def count(matrices):
        stack = torch.empty(matrices, 4096, 2048, device=DEVICE)
        with Count() as found:
            spectra([reduce_(stack)])
        return found.operators.total()

    assert count(1) == count(8) <= 10 * 24 + 70


@pytest.mark.parametrize(
    ("metrics", "most"),
    [
        (("activation.rms",), 0),
        (("weight.rms",), 8),
        (("gradient.rms",), 8),
        (("gradient.rms", "weight.rms", "update.rms", "update.unchanged"), 30),
        (("update.own",), 80),
    ],
    ids=lambda each: "+".join(each) if isinstance(each, tuple) else str(each),
)
def test_metrics_that_are_not_wanted_cost_no_launch(device, metrics, most):
    assert launches(LIGHT, metrics=metrics)[0].total() <= most
    assert launches(QUARTER, metrics=metrics)[0].total() <= most
