"""Hyperparameters of one size of model turned into those of another: plain numbers, for any training stack."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from difflib import get_close_matches
from typing import Literal, cast, get_args

from internist.mup.rules import Branch, Parametrization, Powers, Ratios, Role, Rule, optimizer_named, rule

Others = Literal["adamw", "own"]
Value = float | Mapping[str, float]

ROWS: dict[str, tuple[Role, bool]] = {
    "input": ("input", False),
    "hidden": ("hidden", True),
    "output": ("output", False),
    "gain": ("gain", True),
    "bias": ("bias", True),
    "outer_gain": ("gain", False),
    "outer_bias": ("bias", False),
}
"""Name of a row to its role, and whether it is in the residual blocks. Outer gains are the final norm's."""

WORDS = {
    "input": "embeddings, positions, first layer",
    "hidden": "matrices in the blocks",
    "output": "the head",
    "gain": "norm gains in the blocks",
    "bias": "biases in the blocks",
    "outer_gain": "norm gains outside",
    "outer_bias": "biases outside, but the head's",
}
QUANTITIES = ("lr", "weight_decay", "eps", "init_std", "multiplier")
_KEYS = (*QUANTITIES, "adamw_lr")


@dataclass(frozen=True, slots=True)
class ScaleRow:
    """The hyperparameters of one role at the new size. None: not given, or the role has none."""

    role: str
    optimizer: str
    lr: float | None
    weight_decay: float | None
    eps: float | None
    init_std: float | None
    multiplier: float | None
    """Of the residual branches' output for `hidden`, of the head's for `output`."""
    factors: dict[str, float]
    """Quantity to what it was multiplied by."""
    source: str
    tag: str


@dataclass(frozen=True, slots=True)
class ScaleTable:
    """A table of hyperparameters for one size. `str(table)` is `table.text()`."""

    optimizer: str
    parametrization: str
    branch_depth: int
    from_: tuple[int, int | None]
    to: tuple[int, int | None]
    rows: tuple[ScaleRow, ...]

    @property
    def hyperparameters(self) -> dict[str, dict[str, float]]:
        """Quantity to role to number: what `scale` takes, to go on to another size or back."""
        found: dict[str, dict[str, float]] = {}
        for quantity in QUANTITIES:
            values = {row.role: getattr(row, quantity) for row in self.rows}
            given = {role: value for role, value in values.items() if value is not None}
            if given:
                found[quantity] = given
        return found

    def to_dict(self) -> dict[str, object]:
        """The table as JSON-able data."""
        return {
            "optimizer": self.optimizer,
            "parametrization": self.parametrization,
            "branch_depth": self.branch_depth,
            "from": {"width": self.from_[0], "depth": self.from_[1]},
            "to": {"width": self.to[0], "depth": self.to[1]},
            "rows": [asdict(row) for row in self.rows],
        }

    def json(self) -> str:
        """The table as JSON."""
        return json.dumps(self.to_dict(), indent=2, ensure_ascii=False)

    def yaml(self) -> str:
        """The table as YAML."""
        return "\n".join(_yaml(self.to_dict(), 0))

    def text(self) -> str:
        """The table for people: each number with what it was multiplied by, and where the row is from."""
        shown = [quantity for quantity in QUANTITIES if any(getattr(row, quantity) is not None for row in self.rows)]
        lines: list[Sequence[str]] = [("role", "optimizer", *(quantity.replace("_", " ") for quantity in shown))]
        for row in self.rows:
            lines.append((row.role, row.optimizer, *(_cell(row, quantity) for quantity in shown)))
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        count = "one transformation" if self.branch_depth == 1 else "two or more transformations"
        text = [
            f"{self.parametrization} under {self.optimizer}, from {_size(self.from_)} to {_size(self.to)}, "
            f"residual branches of {count}",
            "",
        ]
        text += [
            "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
        ]
        text += ["", *(f"{name}: {words}" for name, words in WORDS.items())]
        text += [
            "",
            "multiplier: of hidden, what every residual branch adds is multiplied by it; of output, the logits are",
        ]
        sources = {row.optimizer: (row.source, row.tag) for row in self.rows}
        text += [f"{name}: {source} [{tag}]" for name, (source, tag) in sources.items()]
        return "\n".join(text)

    def __str__(self) -> str:
        return self.text()


def scale(
    hyperparameters: Mapping[str, Value],
    *,
    from_: Sequence[int | None],
    to: Sequence[int | None],
    optimizer: str,
    parametrization: Parametrization = "mup",
    branch_depth: int = 2,
    others: Others = "adamw",
) -> ScaleTable:
    """Turn hyperparameters that are good at one size into those of another, larger or smaller.

    Args:
        hyperparameters: lr, weight_decay, eps, init_std, multiplier to a number, or to role (a key of `ROWS`) to one;
            adamw_lr is the lr of what a matrix optimizer leaves to AdamW. What is not given is left out, but the
            multiplier, which is 1. Of gains and biases no decay or init_std is made.
        from_: (width, number of residual blocks) that they are for.
        to: (width, number of residual blocks) wanted. Depths may be None, both of them: as many blocks as before.
        optimizer: a name in `internist.mup.OPTIMIZERS`.
        parametrization: `mup`, `u_mup`, or `standard` or `ntk` to compare with.
        branch_depth: transformations in a residual branch: 1, or 2 for two and more, as in attention and an MLP.
        others: who steps what is no hidden matrix beside a matrix optimizer: AdamW, or for inputs and outputs itself.

    Returns:
        A row per role. The family is taken to grow evenly: shapes of matrices keep their proportions.

    Raises:
        ValueError: no such optimizer, quantity, role or size; a number that is not one, or negative.
    """
    known = optimizer_named(optimizer)
    if others not in get_args(Others):
        raise ValueError(f"expected others to be one of {get_args(Others)}, got {others!r}")
    if isinstance(branch_depth, bool) or not isinstance(branch_depth, int) or branch_depth < 1:
        raise ValueError(f"expected a branch_depth of at least 1, got {branch_depth!r}")
    branch = cast(Branch, min(branch_depth, 2))
    small, large = _checked("from_", from_), _checked("to", to)
    if (small[1] is None) != (large[1] is None):
        raise ValueError(f"one size says a depth and the other none: {_size(small)} and {_size(large)}")
    r_n = large[0] / small[0]
    r_L = 1.0 if small[1] is None or large[1] is None else large[1] / small[1]
    given = _given(hyperparameters)
    if "adamw_lr" in given and not known.is_matrix_optimizer:
        raise ValueError(f"adamw_lr is for what a matrix optimizer leaves to AdamW, and {optimizer} steps everything")
    rows = []
    for name, (role, inside) in ROWS.items():
        stepper = optimizer
        if known.is_matrix_optimizer and role != "hidden" and others == "adamw":
            stepper = "adamw"
        found = rule(stepper, role, branch=branch if inside else 0, parametrization=parametrization)
        rows.append(_row(name, role, found, given, r_n, r_L, is_other=found.optimizer != optimizer))
    return ScaleTable(optimizer, parametrization, branch, small, large, tuple(rows))


def ratios_of(role: Role, r_n: float, r_L: float) -> Ratios:
    """How a parameter of this role grows in a family that grows evenly."""
    return Ratios(
        fan_in=r_n if role in ("hidden", "output") else 1.0,
        fan_out=1.0 if role == "output" else r_n,
        longest=r_n,
        depth=r_L,
    )


def size_of(text: str) -> tuple[int, int | None]:
    """`256x4`, or `256`, as (width, depth).

    Raises:
        ValueError: it is neither.
    """
    width, _, depth = text.lower().partition("x")
    try:
        return _checked("size", (int(width), int(depth) if depth else None))
    except ValueError:
        raise ValueError(f"expected a size as WIDTHxDEPTH or WIDTH, such as 256x4, got {text!r}") from None


def _row(
    name: str, role: Role, found: Rule, given: Mapping[str, Value], r_n: float, r_L: float, *, is_other: bool
) -> ScaleRow:
    ratios = ratios_of(role, r_n, r_L)
    powers: dict[str, Powers | None] = {
        "lr": found.lr,
        "weight_decay": found.weight_decay,
        "eps": found.eps,
        "init_std": None if found.init_variance is None else found.init_variance * 0.5,
        "multiplier": found.multiplier if name in ("hidden", "output") else None,
    }
    base = {quantity: _value(given, quantity, name) for quantity in QUANTITIES}
    if is_other and "adamw_lr" in given:
        base["lr"] = _value(given, "adamw_lr", name)
    if powers["multiplier"] is not None and base["multiplier"] is None:
        base["multiplier"] = 1.0
    factors = {quantity: power.at(ratios) for quantity, power in powers.items() if power is not None}
    values = {
        quantity: None if value is None or quantity not in factors else value * factors[quantity]
        for quantity, value in base.items()
    }
    blank = ScaleRow(name, found.optimizer, None, None, None, None, None, factors, found.source, found.tag)
    return replace(blank, **values)  # type: ignore[arg-type]


def _value(given: Mapping[str, Value], quantity: str, role: str) -> float | None:
    value = given.get(quantity)
    if isinstance(value, Mapping):
        return value.get(role)
    return value


def _given(hyperparameters: Mapping[str, Value]) -> dict[str, Value]:
    """The hyperparameters, checked."""
    for quantity, value in hyperparameters.items():
        if quantity not in _KEYS:
            near = get_close_matches(quantity, _KEYS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"expected hyperparameters of {', '.join(_KEYS)}, got {quantity!r}{hint}")
        roles = value if isinstance(value, Mapping) else {"": value}
        for role, number in roles.items():
            if role and role not in ROWS:
                near = get_close_matches(role, ROWS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{quantity}: expected roles of {', '.join(ROWS)}, got {role!r}{hint}")
            what = f"{quantity} of {role}" if role else quantity
            if isinstance(number, bool) or not isinstance(number, int | float):
                raise ValueError(f"expected {what} to be a number, got {number!r}")
            if not (math.isfinite(number) and number >= 0.0):
                raise ValueError(f"expected {what} of at least 0, got {number}")
    return dict(hyperparameters)


def _checked(what: str, size: Sequence[int | None]) -> tuple[int, int | None]:
    if isinstance(size, str) or not isinstance(size, Sequence) or len(size) != 2:
        raise ValueError(f"{what}: expected a size of (width, depth), got {size!r}")
    width, depth = size
    for name, value in (("width", width), ("depth", depth)):
        if value is None and name == "depth":
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{what}: expected a {name} of at least 1, got {value!r}")
    return cast(int, width), depth


def _size(size: tuple[int, int | None]) -> str:
    return f"{size[0]}x{size[1]}" if size[1] is not None else f"width {size[0]}"


def _cell(row: ScaleRow, quantity: str) -> str:
    value = getattr(row, quantity)
    return "" if value is None else f"{value:.6g} (x {row.factors[quantity]:.4g})"


def _yaml(value: object, depth: int) -> Iterator[str]:
    """Lines of block YAML of dicts and lists, and of scalars in JSON's form, which YAML shares."""
    indent = "  " * depth
    if isinstance(value, Mapping):
        for key, item in value.items():
            if isinstance(item, Mapping | list) and item:
                yield f"{indent}{key}:"
                yield from _yaml(item, depth + 1)
            else:
                yield f"{indent}{key}: {_scalar(item)}"
    elif isinstance(value, list):
        for item in value:
            first, *rest = _yaml(item, depth + 1)
            yield f"{indent}- {first.lstrip()}"
            yield from rest


def _scalar(value: object) -> str:
    if isinstance(value, float):
        # YAML 1.1 reads 1e-08 as a string: it wants a point
        text = repr(value)
        return text.replace("e", ".0e") if "e" in text and "." not in text else text
    return json.dumps(value, ensure_ascii=False)
