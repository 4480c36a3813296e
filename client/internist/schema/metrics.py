"""The catalogue: every metric Internist knows, what it means, and how parts of several ranks become one value."""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["module", "parameter", "group", "model"]
Bound = Literal["exact", "lower", "upper", "sampled"]
Cadence = Literal["light", "model_heavy", "matrix_heavy", "logged"]
Placement = Literal["replicated", "data_parallel", "feature_sharded", "sharded_matrix", "disjoint"]
"""How what a subject is lies over the ranks."""
Combine = Literal["mean_square", "sum_square", "mean", "max", "sum", "first", "differs"]
"""How parts merge, over micro-batches and then over ranks, and what travels on the wire.

`mean_square`  the mean of squares travels, with its count; merged value sqrt(sum(n * ms) / sum(n)).
`sum_square`   the sum of squares travels; merged value sqrt(sum of parts).
`mean`         the mean travels, with its count; merged value sum(n * v) / sum(n).
`max`, `sum`   as the words say.
`differs`      a checksum travels; merged value 1 where two ranks sent different ones, else 0.
`first`        replicated or as given: the lowest rank that sent it.

A NaN in any part makes the merged value NaN.
"""


@dataclass(frozen=True, slots=True)
class Metric:
    """What is measured. A metric never changes its meaning under the same name."""

    name: str
    unit: str
    """The unit of the value in words, for axis titles; empty for pure numbers."""
    summary: str
    combine: Combine
    cadence: Cadence
    kind: Kind
    source: str = ""
    """The publication that defines it, where one does; what the project derived has none."""
    over: str = ""
    """Of a ratio: the metric of the same subject that its merged value is divided by. Both travel, each as its own
    series and merged alike, because no mean of the parts' ratios is the ratio of the whole. A part that comes without
    the other is the ratio itself."""
    made_of: tuple[str, ...] = ()
    """Of what a rank works out of other values of its own frame: their metrics. They are measured where it is wanted."""

    @property
    def family(self) -> str:
        """What stands before the dot of its name: `activation`, `update`, ..."""
        return self.name.partition(".")[0]


_SPECTRAL = "Yang, Simon & Bernstein 2023, arXiv:2310.17813"
_SU_3 = "Su 2026, kexue.fm/archives/11647"
_SU_4 = "Su 2026, kexue.fm/archives/11729"
_DEPTH = "arXiv:2603.00541, as reported in notes on it"
_BRANCH_OF = ("weight.operator_norm", "activation.rms", "block.contribution", "block.stream")
_CHANGE_OF = (*_BRANCH_OF, "update.operator_norm")
_QK_CLIP = "Kimi Team 2025, arXiv:2507.20534"

CATALOGUE: tuple[Metric, ...] = (
    # Activations: one value per module call, over all tokens of the batch.
    Metric("activation.rms", "activation", "RMS over all tokens and features of the module's output.", "mean_square", "light", "module"),
    Metric("activation.rms_max", "activation", "Largest token RMS of the module's output.", "max", "light", "module", _SU_3),
    Metric("activation.rms_q99", "activation", "99 % quantile over tokens of the token's RMS.", "max", "light", "module"),
    Metric("activation.input_rms_max", "activation", "Largest token RMS of the module's input; on light steps only where the input is another watched module's output.", "max", "light", "module"),
    Metric("activation.abs_max", "activation", "Largest absolute entry of the module's output.", "max", "light", "module"),
    Metric("activation.nonfinite", "entries", "Number of NaN and infinite entries of the module's output.", "sum", "light", "module"),
    Metric("activation.spread", "activation", "Dependency: largest RMS distance between the outputs of two probe tokens.", "max", "model_heavy", "module", _SU_3),
    Metric("activation.spread_mean", "activation", "Mean RMS distance between the outputs of two probe tokens.", "mean", "model_heavy", "module"),
    Metric("activation.lipschitz", "", "Dependency: largest ratio of output distance to input distance over pairs of probe tokens.", "max", "model_heavy", "module", _SU_4),
    Metric("activation.underflow", "", "Share of the entries of the output's probe tokens that are not zero and smaller than the smallest normal number of their format.", "mean", "model_heavy", "module"),
    Metric("activation.saturation", "", "Share of the entries of the output's probe tokens that are as large as the largest number of their format or larger, NaN and infinities among them.", "mean", "model_heavy", "module"),
    Metric("activation.narrow_underflow", "", "Share of the entries of the output's probe tokens that are not zero and would round to zero in the next narrower format (of float32 float16, of 16 bits float8 E4M3), without a scale.", "mean", "model_heavy", "module"),
    Metric("activation.narrow_saturation", "", "Share of the entries of the output's probe tokens that would round past the largest number of the next narrower format, NaN and infinities among them.", "mean", "model_heavy", "module"),
    Metric("block.contribution", "", "RMS of (output - input) over RMS of the input of a residual block.", "mean_square", "light", "module", over="block.stream"),
    Metric("block.stream", "activation", "RMS of the input of a residual block.", "mean_square", "light", "module"),
    # Weights.
    Metric("weight.rms", "weight", "RMS of the parameter's entries.", "mean_square", "light", "parameter"),
    Metric("weight.spectral_norm", "weight", "Largest singular value of the weight matrix.", "max", "matrix_heavy", "parameter", _SPECTRAL),
    Metric("weight.operator_norm", "", "RMS-to-RMS operator norm R(W) = sqrt(fan_in / fan_out) * spectral norm.", "max", "matrix_heavy", "parameter", _SPECTRAL),
    Metric("weight.stable_rank", "", "Squared Frobenius norm over squared spectral norm.", "max", "matrix_heavy", "parameter"),
    Metric("weight.row_rms_max", "weight", "Largest row RMS of an embedding.", "max", "light", "parameter", _SU_3),
    Metric("weight.head_norm", "", "fan_in times the largest row RMS of an output head.", "max", "light", "parameter", _SU_3),
    Metric("weight.abs_max", "weight", "Largest absolute entry of a gain or bias.", "max", "light", "parameter", _SU_3),
    Metric("weight.underflow", "", "Share of a sample of the parameter's entries that are not zero and smaller than the smallest normal number of their format.", "mean", "model_heavy", "parameter"),
    Metric("weight.saturation", "", "Share of a sample of the parameter's entries that are as large as the largest number of their format or larger, NaN and infinities among them.", "mean", "model_heavy", "parameter"),
    Metric("weight.narrow_underflow", "", "Share of a sample of the parameter's entries that are not zero and would round to zero in the next narrower format (of float32 float16, of 16 bits float8 E4M3), without a scale.", "mean", "model_heavy", "parameter"),
    Metric("weight.narrow_saturation", "", "Share of a sample of the parameter's entries that would round past the largest number of the next narrower format, NaN and infinities among them.", "mean", "model_heavy", "parameter"),
    Metric("weight.replicas_differ", "", "1 where replicas of the weights (DistributedDataParallel) are not the same bits on all ranks, else 0.", "differs", "model_heavy", "model"),
    # Updates, as stored: after minus before, in the parameter's own dtype.
    Metric("update.rms", "weight", "RMS of the stored weight change of one step.", "mean_square", "light", "parameter"),
    Metric("update.relative_rms", "", "RMS of the weight change over RMS of the weight.", "mean_square", "light", "parameter", over="update.base"),
    Metric("update.base", "weight", "RMS of a sharded parameter: what its update.relative_rms is divided by once the shards are merged.", "mean_square", "light", "parameter"),
    Metric("update.unchanged", "", "Share of entries that one step did not move.", "mean", "light", "parameter"),
    Metric("update.spectral_norm", "weight", "Largest singular value of the weight change.", "max", "matrix_heavy", "parameter", _SPECTRAL),
    Metric("update.operator_norm", "", "RMS-to-RMS operator norm R(dW) of the weight change.", "max", "matrix_heavy", "parameter", _SPECTRAL),
    Metric("update.relative", "", "R(dW) over R(W).", "max", "matrix_heavy", "parameter"),
    Metric("update.row_rms_max", "weight", "Largest row RMS of an embedding's change.", "max", "light", "parameter", _SU_3),
    Metric("update.head_norm", "", "fan_in times the largest row RMS of an output head's change.", "max", "light", "parameter", _SU_3),
    Metric("update.abs_max", "weight", "Largest absolute change of a gain or bias.", "max", "light", "parameter", _SU_3),
    Metric("update.own", "activation", "Largest change of a probe token's output caused by this module's own parameters in one step.", "max", "light", "module", _SU_3),
    Metric("update.own_mean", "activation", "RMS over probe tokens of the change caused by this module's own parameters.", "mean_square", "light", "module"),
    Metric("update.feature", "activation", "Largest change of a probe token's output in one step, everything having changed.", "max", "model_heavy", "module", _SU_3),
    Metric("update.feature_mean", "activation", "RMS over probe tokens of the output's change in one step, everything having changed.", "mean_square", "model_heavy", "module"),
    # Residual branches h <- h + alpha W_k ... W_1 h of a model of L blocks.
    Metric("branch.product", "", "L * alpha * R(W_k) ... R(W_1) of a residual branch of two or more matrices in a row, sqrt(L) * alpha * R(W) of one: of order one at every width and depth. Of matrices side by side the largest counts; attention's are its values and its output.", "max", "matrix_heavy", "module", _DEPTH, made_of=_BRANCH_OF),
    Metric("branch.first_order", "", "L * alpha * R(dW_i) * the product of R(W_j) of the branch's other matrices: what this matrix's step does to the branch, over all blocks.", "max", "matrix_heavy", "parameter", _DEPTH, made_of=_CHANGE_OF),
    Metric("branch.second_order", "", "L * alpha * R(dW_i) * R(dW_j) * the product of R(W) of the branch's other matrices, of the two for which it is largest.", "max", "matrix_heavy", "module", _DEPTH, made_of=_CHANGE_OF),
    # Gradients, as the optimizer receives them.
    Metric("gradient.rms", "gradient", "RMS of the gradient that the optimizer receives.", "mean_square", "light", "parameter"),
    Metric("gradient.global_norm", "gradient", "2-norm of all gradients that the optimizer receives.", "sum_square", "light", "model"),
    Metric("gradient.norm_before_clip", "gradient", "Total norm that clip_grad_norm_ found; at every step where it lies on the host.", "first", "light", "model"),
    Metric("gradient.norm_after_clip", "gradient", "What clip_grad_norm_ left of that norm: the smaller of it and the largest that is allowed, of several clips together; at every step where it lies on the host.", "first", "light", "model"),
    Metric("gradient.over_eps", "", "RMS of the gradient over the eps that Adam adds to the root of its second moment: under one, eps decides how far a step goes.", "mean_square", "model_heavy", "parameter", "arXiv:2309.14322, as reported in notes on it", made_of=("gradient.rms",)),
    Metric("gradient.underflow", "", "Share of a sample of the gradient's entries, as stored that are not zero and smaller than the smallest normal number of their format.", "mean", "model_heavy", "parameter"),
    Metric("gradient.saturation", "", "Share of a sample of the gradient's entries, as stored that are as large as the largest number of their format or larger, NaN and infinities among them.", "mean", "model_heavy", "parameter"),
    Metric("gradient.narrow_underflow", "", "Share of a sample of the gradient's entries, as stored that are not zero and would round to zero in the next narrower format (of float32 float16, of 16 bits float8 E5M2), without a scale but that of a gradient scaler.", "mean", "model_heavy", "parameter"),
    Metric("gradient.narrow_saturation", "", "Share of a sample of the gradient's entries, as stored that would round past the largest number of the next narrower format, NaN and infinities among them.", "mean", "model_heavy", "parameter"),
    # Attention and output.
    Metric("attention.max_logit", "", "Largest attention logit that enters the softmax, per head.", "max", "model_heavy", "module", _QK_CLIP),
    Metric("attention.max_abs_logit", "", "Largest absolute attention logit that enters the softmax, per head.", "max", "model_heavy", "module", _QK_CLIP),
    Metric("attention.qk_product", "", "s * d * R(W_Q) * R(W_K) of attention that multiplies the products of queries and keys by s, in heads of d features: of order one at every width where s goes with 1 / d.", "max", "matrix_heavy", "module", made_of=_BRANCH_OF),
    Metric("attention.qk_first_order", "", "The larger of s * d * R(dW_Q) * R(W_K) and s * d * R(W_Q) * R(dW_K).", "max", "matrix_heavy", "module", made_of=_CHANGE_OF),
    Metric("attention.qk_second_order", "", "s * d * R(dW_Q) * R(dW_K).", "max", "matrix_heavy", "module", made_of=_CHANGE_OF),
    Metric("router.load", "", "Share of the tokens that a router sends to an expert, per expert; of experts alike it is the experts a token is sent to over all experts.", "mean", "model_heavy", "module"),
    Metric("router.entropy", "", "Mean over tokens of the entropy of the softmax of the router's logits, over the logarithm of the number of experts: 1 for a token to which all experts are alike, 0 for one of which a single expert is sure.", "mean", "model_heavy", "module"),
    Metric("output.log_z", "nats", "Mean over tokens of logsumexp of the output head's logits.", "mean", "light", "module"),
    Metric("output.log_z_max", "nats", "Largest logsumexp of the output head's logits.", "max", "light", "module"),
    # What an optimizer tells of itself, on sampled steps; a parameter of several matrices (heads, experts) tells the worst.
    Metric("optimizer.effective_lr", "weight", "Learning rate times shape scale, after caps: what multiplies the orthogonalised direction.", "first", "light", "parameter"),
    Metric("optimizer.update_norm_low", "weight", "Lower bound of the spectral norm of this step's update, without decay, from the band of the coefficient set.", "first", "light", "parameter"),
    Metric("optimizer.update_norm_high", "weight", "Upper bound of the spectral norm of this step's update, without decay, from the band of the coefficient set.", "first", "light", "parameter"),
    Metric("optimizer.orthogonality", "", "Residual of orthogonality ||D D^T - I||_F / sqrt(min(fan_in, fan_out)) of the orthogonalised direction D.", "first", "light", "parameter"),
    Metric("optimizer.gap", "", "Spectral gap 1 - sigma_2 / S of the weight under its radius S (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.gap_use", "", "Learning rate over spectral gap: over 1, a step may lift sigma_2 past S. Only under the gap policies cap and none, which rest on the gap.", "first", "light", "parameter"),
    Metric("optimizer.audit", "", "How far the frozen pair is from being a singular pair of the weight: ||W v - S u|| / S (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.removed_share", "", "Share of the momentum's Frobenius norm that the projection off the frozen pair removes (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.learned_norm", "", "Second singular value of the weight over its first: the norm of what lies beneath the pair that a step leaves alone (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.learned_rms", "", "RMS of all singular values of the weight but the first, over the first; it lies near their median (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.net_update", "weight", "Spectral norm of all that the step did to the weight: update, decay and retraction (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.firings", "firings", "Times that the gap policy has fired so far (Muon++).", "first", "light", "parameter"),
    Metric("optimizer.clip_gamma", "", "Smallest factor over heads by which QK-Clip scaled their logits at this step; 1: none was clipped.", "first", "light", "parameter", _QK_CLIP),
    Metric("optimizer.clip_heads", "heads", "Number of heads that QK-Clip clipped at this step.", "first", "light", "parameter", _QK_CLIP),
    Metric("optimizer.steps", "steps", "Steps that the optimizer's state has seen, of the first of the group's parameters that counts them.", "first", "light", "group"),
    Metric("optimizer.left_out", "", "1 where a parameter wants a gradient and is in no optimizer, else 0; told of those that ever were, where they are the fewer.", "first", "model_heavy", "parameter"),
    Metric("optimizer.misrouted", "", "1 where a hidden matrix is stepped by another algorithm although a matrix optimizer takes part in the run, else 0.", "first", "model_heavy", "parameter"),
    # As given by the run.
    Metric("loss", "nats", "Training loss as the run reports it.", "mean", "logged", "model"),
    Metric("learning_rate", "", "Learning rate of a parameter group.", "first", "light", "group"),
    Metric("weight_decay", "", "Weight decay of a parameter group.", "first", "light", "group"),
    Metric("schedule.multiplier", "", "What the schedule that the run declares multiplies a parameter group's learning rate by.", "first", "light", "group"),
    Metric("schedule.rise", "", "How many times larger the declared schedule's multiplier will be within the next hundred steps.", "first", "light", "model"),
    # What the monitor costs and misses.
    Metric("monitor.overhead_ms", "ms", "Host time the monitor took on this step.", "max", "light", "model"),
    Metric("monitor.share", "", "Share of the time of the last thousand steps that the monitor took, on the host or on the device, whichever is more.", "max", "light", "model"),
    Metric("monitor.asked_share", "", "Share of the time that sampling as it was asked for would take: where it is over max_overhead, samples lie further apart.", "max", "light", "model"),
    Metric("monitor.light_every", "steps", "Steps between light samples, as in force.", "max", "light", "model"),
    Metric("monitor.model_heavy_every", "steps", "Steps between model-heavy samples, as in force.", "max", "light", "model"),
    Metric("monitor.matrix_heavy_every", "steps", "Steps between two measurements of a matrix's spectrum, as in force.", "max", "light", "model"),
    Metric("monitor.turns", "samples", "Light samples in which every module has its turn; blocks, the root and the output head are in each.", "max", "light", "model"),
    Metric("monitor.step_ms", "ms", "Host time of a step, without the monitor's: the mean of the steps since the last sample, or of the last one where every step is sampled.", "max", "light", "model"),
    Metric("monitor.waited_ms", "ms", "Of that, time in which the training's thread did not run: it waited for other ranks, for data, for a disk. Of models on a CPU.", "mean", "light", "model"),
    Metric("monitor.dropped", "frames", "Frames dropped so far because the spool was full or could not be written.", "sum", "light", "model"),
    Metric("monitor.coverage", "", "Share of what could be measured, by subject and metric family, that is.", "first", "light", "model"),
)  # fmt: skip

METRICS: dict[str, Metric] = {metric.name: metric for metric in CATALOGUE}
RATIOS_OVER: dict[str, tuple[str, ...]] = {
    under: tuple(metric.name for metric in CATALOGUE if metric.over == under)
    for under in {metric.over for metric in CATALOGUE if metric.over}
}
"""By metrics that others are divided by: those others."""
WORKED_OUT_OF: dict[str, tuple[str, ...]] = {
    part: tuple(metric.name for metric in CATALOGUE if part in metric.made_of)
    for part in {part for metric in CATALOGUE for part in metric.made_of}
}
"""By metrics that others are worked out of: those others."""


PIECEWISE: frozenset[Placement] = frozenset(("feature_sharded", "sharded_matrix"))
"""Placements that leave a rank a piece of what is measured."""


def combine_of(metric: str, bound: Bound = "exact", placement: Placement = "replicated") -> Combine:
    """How parts of a metric merge; a metric outside the catalogue (a logged scalar) is a mean over ranks.

    Of a norm of which every rank knows that of its piece, the largest is a lower bound, and the root of the sum of
    their squares an upper one: for that bound, squares travel. What a rank's piece of the vocabulary says of log Z from
    above holds for the largest of the ranks.
    """
    known = METRICS.get(metric)
    if bound == "upper" and placement in PIECEWISE and not metric.startswith("output.log_z"):
        return "sum_square"
    if bound == "upper" and metric == "output.log_z":
        return "max"
    return known.combine if known else "mean"
