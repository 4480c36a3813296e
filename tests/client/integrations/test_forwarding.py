"""Verdicts and headline scalars reach the tools that teams keep."""

import gzip
import logging
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from torch import nn

import internist
from internist.errors import ConfigurationError
from internist.history.importing import read_source
from internist.integrations.forwarding import ToMlflow, ToTensorBoard, ToWandb, forward
from internist.integrations.opentelemetry import ToOpenTelemetry
from tests.dashboard.serving import served

NEVER_S = 3600.0
"""Between questions: the test closes the forwarding instead, which asks once more."""
STEPS = 12


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("forwarding")) as address:
        yield address


class Kept:
    """A target that keeps what it is told."""

    def __init__(self, error=None):
        self.told, self.error = [], error

    def write(self, values, sentence, step):
        if self.error:
            raise self.error
        self.told.append((values, sentence, step))

    def close(self):
        self.told.append("closed")


class WandbRun:
    """What is used of wandb's run: its two attributes."""

    def __init__(self):
        self.logged, self.summary = [], {}

    def log(self, values, commit=True):
        self.logged.append((values, commit))


def train(address, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    monitor = internist.watch(model, optimizer, server=address, directory=tmp_path / "spool", every=1)
    for _ in range(STEPS):
        loss = nn.functional.cross_entropy(model(torch.ones(2, 4)), torch.tensor([0, 1]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        internist.log(loss=loss)
    return monitor


def test_targets_are_told_the_verdict_and_the_headlines_of_the_last_step(address, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install 'internist[tensorboard]'")
    kept, run = Kept(), WandbRun()
    monitor = train(address, tmp_path)
    board = ToTensorBoard(tmp_path / "board")
    forwarding = forward(monitor, kept, ToWandb(run), board, every_s=NEVER_S)
    monitor.finish()
    forwarding.close()
    forwarding.close()

    (values, sentence, step), closed = kept.told
    assert closed == "closed"
    assert step == STEPS - 1
    assert values["internist/verdict"] in (0.0, 3.0)
    assert values["internist/loss"] == pytest.approx(0.69, abs=0.2)
    assert values["internist/open_alerts"] == 0.0
    assert run.logged == [({**values, "internist/step": step}, False)]
    assert run.summary == {"internist/sentence": sentence}
    (history,) = read_source("tensorboard", tmp_path / "board")
    assert {curve.tag for curve in history.curves} == set(values)


@contextmanager
def collector():
    """A receiver of OTLP over HTTP: its address, and the metrics that it took, by name."""
    from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

    taken = {}

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
                    (point,) = metric.gauge.data_points
                    attributes = {one.key: one.value.string_value for one in point.attributes}
                    taken[metric.name] = (self.path, attributes, point.as_double)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", taken
        finally:
            server.shutdown()
            thread.join()


def test_a_collector_is_told_by_otlp_and_a_provider_of_the_program_by_its_readers(monkeypatch):
    export = pytest.importorskip("opentelemetry.sdk.metrics.export", reason="pip install 'internist[otel]'")
    from opentelemetry.sdk.metrics import MeterProvider

    values = {"internist/verdict": 2.0, "internist/loss": float("nan"), "internist/coverage": 0.75}
    with collector() as (address, taken):
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", address)
        target = ToOpenTelemetry("run-1")
        target.write(values, "Block 3 is sick.", 7)
        target.write({**values, "internist/verdict": 0.0}, "All is well.", 8)
        target.close()
    reader = export.InMemoryMetricReader()
    theirs = MeterProvider([reader], shutdown_on_exit=False)
    target = ToOpenTelemetry("run-2", theirs)
    target.write(values, "", 9)
    target.close()
    (resource,) = reader.get_metrics_data().resource_metrics
    (scope,) = resource.scope_metrics
    theirs.shutdown()

    assert {name: value for name, (_, _, value) in taken.items()} == {
        "internist.verdict": 0.0, "internist.coverage": 0.75, "internist.not_finite": 1.0, "internist.step": 8.0,
    }  # fmt: skip
    assert {(path, attributes["internist.run"]) for path, attributes, _ in taken.values()} == {("/v1/metrics", "run-1")}
    assert {(metric.name, metric.data.data_points[0].attributes["internist.run"]) for metric in scope.metrics} == {
        (name, "run-2") for name in taken
    }
    with pytest.raises(ConfigurationError, match="expected a meter provider, got str"):
        ToOpenTelemetry("run", "http://collector:4318")
    with pytest.raises(ConfigurationError, match="a run's id"):
        ToOpenTelemetry("")


def test_what_a_target_raises_is_said_once_and_stays_here(address, tmp_path, caplog):
    monitor = train(address, tmp_path)
    forwarding = forward(monitor, Kept(RuntimeError("no room")), every_s=0.01)
    monitor.finish()
    with caplog.at_level(logging.WARNING, "internist"):
        forwarding.close()

    said = [line for line in caplog.messages if "not forwarded" in line]
    assert len(said) <= 1
    assert forwarding._complained


def test_a_run_without_a_server_and_tools_that_are_not_there_are_named(tmp_path, monkeypatch):
    model = nn.Linear(2, 2)
    monitor = internist.watch(model, mode="offline", directory=tmp_path)
    with pytest.raises(ConfigurationError, match="no server"):
        forward(monitor, Kept())
    with pytest.raises(ConfigurationError, match="at least one target"):
        forward(monitor)
    with pytest.raises(ConfigurationError, match="a run of wandb's, got NoneType"):
        ToWandb(None)
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ModuleNotFoundError, match="mlflow"):
        ToMlflow()
    monitor.finish()
