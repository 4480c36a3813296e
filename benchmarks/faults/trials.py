"""Which runs the bench makes: healthy ones, and faults, each with a healthy twin.

One half is for tuning the judge and the other is held out: their architectures differ, and so do all seeds.
"""

import zlib
from dataclasses import dataclass, replace

from benchmarks.faults.injections import KINDS
from benchmarks.faults.optimizers import OPTIMIZERS, SCHEDULES

STEPS = 600
FAULT_AT = 400
TRAITS = ("plain", "clip", "dropout", "bf16", "accumulation", "batch ramp")
TUNED = ("gpt", "moe", "resnet", "mlp")
HELD_OUT = ("llama", "vit", "lstm")
_HEALTHY_A_HALF = 20
_HELD_OUT_SEEDS = 1000


@dataclass(frozen=True, slots=True)
class Fault:
    """What goes wrong, where, and when."""

    kind: str
    place: str | None
    """The module it is in; None: everywhere."""
    first: int
    last: int
    """The first step without it."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run."""

    architecture: str
    optimizer: str
    schedule: str
    trait: str
    seed: int
    steps: int = STEPS
    fault: Fault | None = None

    @property
    def name(self) -> str:
        """What it is called, in files and tables."""
        base = f"{self.architecture}-{self.optimizer}-{self.schedule}-{self.trait.replace(' ', '_')}-{self.seed}"
        if self.fault is None:
            return base
        return f"{base}!{self.fault.kind}" + (f"@{self.fault.place}" if self.fault.place else "")

    @property
    def twin(self) -> "Trial":
        """The same run without its fault."""
        return replace(self, fault=None)

    @property
    def is_held_out(self) -> bool:
        """Whether nobody may tune by it."""
        return self.architecture in HELD_OUT


def healthy() -> list[Trial]:
    """The healthy combinations, each architecture with every optimizer, schedule and trait in turn."""
    found = []
    for architectures, seed in ((TUNED, 0), (HELD_OUT, _HELD_OUT_SEEDS)):
        for number in range(_HEALTHY_A_HALF):
            kind, turn = number % len(architectures), number // len(architectures)
            found.append(
                Trial(
                    architectures[kind],
                    OPTIMIZERS[(turn + kind) % len(OPTIMIZERS)],
                    SCHEDULES[(2 * turn + kind) % len(SCHEDULES)],
                    TRAITS[(turn + 2 * kind) % len(TRAITS)],
                    seed + number,
                )
            )
    return found


_ALL = ("gpt", "llama", "moe", "vit", "resnet", "lstm", "mlp")
PLACES: tuple[tuple[str, str, str | None], ...] = (
    ("block_rate_30", "gpt", "blocks.1"),
    ("block_rate_30", "vit", "blocks.2"),
    ("hidden_block_rate_30", "moe", "blocks.2"),
    ("hidden_block_rate_30", "llama", "blocks.0"),
    ("hidden_block_rate_100", "resnet", "blocks.1"),
    ("hidden_block_rate_100", "llama", "blocks.2"),
    ("global_rate_10", "gpt", None),
    ("global_rate_30", "lstm", None),
    ("rate_zero", "moe", "blocks.1"),
    ("nan_weight", "gpt", "blocks.2.mlp.fc1"),
    ("nan_weight", "lstm", "lstm1"),
    ("nan_batch", "mlp", None),
    ("nan_batch_skipped", "resnet", None),
    ("nan_batch_skipped", "vit", None),
    ("weight_30", "gpt", "blocks.1.attn.proj"),
    ("weight_30", "mlp", "layers.2"),
    ("weight_30", "llama", "blocks.1.mlp.down"),
    ("query_30", "vit", "blocks.1.attn.query"),
    ("scale_forgotten", "gpt", "blocks.2.attn"),
    ("scale_forgotten", "llama", "blocks.2.attn"),
    ("gain_zero", "gpt", "blocks.2.ln1"),
    ("gain_zero", "vit", "blocks.1.ln2"),
    ("dead_block", "moe", "blocks.1.attn.proj"),
    ("dead_block", "llama", "blocks.2.mlp.down"),
    ("gradient_zero", "gpt", "blocks.2"),
    ("gradient_zero", "resnet", "blocks.2"),
    ("gradient_zero", "vit", "blocks.3"),
    ("gradient_flipped", "llama", "blocks.1"),
    ("gradient_flipped", "mlp", "layers.1"),
    ("left_out", "gpt", "blocks.1"),
    ("left_out", "vit", "blocks.2"),
    ("embedding_30", "moe", "embed"),
    ("embedding_30", "lstm", "embed"),
    ("decay_1000", "mlp", None),
    ("decay_1000", "llama", None),
    ("beta2_wrong", "gpt", None),
    ("beta2_wrong", "vit", None),
    ("state_reset", "moe", None),
    ("data_constant", "lstm", None),
    ("data_constant", "gpt", None),
    ("labels_shuffled", "resnet", None),
    ("labels_shuffled", "vit", None),
    ("bf16_stagnation", "gpt", None),
    ("bf16_stagnation", "lstm", None),
    ("branch_10", "llama", None),
    ("branch_10", "moe", None),
    ("head_10", "gpt", "lm_head"),
    ("head_10", "llama", "lm_head"),
    ("clip_removed", "gpt", None),
    ("clip_removed", "lstm", None),
    ("loss_factor_100", "resnet", None),
    ("loss_factor_100", "vit", None),
    ("dead_units", "mlp", "layers.1"),
    ("block_reset", "llama", "blocks.3"),
    ("block_reset", "resnet", "blocks.0"),
    ("router_stuck", "moe", "blocks.2.mlp.router"),
    ("dropout_9", "vit", None),
    ("rate_creeps", "gpt", None),
    ("rate_creeps", "lstm", None),
    ("weights_creep", "resnet", "blocks.1"),
    ("weights_creep", "vit", "blocks.2"),
    ("scale_creeps", "gpt", "blocks.1.attn"),
    ("scale_creeps", "vit", "blocks.1.attn"),
    ("decay_turned", "mlp", None),
    ("decay_turned", "lstm", None),
)
"""(kind, architecture, place)."""


def faults() -> list[Trial]:
    """Every fault in its place, on a healthy run of the architecture whose optimizer and trait it needs."""
    runs, used = healthy(), dict.fromkeys(_ALL, 0)
    found = []
    for kind, architecture, place in PLACES:
        needs = KINDS[kind]
        fits = [
            run
            for run in runs
            if run.architecture == architecture
            and (not needs.optimizers or run.optimizer in needs.optimizers)
            and (needs.trait is None or run.trait == needs.trait)
        ]
        if not fits:
            optimizer = needs.optimizers[0] if needs.optimizers else "adamw"
            seed = next(run.seed for run in runs if run.architecture == architecture) + 100
            fits = [Trial(architecture, optimizer, "cosine", needs.trait or "plain", seed)]
        base = fits[used[architecture] % len(fits)]
        used[architecture] += 1
        first = 0 if needs.when == "start" else FAULT_AT
        found.append(replace(base, fault=Fault(kind, place, first, first + needs.lasts)))
    return found


def all_trials() -> list[Trial]:
    """Every run of the bench: healthy ones, twins that are not among them, and each twin's faults behind it; halves and
    kinds are mixed, so that a bench that is stopped has something of everything."""
    sick = faults()
    well = dict.fromkeys([*healthy(), *(trial.twin for trial in sick)])
    turns = {trial.name: zlib.crc32(trial.name.encode()) for trial in well}
    return sorted([*well, *sick], key=lambda trial: (turns[trial.twin.name], trial.fault is not None))


SHORT = ("nan_batch", "hidden_block_rate_100")


def short_trials() -> list[Trial]:
    """A form that a minute has room for: two faults of networks that train quickly, and their twins."""
    first = {trial.fault.kind: trial for trial in reversed(faults()) if trial.fault is not None}
    return [one for kind in SHORT for one in (first[kind].twin, first[kind])]
