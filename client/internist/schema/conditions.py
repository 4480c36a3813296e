"""The conditions a healthy run keeps, and which metric speaks for which of them, with its bands."""

from dataclasses import dataclass
from typing import Literal

Basis = Literal["target", "reference", "baseline", "sanity"]
State = Literal["ok", "drifting", "violated", "not measured"]
"""A verdict's state, in words as shown."""
STATES: tuple[State, ...] = ("ok", "drifting", "violated", "not measured")

BASELINE_CRITICAL = 4.0
"""A value this many times its own baseline is violated, or more where the baseline's window itself scatters or grows."""
WEIGHT_JUMP = 10.0
"""Times what its steps at two samples explain that a weight's RMS may change by between them."""
WEIGHT_JUMP_SHARE = 0.1
"""And a change by less than this share of it is none."""
LOGIT_JUMP = 2.5
"""Times by which the largest logit of every head of one attention may rise from one sample to the next. Derived: no
healthy run that the judge was tuned by passes 1.5 where logits are of order one, and a scale of 1 / sqrt(d) that is
forgotten is 4 at 16 features a head, 8 at 64."""
LOGIT_ORDER = 1.0
"""Logits under this are no scale that anything is a multiple of."""
RECENT_POINTS = 100
"""Last values that a value of every step is judged by, of those that were in their band."""
RECENT_MINIMUM_POINTS = 30
"""Fewer of them than this: not measured (warming up)."""
RECENT_RISE = 5.0
"""Standard deviations of the last values over their mean, beyond which one is violated,"""
RECENT_FALL = 8.0
"""and under it: learning is a fall; under half of the mean, too."""
BASELINE_MINIMUM_POINTS = 8
"""Fewer positive points in [t/4, t/2] than this: not measured (warming up)."""
WEIGHT_GROWTH = 25.0
"""Times what it was at the start that R(W) of a run that declares no spectral parametrisation may become. Derived: no
healthy run that the judge was tuned by passes 4 in 600 steps, and real ones are longer."""
SANITY_RELATIVE_UPDATE = 0.3
"""A step that moves a module's output by more than this share of itself violates, whatever the baseline."""
REFERENCE_EDGE = 2.5
"""A value this many times beyond where the reference run was, its own scatter and what its size explains allowed for, is
violated; so is one that far below."""
SCHEDULE_FLOOR = 0.01
"""Under this schedule factor a small update says nothing: the lower side is not judged."""
SCHEDULE_JUMP = 3.0
"""A rise of the learning rate by more than this to more than it ever was, or of one group's against the others, between
two light samples after warm-up, is a condition of its own."""
JUDGED_CARDS = 3
"""Fewer of the six cards than this that are judged: not measured, however well they are."""
JUDGED_STEP = "update"
"""And so is a run of which this one is not judged: the others may hold by targets before anything has been learned."""
FOLLOWED_PAIR = 40.0
"""Times the edges of a frozen pair that one may be off which the policy `retract` follows. Derived: it keeps the norm
within 2 % by rounds every few steps, so that the pair is off by as much between them."""
RECOVERY = 0.8
"""An alert resolves when the log-ratio is back under this share of the band's own log-width."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that must hold for a run to be well."""

    name: str
    card: str
    """Which of the six cards of the board shows it."""
    title: str
    fault: str
    """What is wrong when it is violated, for a message that stands alone."""
    summary: str
    advice: str
    """What to try first when it is violated."""
    is_sign: bool = False
    """Whether it is only a sign of trouble: where it is well, that does not say that the card's condition holds."""


CONDITIONS: tuple[Condition, ...] = (
    Condition("forward", "forward", "Forward stability", "Outputs are too large", "max over x of the RMS of f(x) is of order one at every width and depth.", "its input scale, then the growth of its weights"),
    Condition("dependency", "dependency", "Dependency stability", "Inputs are told apart too little or too much", "Different inputs give outputs that differ by order one: neither collapsed nor exploding.", "its weights' operator norm; collapse: the residual branch's scale"),
    Condition("update", "update", "Update stability", "Steps move the output too much or too little", "One step moves the output by the same amount at every width and depth: neither lazy nor explosive.", "its learning rate"),
    Condition("spectral_weight", "spectral", "Spectral condition on weights", "Weights are too large", "The operator norm R(W) of each weight stays of order one.", "its weight decay, then its learning rate"),
    Condition("spectral_update", "spectral", "Spectral condition on updates", "Updates are out of proportion", "The operator norm R(dW) of each update stays of order one times the learning rate.", "its learning rate and the optimizer's shape scaling"),
    Condition("depth", "spectral", "Spectral condition on branches", "A branch is out of proportion to the depth", "What a residual branch adds, and what its updates change of it, is of order 1 / L in a model of L blocks.", "the multiplier of its residual branch, then the init of its last matrix and its learning rate"),
    Condition("invariance", "spectral", "The frozen pair stays", "A frozen pair has moved", "Muon++ steps around a singular pair (u, v) of each weight: W v stays S u.", "what else writes to this weight (decay, clipping, another optimizer), then float32 weights"),
    Condition("gap", "spectral", "Room in the spectral gap", "The spectral gap is used up", "Where nothing but the gap keeps the operator norm (policies cap and none), one step uses at most half of it.", "a smaller learning rate, the policy decay, or an opened gap at initialisation"),
    Condition("frozen_share", "spectral", "The frozen directions matter little", "Frozen directions take much of the momentum", "Little of the momentum lies in the directions that Muon++ does not train.", "a fresh singular pair (initialize), or Muon for this weight"),
    Condition("learned_spectrum", "spectral", "What is learned has the norm", "One direction carries the norm", "Where Muon++ holds the operator norm of a weight, the singular values beneath the top one are of its order too: R(W) is not that of a single direction.", "policy retract, under which what is trained fills the norm; under the others a smaller decay, or no opened gap"),
    Condition("routing", "spectral", "Hidden matrices are on the matrix optimizer", "A hidden matrix is not on the matrix optimizer", "Where an optimizer for matrices takes part in a run, it steps every hidden matrix.", "the parameter groups: internist.optim.split_parameters makes them"),
    Condition("attention", "attention", "Attention logits", "Attention logits are too large", "The largest attention logit stays far from where softmax saturates.", "QK-Clip or QK-norm, then the learning rate of the query and key projections"),
    Condition("logit_scale", "attention", "Scale of queries and keys", "Queries and keys are too large for their scale", "The products of queries and keys, with what they are multiplied by, are of order one at every width.", "attention's scale: 1 / d, not 1 / sqrt(d); then the weights of queries and keys"),
    Condition("numeric", "numeric", "Numbers are finite", "There are NaN or infinite numbers", "No NaN and no infinity anywhere.", "the first module listed: overflow there, then the batch of that step"),
    Condition("first_step", "forward", "Facts of the first step", "The first step is out of proportion", "R(W), the logits, the growth of the residual stream over the blocks and what one step moves are of order one from the start.", "how it is initialised: the weight's scale, the head's, the residual branches' multiplier; then the learning rate"),
    Condition("replicas", "numeric", "Replicas are alike", "Replicas of the weights differ", "Ranks that train replicas of one model have the same weights, bit by bit.", "a rank's memory, its links, a step that some ranks skipped"),
    Condition("loss", "forward", "The loss", "The loss has left its band", "The loss stays among its own last values: it leaps neither up nor down.", "the batches of those steps, then what left its band beside it", is_sign=True),
    Condition("gradient_norm", "update", "Gradient norm", "The gradient is too large", "The norm of all gradients stays among its own last values.", "the batch of that step, then clipping and the learning rate", is_sign=True),
    Condition("experts", "forward", "Experts share the tokens", "The tokens all go to the same experts", "No expert gets nearly all tokens, and routers do not become sure of one expert all at once.", "the weight of the loss that balances the experts, then the router's learning rate", is_sign=True),
    Condition("logits", "forward", "Scale of the logits", "The logits' scale has left its band", "log Z, the scale of the output head's logits, stays where it was.", "the learning rate of the output head, then a z-loss", is_sign=True),
    Condition("learning", "update", "Parameters learn", "A parameter no longer learns", "Each parameter gets a gradient, and steps move its entries.", "whether its gradient reaches it, its learning rate, and the number format of its weights", is_sign=True),
    Condition("epsilon", "update", "Gradients over eps", "Gradients are lost in eps", "The gradients of a matrix are larger than the eps that Adam adds to the root of their second moment.", "a smaller eps of its optimizer: 1e-15 costs nothing where its state is float32", is_sign=True),
    Condition("optimizer_state", "update", "The optimizer remembers", "The optimizer has lost its memory", "The state of the optimizer has seen every step that the run has made.", "whether the resume loaded the optimizer's state; then what clears or replaces it", is_sign=True),
    Condition("weight_jump", "spectral", "Only steps move weights", "Something else than the optimizer has written to a weight", "Between two samples a weight's RMS changes by no more than its steps can have moved it.", "what else writes to it: a checkpoint, an initialisation, a clamp, another optimizer", is_sign=True),
    Condition("logit_jump", "attention", "Attention's scale stays", "Attention logits have leapt", "From one sample to the next the largest logits of an attention's heads do not all rise by a multiple.", "what else writes to it: its scale, a norm of queries and keys that is gone, a checkpoint", is_sign=True),
    Condition("no_data", "numeric", "Series go on", "What was measured no longer is", "What was measured goes on being measured while the run goes on.", "whether the module still takes part: frozen, left out of the forward, or in no optimizer", is_sign=True),
    Condition("weight_decay_jump", "update", "Weight decay jump", "The weight decay jumped", "The weight decay of a group does not jump between two samples.", "the schedule, and what a resume restored", is_sign=True),
    Condition("learning_rate_jump", "update", "Learning rate jump", "The learning rate jumped", "After warm-up the learning rate does not jump between two samples.", "the schedule, and what a resume restored", is_sign=True),
)  # fmt: skip

CONDITION: dict[str, Condition] = {condition.name: condition for condition in CONDITIONS}
CARDS: tuple[str, ...] = ("forward", "dependency", "update", "spectral", "attention", "numeric")


Applies = Literal["always", "mup", "muon"]
"""`mup`: the run declares a spectral or muP parametrisation. `muon`: the series carries `update_scale`."""
APPLIES: dict[Applies, str] = {
    "always": "every run",
    "mup": "runs that declare a spectral or muP parametrisation",
    "muon": "orthogonalised updates",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A band from theory. It is judged only where `applies_when` holds; elsewhere the value is only shown."""

    warn_above: float
    critical_above: float | None
    """None: it warns, however far it goes."""
    applies_when: Applies
    source: str
    is_floor: bool = False
    """Whether it warns, and is violated, below these numbers instead of above them."""
    times: Literal["one", "inverse_root_rank", "followed_pair"] = "one"
    """What both numbers are multiplied by: `inverse_root_rank` is 1/sqrt(min(fan_in, fan_out)) of the matrix,
    `followed_pair` FOLLOWED_PAIR where the optimizer follows the top pair instead of freezing it."""


@dataclass(frozen=True, slots=True)
class Criterion:
    """What a condition asks of one metric. `cause` orders members of one alert: own causes before
    features, and these before what shows in the whole model."""

    condition: str
    metric: str
    applies_to: Literal["all", "blocks", "stages", "normalized_input", "matrices"] = "all"
    """`blocks`: residual-stream outputs only; `stages`: these, and modules outside blocks; `normalized_input`: modules fed by a normalisation layer; `matrices`: hidden ones."""
    two_sided: bool = False
    scheduled: bool = False
    """Divided by the factor of the learning rate's schedule before it is judged."""
    baseline: bool = True
    target: Target | None = None
    sanity_relative_to: str | None = None
    """If set: this metric's `_mean` form over that metric must stay under SANITY_RELATIVE_UPDATE."""
    growth: float | None = None
    """If set: judged by its own baseline it also warns where it is more than this many times what it was when first
    measured, or than one where that was less."""
    recent: Literal["sum", "product"] | None = None
    """If set: judged at every step by its own last values, whose scatter adds to them or multiplies them."""
    vanishing: float | None = None
    """If set: judged by its own baseline for being less than this share of it, and for nothing else."""
    alone: bool = False
    """A fall is judged also where all that share the criterion fall together."""
    complement: bool = False
    """Of a share: what is judged is one less it."""
    cause: Literal["own", "weight", "feature", "model"] = "weight"
    reference: bool = True
    """Held to the reference run, where one is named, on both sides."""


_SU = "Su 2026, kexue.fm/archives/11647; thresholds derived"
_DEPTH = "derived from arXiv:2603.00541: a base of 4 blocks, and R(W) of up to 2.5 each"
_DEPTH_UPDATE = "derived from arXiv:2603.00541: one step over all blocks of a base of 4, as large as the stream in each"
_HEADS = "derived: s = sqrt(64) / d of heads as of a base of 64 features, and R(W) of up to 2.5 each"
_INVARIANCE = "derived: a top pair off by this much is no longer the invariant one"
_GAP = "derived: ||W||_2 stays S while lr <= 1 - sigma_2 / S"
_SHARE = "derived: no published evidence of what freezing a pair costs"
_LEARNED = "derived: a byte GPT of width 64 after 300 steps had 0.83 and 0.47 at least where all is trained, 0.48 and 0.27 at most beside a frozen pair under decay; independent entries have 1 and 0.5"
_ROUTING = "a claim: 0 or 1"
_EPSILON = "derived: where the root of the second moment is less than eps, eps decides the step (arXiv:2309.14322, as reported in notes on it)"
_EXPERTS = "derived: what nine of ten tokens use is no choice among experts"
_LOGIT = "Kimi Team 2025, arXiv:2507.20534 (tau = 100)"

CRITERIA: tuple[Criterion, ...] = (
    Criterion("forward", "activation.rms_max", applies_to="normalized_input", cause="feature"),
    Criterion("forward", "activation.rms", applies_to="stages", cause="feature"),
    Criterion("forward", "activation.rms_q99", applies_to="blocks", cause="feature"),
    Criterion("dependency", "activation.spread", two_sided=True, cause="feature"),
    Criterion("dependency", "activation.lipschitz", two_sided=True, cause="feature", reference=False),  # of the two nearest tokens: no batch repeats it
    Criterion("update", "update.own", two_sided=True, scheduled=True, sanity_relative_to="activation.rms", cause="own"),
    Criterion("update", "update.feature", two_sided=True, scheduled=True, cause="feature"),
    Criterion("spectral_weight", "weight.operator_norm", growth=WEIGHT_GROWTH, target=Target(2.5, 5.0, "mup", _SU)),
    Criterion("spectral_weight", "weight.row_rms_max", baseline=False, target=Target(3.0, 10.0, "mup", _SU)),
    Criterion("spectral_weight", "weight.head_norm", baseline=False, target=Target(30.0, 100.0, "mup", _SU)),
    Criterion("spectral_weight", "weight.abs_max", baseline=False, target=Target(5.0, 20.0, "mup", _SU)),
    Criterion("spectral_update", "update.operator_norm", two_sided=True, scheduled=True, target=Target(1.05, 1.5, "muon", "singular-value bands computed for each coefficient set")),
    Criterion("spectral_update", "update.row_rms_max", two_sided=True, scheduled=True),
    Criterion("spectral_update", "update.head_norm", two_sided=True, scheduled=True),
    Criterion("spectral_update", "update.abs_max", two_sided=True, scheduled=True),
    Criterion("depth", "branch.product", target=Target(25.0, 50.0, "mup", _DEPTH), reference=False),
    Criterion("depth", "branch.first_order", scheduled=True, target=Target(4.0, 16.0, "mup", _DEPTH_UPDATE), reference=False),
    Criterion("depth", "branch.second_order", baseline=False, target=Target(4.0, 16.0, "mup", _DEPTH_UPDATE), reference=False),
    Criterion("invariance", "optimizer.audit", baseline=False, target=Target(1e-3, 1e-2, "always", _INVARIANCE, times="followed_pair"), reference=False),
    Criterion("gap", "optimizer.gap_use", baseline=False, target=Target(0.5, 1.0, "always", _GAP), reference=False),
    Criterion("frozen_share", "optimizer.removed_share", baseline=False, target=Target(4.0, None, "always", _SHARE, times="inverse_root_rank"), reference=False),
    Criterion("learned_spectrum", "optimizer.learned_norm", baseline=False, target=Target(0.6, None, "always", _LEARNED, is_floor=True), reference=False),
    Criterion("learned_spectrum", "optimizer.learned_rms", baseline=False, target=Target(0.3, None, "always", _LEARNED, is_floor=True), reference=False),
    Criterion("routing", "optimizer.misrouted", baseline=False, target=Target(0.5, None, "always", _ROUTING), cause="own", reference=False),
    Criterion("attention", "attention.max_logit", baseline=False, target=Target(100.0, 1000.0, "always", _LOGIT)),
    Criterion("attention", "attention.max_abs_logit", baseline=False, target=Target(100.0, 1000.0, "always", _LOGIT)),
    Criterion("loss", "loss", two_sided=True, baseline=False, recent="sum", cause="model", reference=False),
    Criterion("logits", "output.log_z_max", cause="model", reference=False),
    Criterion("experts", "router.load", baseline=False, target=Target(0.9, None, "always", _EXPERTS), cause="feature", reference=False),
    Criterion("experts", "router.entropy", vanishing=0.1, alone=True, cause="feature", reference=False),
    Criterion("gradient_norm", "gradient.norm_before_clip", baseline=False, recent="product", cause="model", reference=False),
    Criterion("gradient_norm", "gradient.global_norm", baseline=False, recent="product", cause="model", reference=False),
    Criterion("learning", "gradient.rms", vanishing=1e-4, reference=False),
    Criterion("learning", "update.unchanged", vanishing=0.1, complement=True, reference=False),
    Criterion("epsilon", "gradient.over_eps", applies_to="matrices", baseline=False, target=Target(1.0, None, "always", _EPSILON, is_floor=True), reference=False),
    Criterion("no_data", "optimizer.left_out", baseline=False, target=Target(0.5, None, "always", _ROUTING), cause="own", reference=False),
    Criterion("logit_scale", "attention.qk_product", target=Target(50.0, 200.0, "mup", _HEADS), reference=False),
    Criterion("forward", "block.contribution", applies_to="blocks", baseline=False, cause="feature"),
    Criterion("replicas", "weight.replicas_differ", baseline=False, target=Target(0.25, 0.5, "always", _ROUTING), cause="own", reference=False),
    Criterion("numeric", "activation.nonfinite", baseline=False, target=Target(0.0, 0.0, "always", "a count"), cause="own", reference=False),
)  # fmt: skip
