"""Forwards what the judge says, and headline scalars, to whoever speaks OpenTelemetry: collectors, Grafana, Datadog, …

    monitor = internist.watch(model, optimizer)
    forward(monitor, ToOpenTelemetry(monitor.run))

Where they go is said by OpenTelemetry's own variables, `OTEL_EXPORTER_OTLP_ENDPOINT` and the rest.
"""

import math
from collections.abc import Mapping
from typing import Any, Final

from internist.errors import ConfigurationError
from internist.integrations.forwarding import PREFIX

RUN: Final = "internist.run"
"""The attribute by which the points of one run are told from another's."""
STEP: Final = "internist.step"
"""The gauge of the optimizer step at which the others hold."""
NOT_FINITE: Final = "internist.not_finite"
"""The gauge of how many of the others are NaN or infinite: OpenTelemetry has no such points, so these are left out."""


class ToOpenTelemetry:
    """Gauges, by OTLP over HTTP or by a meter provider that the program has.

    Args:
        run: the run's id (`monitor.run`), told with every point; the resource is OpenTelemetry's, by
            `OTEL_SERVICE_NAME` and `OTEL_RESOURCE_ATTRIBUTES`.
        provider: the program's meter provider, whose readers export as they are set to; None: one of our own, which
            exports by OTLP whenever there is news.
    """

    def __init__(self, run: str, provider: Any = None) -> None:
        if not run:
            raise ConfigurationError("ToOpenTelemetry(run): expected a run's id, such as monitor.run, got an empty one")
        if provider is not None and not callable(getattr(provider, "get_meter", None)):
            raise ConfigurationError(f"expected a meter provider, got {type(provider).__name__}")
        self._own = _provider() if provider is None else None
        meters: Any = self._own if provider is None else provider
        self._meter = meters.get_meter("internist")
        self._attributes = {RUN: run}
        self._gauges: dict[str, Any] = {}

    def write(self, values: Mapping[str, float], sentence: str, step: int) -> None:  # noqa: ARG002
        """Set the gauges. The sentence stays on the board: text is no metric, and as an attribute it would make a new
        series each time that it changes."""
        finite = {
            name.replace(PREFIX, "internist.", 1): value for name, value in values.items() if math.isfinite(value)
        }
        for name, value in {**finite, NOT_FINITE: float(len(values) - len(finite)), STEP: float(step)}.items():
            if name not in self._gauges:
                self._gauges[name] = self._meter.create_gauge(name)
            self._gauges[name].set(value, self._attributes)
        if self._own is not None:
            self._own.force_flush()

    def close(self) -> None:
        """End what is our own; the program's provider stays as it is."""
        if self._own is not None:
            self._own.shutdown()


def _provider() -> Any:
    """A meter provider that exports when it is asked to, and by no thread of its own."""
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    reader = PeriodicExportingMetricReader(OTLPMetricExporter(), export_interval_millis=math.inf)
    return MeterProvider([reader], shutdown_on_exit=False)
