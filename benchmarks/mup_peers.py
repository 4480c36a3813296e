"""Whether our width rules are those of `mup`: rates, decay, initialisation and multipliers, parameter by parameter.

    python -m benchmarks.mup_peers [--quick] [--json] [--docs]

A byte MLP, which `mup` (PyPI 1.0.0) can express, is planned by `internist.mup` and parametrised by `mup` for AdamW and
SGD, from width 64 to 128, 192 and 1024. Ratios are of the wide model's numbers to the base's. Then both train the wide
model on real text from the same weights, and must give the same losses. It exits with 1 where they disagree, and with 2
where `mup` is not installed. It takes less than a minute of one core.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.mup_reports import Report, run
from benchmarks.mup_trials import MupLaboratory
from internist.demo.model import VOCABULARY, batch
from internist.mup import Plan, plan
from internist.mup.mark import KEY
from internist.mup.multipliers import multiplier_of

DURATION = "less than a minute of one core"
INSTALL = (
    "mup is not installed: `pip install --no-deps mup==1.0.0 pyyaml` (what else it asks for, its core does not use)"
)
CONTEXT, BATCH, STEPS = 8, 16, 20
BASE_WIDTH = 64
LR, WEIGHT_DECAY, STD = 2.0**-7, 0.01, 0.05
EPS = 1e-20
"""So small that it does nothing: mup does not scale Adam's eps, and we do."""
ROUNDING = 1e-6
LOSS_TOLERANCE = 1e-4
"""Relative, of losses after some steps: what float32 in another order of operations leaves."""


class ByteMLP(nn.Module):
    """The next byte from the eight before it: embeddings, hidden layers, a head."""

    def __init__(self, width: int, head: type[nn.Linear] = nn.Linear) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.mix = nn.Linear(CONTEXT * width, width)
        self.wide = nn.Linear(width, 2 * width)
        self.narrow = nn.Linear(2 * width, width)
        self.head = head(width, VOCABULARY, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """(rows, context) int64 to (rows, 256) logits."""
        x = functional.relu(self.mix(self.embed(ids).flatten(1)))
        logits: Tensor = self.head(functional.relu(self.narrow(functional.relu(self.wide(x)))))
        return logits


@dataclass(frozen=True)
class Numbers:
    """What one parameter is trained with."""

    lr: float
    weight_decay: float
    std: float
    """Of its start; NaN where the two are not asked to agree: biases, which we start at zero."""
    multiplier: float
    """Of what the layer computes."""


@dataclass(frozen=True)
class Comparison:
    """One quantity of one parameter, as a ratio to the base's."""

    optimizer: str
    width: int
    parameter: str
    quantity: str
    ours: float
    theirs: float

    @property
    def agrees(self) -> bool:
        """Equal to rounding."""
        return math.isclose(self.ours, self.theirs, rel_tol=ROUNDING)


@dataclass(frozen=True)
class Race:
    """Losses of both over the same steps from the same weights."""

    optimizer: str
    width: int
    ours: tuple[float, ...]
    theirs: tuple[float, ...]

    @property
    def difference(self) -> float:
        """The largest, relative."""
        return max(abs(a - b) / abs(b) for a, b in zip(self.ours, self.theirs, strict=True))

    @property
    def agrees(self) -> bool:
        """Within rounding at every step, and the loss has moved."""
        return self.difference <= LOSS_TOLERANCE and self.theirs[-1] < self.theirs[0]


def study(laboratory: MupLaboratory, quick: bool) -> Report:
    """Compare; `mup` missing is exit code 2."""
    try:
        peer = import_module("mup")
    except ImportError as error:
        said = INSTALL if error.name == "mup" else f"mup cannot be imported: {error}. {INSTALL}"
        print(said, file=sys.stderr)
        return Report(said, [{"name": "mup.peers", "value": "not measured", "reason": said}], status=2)
    widths = (128, 192) if quick else (128, 192, 1024)
    compared = [c for optimizer in ("adamw", "sgd") for width in widths for c in compare(peer, optimizer, width)]
    races = [race(peer, laboratory, optimizer, width) for optimizer in ("adamw", "sgd") for width in widths]
    version = metadata.version("mup")
    different = [c for c in compared if not c.agrees]
    lost = [r for r in races if not r.agrees]
    records: list[Mapping[str, object]] = [
        {"name": "mup.peers.ratios", "value": len(compared) - len(different), "of": len(compared), "mup": version},
        *(
            {
                "name": f"mup.peers.{r.optimizer}.{r.width}.loss_difference",
                "value": r.difference,
                "agrees": r.agrees,
            }
            for r in races
        ),
    ]
    text = [
        f"Against mup {version}, byte MLP of base width {BASE_WIDTH} at widths {', '.join(map(str, widths))}: "
        f"**{len(compared) - len(different)} of {len(compared)} ratios agree**. At width {widths[-1]}, "
        f"r_n = {widths[-1] / BASE_WIDTH:g}, ours (mup's where it differs):",
        "\n".join(_table([c for c in compared if c.width == widths[-1]])),
        f"Trained for {STEPS} steps from the same weights, the losses differ by "
        + ", ".join(f"{r.difference:.1g} ({r.optimizer}, width {r.width})" for r in races)
        + f" relatively; at most {LOSS_TOLERANCE:g} is rounding. **{'FAIL' if different or lost else 'PASS'}**",
        *(
            f"- {c.optimizer}, width {c.width}, {c.parameter}: {c.quantity} times {c.ours:.6g}, in mup {c.theirs:.6g}"
            for c in different
        ),
    ]
    return Report("\n\n".join(text), records, status=1 if different or lost else 0)


def compare(peer: ModuleType, optimizer: str, width: int) -> Iterator[Comparison]:
    """Every quantity of every parameter of the model at a width, over those at the base width."""
    ours, our_base = ours_at(optimizer, width), ours_at(optimizer, BASE_WIDTH)
    theirs, their_base = theirs_at(peer, optimizer, width), theirs_at(peer, optimizer, BASE_WIDTH)
    for name, numbers in theirs.items():
        for quantity in ("lr", "weight_decay", "std", "multiplier"):
            values = [getattr(found[name], quantity) for found in (ours, our_base, theirs, their_base)]
            if not any(math.isnan(value) for value in values):
                a, b, c, d = values
                yield Comparison(optimizer, width, name, quantity, a / b, c / d)
        del numbers


def our_plan(model: nn.Module, optimizer: str) -> Plan:
    """Ours, of the model at any width."""
    return plan(
        model,
        base=ByteMLP(BASE_WIDTH),
        optimizer=optimizer,
        lr=LR,
        weight_decay=WEIGHT_DECAY,
        eps=EPS,
        init_std=STD,
        roles={r"mix\.weight": "hidden"},
    )


def ours_at(optimizer: str, width: int) -> dict[str, Numbers]:
    """Our numbers by parameter."""
    model = ByteMLP(width)
    planned = our_plan(model, optimizer)
    planned.apply()
    modules = dict(model.named_modules())
    found = {}
    for row in planned.rows:
        factor = multiplier_of(modules[row.parameter.rpartition(".")[0]])
        std = math.nan if row.init_std is None else row.init_std
        decay = math.nan if len(row.shape) < 2 else row.weight_decay  # we do not decay biases, mup does
        found[row.parameter] = Numbers(row.lr, decay, std, factor)
    return found


def theirs_at(peer: ModuleType, optimizer: str, width: int) -> dict[str, Numbers]:
    """mup's numbers by parameter: its optimizer's groups, its initialiser's factor, its readout's divisor."""
    model = their_model(peer, width)
    groups = their_optimizer(peer, model, optimizer).param_groups
    of = {id(p): group for group in groups for p in group["params"]}
    found = {}
    for name, parameter in model.named_parameters():
        with torch.no_grad():
            torch.manual_seed(0)
            plain = nn.init.normal_(torch.empty_like(parameter), std=STD)
            torch.manual_seed(0)
            peer.init.normal_(parameter, std=STD)
            std = STD * float((parameter / plain).median()) if parameter.dim() > 1 else math.nan
        decay = of[id(parameter)]["weight_decay"] if parameter.dim() > 1 else math.nan
        factor = 1.0 / model.head.width_mult() if name.startswith("head") else 1.0  # type: ignore[operator]
        found[name] = Numbers(of[id(parameter)]["lr"], decay, std, factor)
    return found


def their_model(peer: ModuleType, width: int) -> ByteMLP:
    """The model with mup's readout and base shapes."""
    model = ByteMLP(width, peer.MuReadout)
    base, delta = ByteMLP(BASE_WIDTH, peer.MuReadout), ByteMLP(2 * BASE_WIDTH, peer.MuReadout)
    peer.set_base_shapes(model, base, delta=delta)
    return model


def their_optimizer(peer: ModuleType, model: nn.Module, optimizer: str) -> torch.optim.Optimizer:
    """mup's own, given the base's rate."""
    if optimizer == "adamw":
        return peer.MuAdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, eps=EPS)  # type: ignore[no-any-return]
    return peer.MuSGD(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)  # type: ignore[no-any-return]


def race(peer: ModuleType, laboratory: MupLaboratory, optimizer: str, width: int) -> Race:
    """Train the same weights with both."""
    torch.manual_seed(0)
    model = ByteMLP(width)
    planned = our_plan(model, optimizer)
    groups = [{**group, "params": [p for _, p in group["params"]]} for group in planned.apply()]
    rival = their_model(peer, width)
    rival.load_state_dict({name: value for name, value in model.state_dict().items() if name != KEY})
    make = torch.optim.AdamW if optimizer == "adamw" else torch.optim.SGD
    for group in groups:  # what mup decays, so that nothing but the rules differs
        group["weight_decay"] = 0.0
    steppers = make(groups), their_optimizer(peer, rival, optimizer)
    for group in steppers[1].param_groups:
        group["weight_decay"] = 0.0
    losses: tuple[list[float], list[float]] = ([], [])
    for mine, stepper, trained in zip(losses, steppers, (model, rival), strict=True):
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS):
            inputs, targets = batch(laboratory.train_text, BATCH, CONTEXT, generator)
            loss = functional.cross_entropy(trained(inputs), targets[:, -1])
            loss.backward()
            stepper.step()
            stepper.zero_grad()
            mine.append(loss.item())
    return Race(optimizer, width, tuple(losses[0]), tuple(losses[1]))


def _table(compared: list[Comparison]) -> Iterator[str]:
    quantities = list(dict.fromkeys(c.quantity for c in compared))
    words = {"lr": "learning rate", "weight_decay": "weight decay", "std": "init std"}
    yield f"| optimizer | parameter | {' | '.join(words.get(q, q) for q in quantities)} |"
    yield "| --- | --- |" + " --- |" * len(quantities)
    cells = {(c.optimizer, c.parameter, c.quantity): c for c in compared}
    for optimizer, parameter in dict.fromkeys((c.optimizer, c.parameter) for c in compared):
        row = [cells.get((optimizer, parameter, quantity)) for quantity in quantities]
        shown = ["" if c is None else f"{c.ours:.4g}" + ("" if c.agrees else f" ({c.theirs:.4g})") for c in row]
        yield f"| {optimizer} | {parameter} | {' | '.join(shown)} |"


def main(arguments: list[str] | None = None) -> int:
    """Run the command."""
    return run("peers", __doc__ or "", DURATION, study, arguments, keeps_results=False)


if __name__ == "__main__":
    raise SystemExit(main())
