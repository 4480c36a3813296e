"""Hugging Face's Trainer: a callback that watches what it trains.

    from internist.integrations.transformers import InternistCallback

    Trainer(model=model, args=arguments, callbacks=[InternistCallback()], ...)

The library has no entry point for integrations, but a table of them: once this module is imported,
`TrainingArguments(report_to="internist")` is understood as well.
"""

from collections.abc import Mapping
from typing import Any, Final

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations import integration_utils

from internist.monitor.monitor import Monitor
from internist.monitor.watching import watch

_PREFIXES: Final = ("eval", "test")


class InternistCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]  # untyped where the library is absent
    """Watches the Trainer's model from the beginning of its training, with its arguments as configuration, and records
    what the Trainer logs as `train/...` and `eval/...`.

    Args:
        options: arguments of `internist.watch`; the name is that of the Trainer's arguments unless it is given.

    Attributes:
        monitor: that of the model; None before training begins.
    """

    def __init__(self, **options: Any) -> None:
        self._options = options
        self.monitor: Monitor | None = None

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,  # noqa: ARG002
        **kwargs: Any,
    ) -> None:
        """Watch the model; the Trainer's optimizer is found when it first steps."""
        model: nn.Module = kwargs["model"]
        if self.monitor is None or self.monitor.is_finished:
            settings = {"name": getattr(args, "run_name", None), "config": args.to_sanitized_dict(), **self._options}
            self.monitor = watch(model, **settings)

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        *,
        logs: Mapping[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Record what the Trainer logs, on one rank."""
        if self.monitor is not None and state.is_world_process_zero:
            scalars = {_named(name): value for name, value in (logs or {}).items() if isinstance(value, int | float)}
            self.monitor.log(scalars, step=state.global_step)


def _named(name: str) -> str:
    """A name of the Trainer's as other trackers of the library show it."""
    prefix, _, rest = name.partition("_")
    return f"{prefix}/{rest}" if prefix in _PREFIXES and rest else f"train/{name}"


integration_utils.INTEGRATION_TO_CALLBACK.setdefault("internist", InternistCallback)
