"""The figures: each with its bar."""

from dataclasses import asdict, dataclass
from typing import Any

import torch


@dataclass(frozen=True, slots=True)
class Row:
    """One figure. Without a card it is what the rehearsal gave, and says nothing."""

    section: str
    name: str
    value: float | None
    """None: it could not be measured here."""
    bar: float | None
    """The most that is allowed; None: for information."""
    unit: str = "ratio"
    note: str = ""


def table(rows: list[Row], *, on_card: bool) -> str:
    """The figures as people read them."""
    lines = [f"{'section':<12} {'figure':<52} {'value':>13} {'bar':>9}  verdict"]
    for row in rows:
        is_known = on_card and row.value is not None
        value = f"{row.value:.4g} {_short(row.unit)}".strip() if is_known else "not measured"
        bar = "" if row.bar is None else f"<= {row.bar:g}"
        verdict = "" if row.bar is None or not is_known else "holds" if _holds(row) else "DOES NOT HOLD"
        lines.append(f"{row.section:<12} {row.name:<52} {value:>13} {bar:>9}  {verdict} {row.note}".rstrip())
    return "\n".join(lines)


def report(rows: list[Row], device: torch.device, seconds: float) -> dict[str, Any]:
    """The figures as programs read them."""
    on_card = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if on_card else "not measured: no card",
        "torch": torch.__version__,
        "seconds": round(seconds, 1),
        "rows": [
            asdict(row)
            | {
                "value": row.value if on_card else None,
                "rehearsed": None if on_card else row.value,
                "holds": _holds(row) if on_card and row.bar is not None and row.value is not None else None,
            }
            for row in rows
        ],
    }


def _holds(row: Row) -> bool:
    return row.value is not None and row.bar is not None and row.value <= row.bar


def _short(unit: str) -> str:
    return "" if unit == "ratio" else unit
