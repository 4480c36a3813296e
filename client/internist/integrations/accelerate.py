"""Accelerate: a tracker that records what the Accelerator logs, and watches a model.

from internist.integrations.accelerate import InternistTracker

accelerator = Accelerator(log_with=InternistTracker(model))
accelerator.init_trackers("project", config)
"""

from typing import Any

from accelerate.tracking import GeneralTracker
from torch import nn

from internist.monitor.beginning import Run
from internist.monitor.watching import init


class InternistTracker(GeneralTracker):  # type: ignore[misc, unused-ignore]  # untyped where the library is absent
    """Records the scalars that `accelerator.log` is given, and the configuration of `init_trackers`.

    Every process has one: each watches its own part of the model, and the main process logs.

    Args:
        model: watched when the trackers are initialised; None: the script says `internist.watch(model, optimizer)`.
        optimizer: its optimizer; None: found when it first steps.
        options: more arguments of `internist.watch`.
    """

    name = "internist"
    requires_logging_directory = False
    main_process_only = False

    def __init__(self, model: nn.Module | None = None, optimizer: Any = None, **options: Any) -> None:
        super().__init__()
        self._model, self._optimizer, self._options = model, optimizer, options
        self._run: Run | None = None

    @property
    def tracker(self) -> Run | None:
        """The run; None before the trackers are initialised."""
        return self._run

    def start(self) -> None:
        """Begin the run, and watch the model."""
        self._run = init()
        if self._model is not None:
            self._run.watch(self._model, self._optimizer, **self._options)
            self._model = self._optimizer = None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        """Keep the run's configuration."""
        if self._run is not None:
            self._run.config.update(values)

    def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
        """Record scalars."""
        if self._run is not None:
            self._run.log(values, step=step)

    def finish(self) -> None:
        """The run is over."""
        if self._run is not None:
            self._run.finish()
