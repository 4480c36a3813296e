"""`internist doctor`: what it says of a machine, of a server, and of training scripts, each of them real."""

import json
import os
import textwrap
import threading
import time
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import torch
from torch.nn import functional

import internist
from internist.commands.doctor import command, grouped
from internist.commands.surroundings import patches, server_findings, spool_findings
from internist.schema.wire import CoverageEntry

NOBODY = "http://127.0.0.1:9"

SCRIPT = """
    import sys
    import torch
    from torch import nn
    from internist import watch

    steps = int(sys.argv[1])
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    model[0].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    watch(model, optimizer, mode="online", directory="/nowhere", id="mine")
    for step in range(steps):
        model(torch.ones(3, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        print("made step", step)
    if __name__ == "__main__":
        print("came to its end")
"""


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in [n for n in os.environ if n.startswith("INTERNIST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("INTERNIST_DIR", str(tmp_path / "spool"))
    monkeypatch.setenv("INTERNIST_SERVER", NOBODY)
    yield
    internist.unwatch()


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "train.py"
        path.write_text(textwrap.dedent(text))
        return str(path)

    return write


@contextmanager
def serve(*, token=None, service="internist"):
    """A small server that answers as ours does where nobody sends measurements."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            allowed = self.path == "/healthz" or token is None or self.headers["Authorization"] == f"Bearer {token}"
            body = {"service": service} if self.path == "/healthz" else {"info": {"version": "9.8.7"}}
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps(body if allowed else {}).encode())

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def told(findings):
    return {finding.name: (finding.state, finding.text) for finding in findings}


def run_json(capsys, *argv):
    code = command(["--json", *argv])
    return code, json.loads(capsys.readouterr().out)


def test_it_names_versions_machine_and_settings_and_hides_the_token(monkeypatch, capsys):
    monkeypatch.setenv("INTERNIST_TOKEN", "a-secret")

    code = command([])
    out = capsys.readouterr().out

    assert code == 0
    assert torch.__version__ in out
    assert torch.backends.cpu.get_cpu_capability() in out
    assert "a-secret" not in out
    assert out.endswith("no problem was found\n")


def test_a_script_is_run_for_some_steps_and_nothing_of_it_is_kept(script, capsys, tmp_path):
    code, report = run_json(capsys, "--steps", "3", script(SCRIPT), "1000000")
    (watched,) = report["script"]["watched"]
    groups = {(g["kind"], g["state"]): g["subjects"] for g in watched["coverage"]}

    assert (code, report["problems"], watched["model"], watched["steps"]) == (0, [], "Sequential", 3)
    assert set(groups["module", "measured"]) == {"0", "2"}
    assert groups["parameter", "frozen"] == ["0.bias"]
    assert not list((tmp_path / "spool").rglob("*.spool"))
    assert internist.watch.__module__ == "internist.monitor.watching"


def test_the_report_says_why_something_is_not_measured(script, capsys):
    assert command([script(SCRIPT), "5"]) == 0

    out = capsys.readouterr().out
    assert "Sequential, after 3 optimizer steps" in out
    assert "parameter update frozen" in out
    assert "requires_grad is False (0.bias)" in out
    assert "made step" not in out


def test_a_script_that_fails_is_a_problem_and_what_it_showed_is_told(script, capsys):
    code, report = run_json(capsys, script(SCRIPT + "\n    raise KeyError('data')\n"), "1")

    assert code == 1
    assert report["problems"] == ["the script ended early: KeyError: 'data'"]
    assert report["script"]["watched"][0]["steps"] == 1


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("print(1)", "the script never called internist.watch(model, optimizer)"),
        ("import sys; sys.exit(3)", "the script ended early: it left by sys.exit(3)"),
        (
            "import torch, internist\nmodel = torch.nn.Linear(2, 2)\ninternist.watch(model)\nmodel(torch.ones(1, 2))",
            "Linear: no optimizer step was seen",
        ),
    ],
)
def test_a_script_of_which_nothing_can_be_measured_is_a_problem(script, capsys, text, problem):
    code, report = run_json(capsys, script(text))

    assert code == 1
    assert any(problem in each for each in report["problems"])


def test_a_loop_without_a_torch_optimizer_ends_as_well(script, capsys):
    text = """
        import torch, internist
        model = torch.nn.Linear(2, 2)
        monitor = internist.watch(model)
        while True:
            model(torch.ones(1, 2)).sum().backward()
            monitor.step()
    """
    code, report = run_json(capsys, script(text))

    assert (code, report["script"]["watched"][0]["steps"]) == (0, 3)


@pytest.mark.parametrize("argv", [["--steps", "0"], ["no-such-file.py"]])
def test_wrong_arguments_are_refused(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        command(argv)

    assert stop.value.code == 2


def test_a_server_is_told_with_its_version_and_its_clock():
    with serve() as address:
        findings = told(server_findings(address, None))

    assert findings[address] == ("ok", "answers")
    assert findings["version"] == ("ok", "9.8.7")
    assert findings["token"] == ("ok", "none is asked for")
    assert findings["clock"][0] == "ok"


@pytest.mark.parametrize(("token", "state"), [("right", "ok"), ("wrong", "problem"), (None, "problem")])
def test_a_token_is_tried(token, state):
    with serve(token="right") as address:
        findings = told(server_findings(address, token))

    assert findings["token"][0] == state


def test_a_server_that_is_away_costs_nothing_and_a_stranger_is_a_problem():
    assert told(server_findings(NOBODY, None))[NOBODY][0] == "note"
    with serve(service="bakery") as address:
        assert told(server_findings(address, None))[address][0] == "problem"


def test_a_spool_is_tried_and_left_as_it_was(tmp_path):
    findings = told(spool_findings(tmp_path / "none"))

    assert findings[str(tmp_path / "none")] == ("ok", "can be made and written")
    assert findings["lock"] == ("ok", "works")
    assert not (tmp_path / "none").exists()


def test_a_directory_that_cannot_be_written_is_a_problem(tmp_path):
    file = tmp_path / "file"
    file.write_text("")

    assert told(spool_findings(file))[str(file)][0] == "problem"


def test_what_other_tools_have_replaced_is_named(monkeypatch):
    def scaled_dot_product_attention(*args, **kwargs):
        raise AssertionError("nobody calls it")

    assert all(state == "ok" for state, _ in told(patches()).values())
    monkeypatch.setattr(functional, "scaled_dot_product_attention", scaled_dot_product_attention)

    state, text = told(patches())["scaled_dot_product_attention"]
    assert state == "note"
    assert __name__ in text


def test_coverage_is_grouped_by_kind_family_state_and_reason():
    entries = [
        CoverageEntry("module", "a", "measured"),
        CoverageEntry("module", "b", "silent", "never called"),
        CoverageEntry("module", "c", "measured"),
        CoverageEntry("parameter", "a.w", "measured"),
    ]

    assert [(g.kind, g.state, g.reason, g.subjects) for g in grouped(entries)] == [
        ("module", "measured", "", ("a", "c")),
        ("module", "silent", "never called", ("b",)),
        ("parameter", "measured", "", ("a.w",)),
    ]


def test_a_clock_that_is_off_is_noted():
    from internist.commands.surroundings import _clock

    assert _clock(formatdate(time.time() - 3600, usegmt=True)).state == "note"
    assert _clock(None).state == "note"
