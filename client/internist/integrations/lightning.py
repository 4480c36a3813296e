"""Lightning: a callback that watches the module that is trained, and a logger for what it logs. Each does without the
other.

    from internist.integrations.lightning import InternistCallback, InternistLogger

    Trainer(callbacks=[InternistCallback()], logger=InternistLogger(project="shop"), ...)
"""

from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from internist.monitor.beginning import Run
from internist.monitor.monitor import Monitor
from internist.monitor.options import attributes
from internist.monitor.watching import current_run, init, watch


class InternistCallback(Callback):  # type: ignore[misc, unused-ignore]  # untyped where the library is absent
    """Watches the module, or a model inside it, from the beginning of its training on every rank.

    Args:
        module: name of the submodule to watch, such as `model`: its `forward` can be replayed where `training_step`
            calls it. None: the whole LightningModule.
        options: arguments of `internist.watch`.

    Attributes:
        monitor: that of the module; None before training begins.
    """

    def __init__(self, module: str | None = None, **options: Any) -> None:
        self._module = module
        self._options = options
        self.monitor: Monitor | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Watch the module and the Trainer's optimizers."""
        if self.monitor is None or self.monitor.is_finished:
            watched = pl_module if self._module is None else pl_module.get_submodule(self._module)
            settings = {"config": dict(pl_module.hparams), **self._options}
            self.monitor = watch(watched, list(trainer.optimizers), **settings)

    def on_exception(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        exception: BaseException,
    ) -> None:
        """The run ends as it does: the Trainer may keep the error to itself."""
        if self.monitor is not None:
            self.monitor.finish("killed" if isinstance(exception, KeyboardInterrupt) else "failed")


class InternistLogger(Logger):  # type: ignore[misc, unused-ignore]  # untyped where the library is absent
    """Records what `self.log` is given and the module's hyper-parameters; the model itself is watched by
    `InternistCallback` or by `internist.watch`.

    Args:
        options: arguments of `internist.init`: `project`, `name`, `config`, `id`, ...
    """

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self._options = options
        self._run: Run | None = None

    @property
    def experiment(self) -> Run:
        """The run."""
        if self._run is None:
            self._run = init(**self._options)
        return self._run

    @property
    def name(self) -> str | None:
        """The project that runs are grouped by."""
        return self.experiment.project

    @property
    def version(self) -> str | None:
        """The run's id, once its model is watched."""
        return self.experiment.id or None

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Record scalars."""
        self.experiment.log(metrics, step=step)

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Keep the run's configuration, on every rank: each introduces itself with it."""
        self.experiment.config.update(attributes(params))

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Training has ended. A run that went well stays open for what is logged after it, until the process ends."""
        if status != "success" and self._run is not None and self._run is current_run():
            self._run.end("failed")
