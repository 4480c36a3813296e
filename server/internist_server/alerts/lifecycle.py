"""The life of alerts, for many checks at once: inactive, pending, firing, and inactive again. Pure, on arrays."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
Steps = NDArray[np.int64]

INACTIVE, PENDING, FIRING = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Lifecycle:
    """Where each check stands. The arrays are aligned with the checks and never changed in place."""

    phase: NDArray[np.uint8]
    count: NDArray[np.uint16]
    """Pending: points that count towards `for` so far. Firing: points in the recovery band so far."""
    counted: Steps
    """Step of the last point that counted."""
    started: Steps
    """First step of the present excursion; -1 while inactive."""
    opened: Steps
    """Step at which the check fired; -1 while it does not."""

    @classmethod
    def inactive(cls, size: int) -> "Lifecycle":
        """`size` checks, all inactive."""
        none = np.full(size, -1, dtype=np.int64)
        return cls(np.zeros(size, np.uint8), np.zeros(size, np.uint16), none, none, none)

    def extended(self, size: int) -> "Lifecycle":
        """The same with inactive checks appended up to `size`."""
        more = Lifecycle.inactive(size - self.phase.size)
        return Lifecycle(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in FIELDS))

    def ended(self, check: int) -> "Lifecycle":
        """The same with one check inactive."""
        none = Lifecycle.inactive(1)
        fields = []
        for name in FIELDS:
            array = getattr(self, name).copy()
            array[check] = getattr(none, name)[0]
            fields.append(array)
        return Lifecycle(*fields)

    def fired(self, checks: Flags, *, step: int) -> "Lifecycle":
        """The same where these checks, which are pending, fire at a step."""
        return Lifecycle(
            phase=np.where(checks, FIRING, self.phase).astype(np.uint8),
            count=np.where(checks, 0, self.count).astype(np.uint16),
            counted=np.where(checks, step, self.counted),
            started=self.started,
            opened=np.where(checks, step, self.opened),
        )


FIELDS = ("phase", "count", "counted", "started", "opened")


def advance(
    now: Lifecycle,
    *,
    step: int,
    breach: Flags,
    clear: Flags,
    measured: Flags,
    cadence: Steps,
    needed: Steps,
    recovery: Steps | None = None,
    recovery_cadence: Steps | None = None,
    far: Flags | None = None,
) -> Lifecycle:
    """Where each check stands after one more step.

    A breach must hold at every measured point, and `needed` of these points must lie at least `cadence` steps apart:
    points that come more densely (start-up, directives) neither fire nor resolve an alert sooner. A pending check that
    is measured without a breach is inactive again. A firing one resolves after `recovery` points in the recovery band,
    counted likewise; a point outside it starts that count anew. A check that is not measured stays where it is.

    Args:
        now: where the checks stand.
        step: the step that is judged; rises from call to call.
        breach: outside the firing band at this step.
        clear: inside the recovery band at this step, which is narrower.
        measured: whether there is a verdict at this step at all.
        cadence: steps between two points that count.
        needed: `for`, in points, at least 1.
        recovery: points in the recovery band after which it resolves; `needed` without.
        recovery_cadence: steps between two of these; `cadence` without.
        far: breaches so far out that a point of them counts as two.
    """
    slow = cadence if recovery_cadence is None else recovery_cadence
    breach = breach & measured
    if not breach.any() and not now.phase.any():
        return now
    inactive, pending, firing = (now.phase == phase for phase in (INACTIVE, PENDING, FIRING))
    due = (step - now.counted >= cadence) | (now.count == 0)
    starts = inactive & breach
    counts = (pending & breach & due) | starts
    recovers = firing & measured & clear & ~breach
    relapses = firing & measured & ~recovers
    recovery_counts = recovers & (step - now.counted >= slow)

    weight = 1 if far is None else np.where(counts & far, 2, 1)
    count = np.where(counts | recovery_counts, now.count + weight, np.where(relapses, 0, now.count))
    fires = (pending | starts) & breach & (count >= needed)
    ends = (pending & measured & ~breach) | (recovery_counts & (count >= (needed if recovery is None else recovery)))
    phase = np.where(ends, INACTIVE, np.where(fires, FIRING, np.where(starts, PENDING, now.phase)))
    return Lifecycle(
        phase=phase.astype(np.uint8),
        count=np.where(ends | fires, 0, count).astype(np.uint16),
        counted=np.where(ends, -1, np.where(counts | recovery_counts | relapses, step, now.counted)),
        started=np.where(ends, -1, np.where(starts, step, now.started)),
        opened=np.where(ends, -1, np.where(fires, step, now.opened)),
    )
