"""What a run says of its coverage is what the server says of it, and what the board shows."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import internist
from internist.schema.coverage import share
from tests.system.serving import served, wait_for

STEPS = 12
WIDTH = 16
EXACT = 1e-6
"""The share travels as float32."""


class Adapted(nn.Module):
    """A frozen trunk with a small adapter in every layer, as LoRA has it, and a trained head."""

    def __init__(self, layers: int = 6) -> None:
        super().__init__()
        self.trunk = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(layers)).requires_grad_(False)
        self.adapters = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(layers))
        self.head = nn.Linear(WIDTH, 4)

    def forward(self, x):
        for frozen, adapter in zip(self.trunk, self.adapters, strict=True):
            x = functional.gelu(frozen(x) + adapter(x))
        return self.head(x)


def train(model, optimizer, steps):
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x, y = torch.randn(8, WIDTH, generator=generator), torch.randint(0, 4, (8,), generator=generator)
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("server")) as found:
        yield found


def watched(server, folder, model, optimizer):
    return internist.watch(model, optimizer, server=server.address, directory=folder / "spool", every=1, max_overhead=0)


def test_a_mostly_frozen_run_has_one_share_in_the_run_at_the_server_and_in_its_series(server, tmp_path):
    torch.manual_seed(0)
    model = Adapted()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    with watched(server, tmp_path, model, optimizer) as monitor:
        train(model, optimizer, STEPS)
        said = monitor.coverage()

    found = wait_for(lambda: server.get(f"/api/v1/runs/{monitor.run}/coverage"), "the coverage")
    run = wait_for(lambda: next(r for r in server.runs() if r["id"] == monitor.run and r["coverage"]), "the share")

    assert found["share"] == share(said)
    assert run["coverage"] == pytest.approx(share(said), rel=EXACT)
    assert found["counts"]["frozen"] > found["counts"]["measured"] / 4
    told = {(one["kind"], one["subject"], one["family"]): one["state"] for one in found["entries"]}
    assert told == {(one.kind, one.subject, one.family): one.state for one in said}


def test_a_head_that_was_swapped_leaves_the_coverage_at_the_server(server, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, 4))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with watched(server, tmp_path, model, optimizer) as monitor:
        train(model, optimizer, STEPS)
        del model[2]
        model.append(nn.Sequential(nn.Linear(WIDTH, 4)))
        optimizer.add_param_group({"params": list(model[2].parameters())})
        train(model, optimizer, STEPS)
        said = monitor.coverage()

    found = server.get(f"/api/v1/runs/{monitor.run}/coverage")

    gone = {one["subject"]: one["state"] for one in found["entries"] if one["subject"] == "2.weight"}
    assert gone == {"2.weight": "excluded"}
    assert found["share"] == share(said)


def test_a_state_that_is_loaded_after_watching_sets_the_first_step_at_the_server(server, tmp_path):
    torch.manual_seed(0)
    model = nn.Linear(WIDTH, 4)
    before = torch.optim.AdamW(model.parameters(), lr=1e-3)
    train(model, before, STEPS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with watched(server, tmp_path, model, optimizer) as monitor:
        optimizer.load_state_dict(before.state_dict())
        train(model, optimizer, STEPS)

    run = next(run for run in server.runs() if run["id"] == monitor.run)

    assert (run["attempts"][0]["start_step"], run["last_step"]) == (STEPS, 2 * STEPS - 1)
