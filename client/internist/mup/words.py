"""A plan in words: why each parameter's numbers are what they are, and the table of them."""

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from internist.mup.rules import SAME, Powers, Ratios, Rule
from internist.mup.structure import Part

if TYPE_CHECKING:
    from internist.mup.planning import Plan, PlanRow

_ROLES = {
    "input": "input",
    "hidden": "hidden matrix",
    "output": "output head",
    "gain": "gain",
    "bias": "bias",
    "router": "router",
}
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def reason_of(part: Part, rule: Rule, ratios: Ratios, *, keeps_norm: bool, spectral: bool) -> str:
    """Why a parameter's row is what it is, in one line."""
    what = "embedding and head at once" if part.is_tied else _ROLES[part.role]
    what += f" ({part.note})" if part.note else ""
    if part.block is not None:
        count = part.branch.transformations if part.branch else 2
        what += f", in a branch of {'one transformation' if count == 1 else 'two or more transformations'}"
    said = [_grown(part, ratios), _factor("lr", rule.lr, ratios)]
    if keeps_norm:
        said.append("no decay: Muon++ keeps the norm")
    elif rule.weight_decay is None:
        said.append("no decay")
    elif rule.weight_decay != SAME:
        said.append(_factor("decay", rule.weight_decay, ratios) + " keeps lr × decay")
    if rule.eps is not None and rule.eps != SAME:
        said.append(_factor("eps", rule.eps, ratios))
    if spectral:
        said.append("drawn to spectral norm radius √(fan_out / fan_in)")
    elif rule.init_variance is not None:
        said.append(_factor("init variance", rule.init_variance, ratios))
    elif part.role == "bias":
        said.append("starts at 0")
    if part.is_tied:
        said.append("the head's output is divided by the width ratio")
    elif rule.multiplier != SAME:
        which = "head's output" if part.role == "output" else "branch's output"
        said.append(_factor(which, rule.multiplier, ratios))
    return f"{what}: {'; '.join(item for item in said if item)}"


def table_of(plan: "Plan") -> str:
    """The rows as text, parameters that are alike in several blocks on one line, each followed by its reason."""
    columns = ("parameter", "shape", "role", "optimizer", "lr", "decay", "eps", "init", "multiplier")
    lines: list[Sequence[str]] = [columns]
    reasons = [""]
    for name, row in _collapsed(plan.rows):
        init = f"norm {row.init_norm:.4g}" if row.init_norm is not None else _number(row.init_std)
        shape = " x ".join(map(str, row.shape)) or "scalar"
        numbers = (f"{row.lr:.4g}", f"{row.weight_decay:.4g}", _number(row.eps), init, f"{row.multiplier:.4g}")
        lines.append((name, shape, row.role, row.optimizer, *numbers))
        reasons.append(row.reason)
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    text = [f"{plan.parametrization} under {plan.optimizer}, from {plan.base}"]
    for line, reason in zip(lines, reasons, strict=True):
        text.append("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        text += [f"    {reason}"] if reason else []
    for title, placed in (("multipliers", plan.multipliers), ("multipliers of queries", plan.queries)):
        grouped: dict[tuple[str, float], list[str]] = {}
        for name, one in placed.items():
            grouped.setdefault((_starred(name), one.factor), []).append(name)
        text += ["", title] if grouped else []
        text += [f"  {_spanned(star, names)}  x {factor:.4g}" for (star, factor), names in grouped.items()]
    return "\n".join([*text, *(f"\n{note}" for note in plan.notes)])


def _collapsed(rows: Iterable["PlanRow"]) -> list[tuple[str, "PlanRow"]]:
    """(name, row), rows that differ in a block's number alone once: `blocks.{0-3}.fc.weight`."""
    alike: dict[tuple[object, ...], list[PlanRow]] = {}
    for row in rows:
        key = (_starred(row.parameter), row.shape, row.optimizer, row.lr, row.weight_decay, row.eps, row.init_norm)
        std = None if row.init_std is None else f"{row.init_std:.1e}"
        alike.setdefault((*key, row.multiplier, row.reason, std), []).append(row)
    return [(_spanned(str(key[0]), [row.parameter for row in same]), same[0]) for key, same in alike.items()]


def _starred(name: str) -> str:
    """The name with its first number, a block's, as a star."""
    return _NUMBER.sub("*", name, count=1)


def _spanned(star: str, names: Sequence[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = sorted(int(found.group()) for name in names if (found := _NUMBER.search(name)))
    whole = len(numbers) == numbers[-1] - numbers[0] + 1
    span = f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))
    return star.replace("*", f"{{{span}}}", 1)


def _grown(part: Part, ratios: Ratios) -> str:
    """What grew, in words."""
    said = []
    if part.tensor.dim() >= 2 and part.role != "input" and ratios.fan_in != 1.0:
        said.append(f"fan-in {part.fan_in} is {ratios.fan_in:.4g} times the base's")
    if part.role in ("input", "gain", "bias") and ratios.fan_out != 1.0:
        said.append(f"width {part.fan_out} is {ratios.fan_out:.4g} times the base's")
    elif part.role == "hidden" and ratios.fan_out != ratios.fan_in:
        said.append(f"fan-out {ratios.fan_out:.4g} times")
    return ", ".join(said)


def _factor(what: str, powers: Powers, ratios: Ratios) -> str:
    """`lr x 0.25 (r_in^-1)`; where a rule does not scale it, `lr as in the base`."""
    if powers == SAME:
        return f"{what} as in the base"
    names = (("r_in", powers.fan_in), ("r_out", powers.fan_out), ("r_max", powers.longest), ("r_L", powers.depth))
    shown = " ".join(f"{name}^{power:g}" for name, power in names if power)
    return f"{what} x {powers.at(ratios):.4g} ({shown})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
