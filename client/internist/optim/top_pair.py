"""The top singular pair of many equal-shaped matrices at once, by Lanczos, and what lies beneath a pair that is kept.

The basis is kept on the smaller side and orthogonalised in full. The singular value is a Rayleigh quotient, so it is
always an estimate from below; `residual` says how far the pair is from satisfying both of its equations.
"""

from typing import NamedTuple

import torch
from torch import Tensor, linalg
from torch.nn import functional

from internist.measures.precision import full_precision

TOLERANCE = 1e-4
"""Residual that a cold start works down to. Derived for this project (the recipe, not a published number)."""

FIRST_CHECK = 32
CHECK_EVERY = 16
MOST_STEPS = 256
"""Lanczos steps of a cold start: looked at after 32 and then after every 16, given up after 256."""

WARM_ROUNDS = 4
"""Rounds of a warm start. Each reads the matrices twice."""

BREAKDOWN = 1e-5
"""A new basis vector this small against the image it came from is rounding, and is set to zero."""

HIDDEN_DIGITS = 2.0**20
"""What is left of a sine times this, less its whole part, is as good as random."""
SEEDS = 9973
"""Seeds that look somewhere else each: a prime, so that no small number of steps comes back."""

SQUARINGS = 20
"""Squarings of a small Gram matrix off the CPU, where an eigenvalue routine would wait for the device,"""
SQUARINGS_AT_ONCE = 4
"""and how many of them before the trace is made 1 again: from 1, it shrinks to no less than side^-15, which float64
has room for."""


class TopPair(NamedTuple):
    """The largest singular value of each of B matrices with its vectors. All NaN for a matrix that is not finite."""

    sigma: Tensor
    """(B,) the singular value, in the weight's unit, from below; zero for a matrix of zeros."""
    u: Tensor
    """(B, fan_out) left vectors: unit vectors, or zero where sigma is."""
    v: Tensor
    """(B, fan_in) right vectors, likewise."""
    residual: Tensor
    """(B,) ‖Wᵀu − σv‖ or ‖Wv − σu‖ over σ, whichever side was not solved exactly; zero for a matrix of zeros."""
    beneath: Tensor
    """(B, fan_in) the next right vector of the same basis: unit, orthogonal to v, and less exact; zero where the basis
    is a single vector."""


def top_pair(
    matrices: Tensor,
    *,
    start: Tensor | None = None,
    frozen: tuple[Tensor, Tensor] | None = None,
    tolerance: float = TOLERANCE,
    batched: bool | None = None,
) -> TopPair:
    """Top singular pairs to a residual, however many Lanczos steps that takes up to `MOST_STEPS`.

    Args:
        matrices: (B, fan_out, fan_in), floating, of norms between 1e-15 and 1e15. Below float32 they are read in
            float32.
        start: (B, fan_in) right vectors of matrices close to these; None starts from a fixed random vector.
        frozen: (u, v), (B, fan_out) and (B, fan_in) unit vectors: the pair beneath them is sought, the top pair of
            (I − uuᵀ) W (I − vvᵀ).
        tolerance: residual to reach, as a share of sigma.
        batched: whether by few operators, as accelerators want it; None is where the matrices are not on a CPU.

    Returns:
        The pairs, float32 (float64 for float64 matrices), on the same device. Two equal top values give one vector
        out of their plane, with a small residual: the value is right, the pair is then not unique.
        The host reads the residual now and then, so this waits for the device: it is for the first step.

    Raises:
        ValueError: matrices is not a non-empty batch of floating matrices, or start has another shape.
    """
    _check(matrices, start)
    batched = not matrices.is_cpu if batched is None else batched
    with full_precision(matrices):
        tall, flipped = _tall(matrices)
        size = tall.shape[2]
        if flipped and start is not None:  # the basis lives on the smaller side: take the start over to it
            start = torch.bmm(start.to(tall.dtype).unsqueeze(1), tall).squeeze(1)
        if flipped and frozen is not None:
            frozen = frozen[1], frozen[0]
        seed = size + (frozen is not None)
        first = _noise(tall, seed=seed, batched=batched) if start is None else start.to(tall.dtype).unsqueeze(1)
        most = min(size, MOST_STEPS)
        krylov = (_BatchedKrylov if batched else _Krylov)(tall, first, room=most, frozen=frozen)
        while True:
            for _ in range(CHECK_EVERY if krylov.known else FIRST_CHECK):
                if krylov.known < most:
                    krylov.extend()
            pair = krylov.top()
            if krylov.known >= most or not bool((pair.residual > tolerance).any()):
                return pair if not flipped else pair._replace(u=pair.v, v=pair.u, beneath=krylov.image_of(pair.beneath))


def warm_pair(
    matrices: Tensor,
    start: Tensor,
    *,
    frozen: tuple[Tensor, Tensor] | None = None,
    rounds: int = WARM_ROUNDS,
    seed: int = 0,
    batched: bool | None = None,
) -> TopPair:
    """Top singular pairs by a number of block Krylov rounds from known vectors. Never waits for the device.

    Each block holds the given vectors and one random one: alone they could stay orthogonal to a new top direction
    for ever, and mixed with it they would lose what they know.

    Args:
        matrices: (B, fan_out, fan_in), floating.
        start: (B, fan_in) or (B, k, fan_in) right vectors to start from.
        frozen: as in `top_pair`.
        rounds: block steps, at least 1; each reads the matrices twice.
        seed: of the random vector; another each time looks somewhere else each time.
        batched: whether by few operators, as accelerators want it; None is where the matrices are not on a CPU.

    Returns:
        The pairs, as `top_pair` does, without a promise on the residual. A zero or not finite start counts as none.

    Raises:
        ValueError: as `top_pair`; rounds is not positive.
    """
    _check(matrices, start)
    if rounds < 1:
        raise ValueError(f"expected at least one round, got {rounds}")
    batched = not matrices.is_cpu if batched is None else batched
    with full_precision(matrices):
        work = matrices if matrices.dtype == torch.float64 else matrices.float()
        known = torch.nan_to_num(start.to(work.dtype).reshape(len(work), -1, work.shape[2]), posinf=0.0, neginf=0.0)
        block = torch.cat([known, _noise(work, seed=seed, batched=batched)], dim=1)
        block = block.narrow(1, 0, min(block.shape[1:]))
        krylov = (_BatchedKrylov if batched else _Krylov)(work, block, room=rounds * block.shape[1], frozen=frozen)
        for _ in range(rounds):
            krylov.extend()
        return krylov.top()


def pair_residual(matrices: Tensor, u: Tensor, v: Tensor, sigma: Tensor) -> Tensor:
    """How far known vectors are from being singular vectors: ‖W v − σ u‖ / σ.

    Args:
        matrices: (B, fan_out, fan_in), floating.
        u: (B, fan_out) unit vectors.
        v: (B, fan_in) unit vectors.
        sigma: (B,) the value they should have, in the weight's unit.

    Returns:
        (B,) float32 (float64 for float64 matrices), zero or more. NaN where an entry or sigma is not a finite number,
        and where sigma is zero.
    """
    with full_precision(matrices):
        work = matrices if matrices.dtype == torch.float64 else matrices.float()
        image = torch.bmm(work, v.to(work.dtype).unsqueeze(2)).squeeze(2)
        missing: Tensor = linalg.vector_norm(image - sigma.unsqueeze(1) * u, dim=1)
        return missing / sigma


class _Krylov:
    """An orthonormal basis of right vectors with their images, grown a block at a time."""

    batched = False
    """Whether by few operators."""

    def __init__(self, matrices: Tensor, first: Tensor, *, room: int, frozen: tuple[Tensor, Tensor] | None) -> None:
        batch, rows, columns = matrices.shape
        self.matrices, self.frozen, self.known, self.width = matrices, frozen, 0, first.shape[1]
        self.basis = matrices.new_zeros(batch, room, columns)
        self.images = matrices.new_zeros(batch, room, rows)
        self.next = first

    def extend(self) -> None:
        """Add the next block, its images, and what the matrices make of those."""
        block = self._orthonormal(self.next)
        end = self.known + self.width
        image = torch.bmm(block, self.matrices.mT)
        if self.frozen is not None:
            image = _without(image, self.frozen[0])
        self.images[:, self.known : end] = image
        self.known = end
        # squares of what a tiny matrix makes of its own image would underflow
        self.next = torch.bmm(functional.normalize(image, dim=2, eps=1e-30), self.matrices)

    def _orthonormal(self, block: Tensor) -> Tensor:
        """Add the block's rows to the basis, orthogonal to the frozen vector, to it and one another, of unit length or
        zero; return them there."""
        least = linalg.vector_norm(block, dim=2, keepdim=True) * BREAKDOWN
        for index in range(self.width):
            place = self.known + index
            against, rest = self.basis[:, :place], block[:, index : index + 1]
            for _ in range(2):  # a second time: once leaves rounding in the basis
                if self.frozen is not None:
                    rest = _without(rest, self.frozen[1])
                if place:
                    rest = torch.baddbmm(rest, torch.bmm(rest, against.mT), against, alpha=-1.0)
            new = linalg.vector_norm(rest, dim=2, keepdim=True)
            unit = torch.where(new > least[:, index : index + 1], rest / new, 0.0 * rest)
            self.basis[:, place : place + 1] = unit
        return self.basis[:, self.known : self.known + self.width]

    def vectors(self) -> Tensor:
        """(B, known, columns) the basis so far."""
        return self.basis.narrow(1, 0, self.known)

    def image_of(self, rows: Tensor) -> Tensor:
        """(B, n) right vectors taken to unit left ones."""
        image = torch.bmm(rows.unsqueeze(1), self.matrices.mT)
        if self.frozen is not None:
            image = _without(image, self.frozen[0])
        return functional.normalize(image.squeeze(1), dim=1)

    def top(self) -> TopPair:
        """The best pair in the basis (Rayleigh-Ritz), with its residual."""
        basis, images = self.vectors(), self.images.narrow(1, 0, self.known)
        top, beneath = _top_vectors(torch.bmm(images, images.mT), batched=self.batched)
        v = torch.bmm(top.unsqueeze(1), basis)
        image = torch.bmm(top.unsqueeze(1), images)
        sigma = linalg.vector_norm(image, dim=2)
        safe = sigma.clamp(min=torch.finfo(sigma.dtype).tiny).unsqueeze(2)
        u = image / safe
        back = torch.bmm(u, self.matrices)
        if self.frozen is not None:
            back = _without(back, self.frozen[1])
        residual = linalg.vector_norm(back - sigma.unsqueeze(2) * v, dim=2) / safe.squeeze(2)
        second = torch.bmm(beneath.unsqueeze(1), basis)
        return TopPair(sigma.squeeze(1), u.squeeze(1), v.squeeze(1), residual.squeeze(1), second.squeeze(1))


class _BatchedKrylov(_Krylov):
    """The same by few operators: for accelerators, where launching them is what costs. The frozen vector is the first
    row of the basis, so that one product takes out all that is known."""

    batched = True

    def __init__(
        self,
        matrices: Tensor,
        first: Tensor,
        *,
        room: int,  # noqa: ARG002 - it grows by copies, an operator less than writing into parts
        frozen: tuple[Tensor, Tensor] | None,
    ) -> None:
        super().__init__(matrices, first, room=0, frozen=frozen)
        self.apart = 0 if frozen is None else 1
        self.turned = matrices.mT
        if frozen is not None:
            self.basis = frozen[1].to(matrices.dtype).unsqueeze(1)

    def extend(self) -> None:
        block = self._orthonormal(self.next)
        image = torch.bmm(block, self.turned)
        if self.frozen is not None:
            image = _without(image, self.frozen[0])
        self.images = torch.cat([self.images, image], dim=1) if self.known else image
        self.known += self.width
        # squares of what a tiny matrix makes of its own image would underflow
        length = linalg.vector_norm(image, dim=2, keepdim=True).clamp_(min=1e-30)
        self.next = torch.bmm(image / length, self.matrices)

    def _orthonormal(self, block: Tensor) -> Tensor:
        least = linalg.vector_norm(block, dim=2, keepdim=True).mul_(BREAKDOWN)
        first = self.apart + self.known
        rows, smalls = torch.split(block, 1, dim=1), torch.split(least, 1, dim=1)
        for place, rest, small in zip(range(first, first + self.width), rows, smalls, strict=True):
            if place:
                turned = self.basis.mT
                for _ in range(2):  # a second time: once leaves rounding in the basis
                    rest = torch.baddbmm(rest, torch.bmm(rest, turned), self.basis, alpha=-1.0)
            new = linalg.vector_norm(rest, dim=2, keepdim=True)
            unit = rest / new.masked_fill_(new <= small, torch.inf)
            self.basis = torch.cat([self.basis, unit], dim=1) if place else unit
        return self.basis.narrow(1, first, self.width)

    def vectors(self) -> Tensor:
        return self.basis.narrow(1, self.apart, self.known)


def _top_vectors(gram: Tensor, *, batched: bool) -> tuple[Tensor, Tensor]:
    """(B, k) first and second eigenvectors of (B, k, k) positive semi-definite matrices.

    NaN for a matrix that is not finite; the second is zero where k is 1.
    """
    wide = gram.double()
    bad = wide.isfinite().all(dim=2).all(dim=1, keepdim=True).logical_not()
    wide = torch.where(bad.unsqueeze(2), 0.0, wide)  # the eigenvalue routine raises on these
    if not batched:
        vectors = linalg.eigh(wide).eigenvectors
        first, second = vectors[:, :, -1], vectors[:, :, -min(2, wide.shape[1])]
    else:
        first = _top_by_squaring(wide)
        second = _top_by_squaring(_without(_without(wide, first).mT, first))
    if wide.shape[1] == 1:
        second = torch.zeros_like(second)
    nan = torch.where(bad, torch.nan, 0.0)
    return (first + nan).to(gram.dtype), (second + nan).to(gram.dtype)


def _top_by_squaring(gram: Tensor) -> Tensor:
    """Top eigenvectors by repeated squaring, without waiting for the device."""
    tiny = torch.finfo(gram.dtype).tiny
    power = gram
    for squaring in range(SQUARINGS):
        if squaring % SQUARINGS_AT_ONCE == 0:
            power = power / power.diagonal(dim1=1, dim2=2).sum(1).clamp_(min=tiny).view(-1, 1, 1)
        power = torch.bmm(power, power)
    best = power.diagonal(dim1=1, dim2=2).argmax(dim=1).view(-1, 1, 1).expand(-1, power.shape[1], 1)
    column = power.gather(2, best).squeeze(2)
    # of zeros, any unit vector is one
    column = torch.where(column.abs().sum(1, keepdim=True) == 0, torch.ones_like(column), column)
    return functional.normalize(column, dim=1)


def _without(rows: Tensor, unit: Tensor) -> Tensor:
    """(B, k, n) rows without their parts along (B, n) unit vectors."""
    column = unit.to(rows.dtype).unsqueeze(2)
    return rows - torch.bmm(rows, column) * column.mT


def _noise(matrices: Tensor, *, seed: int, batched: bool) -> Tensor:
    """(B, 1, n) the same random unit vector for each. The global generator is not touched.

    An accelerator's own generators cost more to make than the numbers: there they are the digits of sines that nobody
    looks at.
    """
    batch, _, size = matrices.shape
    if batched:
        places = torch.arange(1, size + 1, dtype=torch.float64, device=matrices.device)
        digits = places.mul_(1.0 + seed % SEEDS / SEEDS).sin_().mul_(HIDDEN_DIGITS).frac_()
        return functional.normalize(digits.to(matrices.dtype), dim=0).expand(batch, 1, size)
    generator = torch.Generator(device=matrices.device).manual_seed(seed)
    noise = torch.randn(size, generator=generator, device=matrices.device, dtype=matrices.dtype)
    return functional.normalize(noise, dim=0).expand(batch, 1, size)


def _tall(matrices: Tensor) -> tuple[Tensor, bool]:
    work = matrices if matrices.dtype == torch.float64 else matrices.float()
    flipped = work.shape[1] < work.shape[2]
    return (work.mT if flipped else work), flipped


def _check(matrices: Tensor, start: Tensor | None) -> None:
    if matrices.ndim != 3 or matrices.numel() == 0 or not matrices.is_floating_point():
        shape = tuple(matrices.shape)
        raise ValueError(f"expected a batch of floating (fan_out, fan_in) matrices, got {matrices.dtype} of {shape}")
    if start is not None and (start.shape[0], start.shape[-1]) != (matrices.shape[0], matrices.shape[2]):
        expected = (matrices.shape[0], matrices.shape[2])
        raise ValueError(f"expected start vectors of shape {expected}, got {tuple(start.shape)}")
