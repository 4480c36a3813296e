"""Off the CPU no measure may wait for the device.

Tensors on the meta device have no values to wait for: reading one on the host raises.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from internist.measures import activations, attention, many, spectral, spectral_stacks, updates, weights


def tensor(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def stacked_norms(stack: Tensor) -> Tensor:
    return spectral_stacks.spectra([spectral_stacks.reduce_(stack)])[0].norms


MEASURES: dict[str, tuple[Callable[[], Tensor], tuple[int, ...]]] = {
    "token_rms": (lambda: activations.token_rms(tensor(2, 5, 8)), (10,)),
    "token_rms of a convolution": (lambda: activations.token_rms(tensor(2, 5, 3, 3), channel_dim=1), (18,)),
    "rms_summary": (lambda: activations.rms_summary(tensor(4, 200)), (4, 3)),
    "abs_max": (lambda: activations.abs_max(tensor(3, 4)), ()),
    "nonfinite": (lambda: activations.nonfinite(tensor(3, 4), tensor()), ()),
    "extent": (lambda: activations.extent(tensor(3, 4))[0], (3,)),
    "contribution": (lambda: activations.contribution(tensor(3, 4), tensor(3, 4)), ()),
    "pair_distances": (lambda: activations.pair_distances(tensor(6, 4)), (15,)),
    "spread": (lambda: activations.spread(tensor(7, 15), tensor(7, 15)), (7, 3)),
    "moved": (lambda: updates.moved(tensor(3, 6)), (3, 2)),
    "log_z": (lambda: activations.log_z(tensor(6, 400)), (2,)),
    "mean_squares": (lambda: weights.mean_squares([tensor(3, 4), tensor(5)]), (2,)),
    "vector_abs_max": (lambda: weights.vector_abs_max([tensor(3), tensor(5)]), (2,)),
    "row_rms_max": (lambda: weights.row_rms_max(tensor(3, 4)), ()),
    "head_norm": (lambda: weights.head_norm(tensor(3, 4)), ()),
    "unchanged": (lambda: many.unchanged(updates.differences([tensor(3, 4)], [tensor(3, 4)])), (1,)),
    "differences_": (lambda: many.differences_([tensor(3, 4)], [tensor(3, 4)])[0], (3, 4)),
    "row_norm_maxima": (lambda: many.row_norm_maxima([tensor(3, 4), tensor(5, 6)], [1.0, 2.0]), (2,)),
    "own_linears": (lambda: many.own_linears(tensor(2, 6, 4), tensor(2, 5, 4), tensor(2, 5)), (2, 6)),
    "own_gains": (lambda: many.own_gains(tensor(2, 6, 4), tensor(2, 4), tensor(2, 4)), (2, 6)),
    "own_linear": (lambda: updates.own_linear(tensor(6, 4), tensor(5, 4), tensor(5)), (6,)),
    "own_embedding": (lambda: updates.own_embedding(tensor(6).long(), tensor(5, 4)), (6,)),
    "own_gain": (lambda: updates.own_gain(tensor(6, 4), tensor(4), tensor(4)), (6,)),
    "feature_change": (lambda: updates.feature_change(tensor(6, 4), tensor(6, 4)), (6,)),
    "max_logits": (
        lambda: attention.max_logits(tensor(2, 4, 9, 8), tensor(2, 4, 9, 8), mask=tensor(9, 9), is_causal=True),
        (2, 4),
    ),
    "spectral_norm of a small matrix": (lambda: spectral.spectral_norm(tensor(30, 40)).norm, ()),
    "spectral_norm by Lanczos": (lambda: spectral._lanczos(tensor(400, 300), tensor(300), 20)[0], ()),
    "spectra of small matrices": (lambda: stacked_norms(tensor(3, 30, 40)), (3,)),
    "spectra of middling matrices": (lambda: stacked_norms(tensor(3, 300, 400)), (3,)),
    "spectra of large matrices": (lambda: stacked_norms(tensor(3, 1100, 1200)), (3,)),
    "operator_norm": (lambda: spectral.operator_norm(tensor(), torch.Size((3, 4))), ()),
    "stable_rank": (lambda: spectral.stable_rank(tensor(), tensor()), ()),
}


@pytest.mark.parametrize(("measure", "shape"), MEASURES.values(), ids=MEASURES)
def test_no_measure_reads_a_value_on_the_host(measure, shape):
    found = measure()

    for each in found if isinstance(found, tuple) else (found,):
        assert each.shape == shape
        assert each.device.type == "meta"
        assert each.dtype in (torch.float32, torch.bool)  # values, or whether they were measured


def test_reading_a_value_on_the_host_would_show_here():
    with pytest.raises(RuntimeError, match="meta"):
        bool(tensor().isfinite())
