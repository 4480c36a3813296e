"""Lightning: a module whose `training_step` calls a model, automatic and manual optimization."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.client.points import records
from tests.stacks.models import ATTENTIONS, BLOCKS, Attention, Gpt, cross_entropy, sentences
from tests.stacks.twin import (
    Run,
    Watched,
    assert_coverage_is_honest,
    assert_measured,
    assert_measured_or_said,
    assert_right,
    train,
)

lightning = pytest.importorskip("lightning", reason="pip install 'internist[stacks]'")

STEPS = 6
pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:torch.utils.data"),
]


class Language(lightning.LightningModule):
    """Automatic optimization; nothing calls its `forward`."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.model = Gpt(lambda: Attention(dropout=0.1))
        self.__dict__["run"] = run

    def training_step(self, batch: Any, _: int) -> Tensor:
        ids, targets = batch
        loss = cross_entropy(self.model(ids), targets)
        self.run.loss(loss)
        return loss

    def validation_step(self, batch: Any, _: int) -> None:
        ids, targets = batch
        self.run.loss(cross_entropy(self.model(ids), targets))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.model.parameters(), lr=1e-2)


class ByHand(Language):
    """Manual optimization with two optimizers."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        self.automatic_optimization = False

    def training_step(self, batch: Any, _: int) -> Tensor:
        matrices, rest = self.optimizers()
        ids, targets = batch
        loss = cross_entropy(self.model(ids), targets)
        self.manual_backward(loss)
        self.clip_gradients(matrices, gradient_clip_val=0.5, gradient_clip_algorithm="norm")
        matrices.step()
        rest.step()
        matrices.zero_grad()
        rest.zero_grad()
        self.run.loss(loss)
        return loss

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        chosen = [p for name, p in self.model.named_parameters() if p.dim() == 2 and "blocks" in name]
        known = {id(p) for p in chosen}
        rest = [p for p in self.model.parameters() if id(p) not in known]
        return [torch.optim.Muon(chosen, lr=1e-2), torch.optim.AdamW(rest, lr=3e-3)]


class StepOfItsOwn(Language):
    """The layers are the module's own: the root is called by `training_step`, never by `forward`."""

    def __init__(self, run: Run) -> None:
        super().__init__(run)
        del self.model
        self.embed, self.fc, self.out = nn.Embedding(24, 16), nn.Linear(16, 16), nn.Linear(16, 24)

    def training_step(self, batch: Any, _: int) -> Tensor:
        ids, targets = batch
        loss = cross_entropy(self.out(self.fc(self.embed(ids)).tanh()), targets)
        self.run.loss(loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def fit(module: lightning.LightningModule, directory: Path, *, validate: bool = False, **options: Any) -> None:
    settings = {
        "accelerator": "cpu", "max_steps": STEPS, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": directory, **options,
    }  # fmt: skip
    trainer = lightning.Trainer(**settings)
    validation = {"val_dataloaders": loader(1)} if validate else {}
    trainer.fit(module, train_dataloaders=loader(24), **validation)


def loader(count: int) -> torch.utils.data.DataLoader:
    return torch.utils.data.DataLoader(list(sentences(count)), batch_size=None)


def train_with(kind: type[Language], tmp_path: Path, *, inner: bool = False, **options: Any) -> Watched:
    def script(run: Run) -> None:
        module = kind(run)
        run.watch(module.model if inner else module)
        fit(module, tmp_path, **options)

    return train(script, tmp_path)


PREFIXED_BLOCKS = tuple(f"model.{name}" for name in BLOCKS)
PREFIXED_ATTENTIONS = tuple(f"model.{name}" for name in ATTENTIONS)


def test_the_inner_model_is_measured_whole(tmp_path):
    run = train_with(Language, tmp_path, inner=True)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_a_lightning_module_is_measured_although_its_forward_is_never_called(tmp_path):
    run = train_with(Language, tmp_path)

    assert_measured(run, steps=STEPS, attention=PREFIXED_ATTENTIONS)
    assert_measured_or_said(run, "feature", PREFIXED_BLOCKS)
    assert_right(run)
    assert_coverage_is_honest(run)


def test_layers_called_by_training_step_itself_are_measured(tmp_path):
    run = train_with(StepOfItsOwn, tmp_path)

    assert_measured(run, steps=STEPS)
    assert_measured_or_said(run, "feature", ("out",))
    assert_right(run)


def test_gradients_are_those_after_clipping(tmp_path):
    run = train_with(Language, tmp_path, inner=True, gradient_clip_val=0.05)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert max(run.points["gradient.global_norm", "model", None].values()) <= 0.05 * (1 + 1e-4)


def test_accumulated_batches_are_one_step(tmp_path):
    run = train_with(Language, tmp_path, inner=True, accumulate_grad_batches=3)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run, "activation.rms", "gradient.rms", "update.rms", "weight.rms")


def test_validation_between_steps_changes_no_value(tmp_path):
    run = train_with(Language, tmp_path, inner=True, validate=True, val_check_interval=2)

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)


def test_manual_optimization_with_two_optimizers_is_one_round(tmp_path):
    run = train_with(ByHand, tmp_path, inner=True, max_steps=2 * STEPS)  # Lightning counts each optimizer's steps

    assert_measured(run, steps=STEPS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert {s for m, s, _ in run.points if m == "learning_rate"} == {"0", "1.0"}


def test_the_callback_and_the_logger_watch_and_record_with_the_same_bits(tmp_path):
    from internist.integrations.lightning import InternistCallback, InternistLogger

    class Logging(Language):
        def training_step(self, batch: Any, number: int) -> Tensor:
            loss = super().training_step(batch, number)
            self.log("mean", loss)
            return loss

    def script(run: Run) -> None:
        module = Logging(run)
        module.save_hyperparameters({"width": 16})
        if not run.is_watched:
            run.watch(module.model)
            fit(module, tmp_path)
            return
        run.keep(module.model)
        callback, logger = InternistCallback("model", **run.options), InternistLogger(project="shop", name="tiny")
        fit(module, tmp_path, callbacks=[callback], logger=logger, log_every_n_steps=1)
        run.adopt(callback.monitor)
        assert (logger.name, logger.version) == ("shop", callback.monitor.run)
        logger.experiment.finish()

    run = train(script, tmp_path)

    assert_measured(run, steps=STEPS, attention=ATTENTIONS, features=(*BLOCKS, "head"))
    assert_right(run)
    assert len(run.steps("mean")) == STEPS
    start = records(run.directory)[0].start
    assert (start.project, start.name, start.config["width"]) == ("shop", "tiny", 16)


def test_a_fit_that_fails_is_a_run_that_failed(tmp_path):
    from internist.integrations.lightning import InternistCallback

    class Failing(Language):
        def training_step(self, batch: Any, number: int) -> Tensor:
            if number == 1:
                raise RuntimeError("the user's own")
            return super().training_step(batch, number)

    callback = InternistCallback(mode="offline", directory=tmp_path / "spool")
    with pytest.raises(RuntimeError, match="the user's own"):
        fit(Failing(Run(None, reference=False)), tmp_path, callbacks=[callback])

    assert [r.finish.outcome for r in records(callback.monitor.directory) if r.finish] == ["failed"]
