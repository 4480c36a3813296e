"""How a router shares tokens among experts.

Shapes: T tokens, E experts, K experts that a token is sent to.
"""

import math

import torch
from torch import Tensor


def largest_logits(logits_TE: Tensor, experts: int) -> Tensor:
    """(T, K) the experts of the largest logits of each token.

    Raises:
        ValueError: there are fewer experts than that, or none are asked for.
    """
    if not 1 <= experts <= logits_TE.shape[-1]:
        raise ValueError(f"expected to choose 1 to {logits_TE.shape[-1]} experts, got {experts}")
    return logits_TE.topk(experts, dim=-1).indices


def loads(chosen_TK: Tensor, experts: int) -> Tensor:
    """(E,) float32 the share of the tokens that is sent to each expert.

    Args:
        chosen_TK: experts by number; a token names none twice.
        experts: how many there are.

    Returns:
        Zeros where there are no tokens.
    """
    sent_TE = torch.zeros(len(chosen_TK), experts, dtype=torch.float32, device=chosen_TK.device)
    return sent_TE.scatter_(1, chosen_TK.long(), 1.0).sum(0) / max(len(chosen_TK), 1)


def entropy(logits_TE: Tensor) -> Tensor:
    """() float32 mean over tokens of the entropy of the softmax of their logits, over its largest value log E.

    Returns:
        A number from 0 (one expert is certain) to 1 (all are alike). NaN in, NaN out; infinite logits but -inf too.

    Raises:
        ValueError: there are fewer than two experts, of which there is nothing to choose.
    """
    experts = logits_TE.shape[-1]
    if experts < 2:
        raise ValueError(f"expected the logits of two experts or more, got {experts}")
    logs = logits_TE.float().log_softmax(-1)
    of_tokens: Tensor = torch.special.entr(logs.exp()).sum(-1)
    return of_tokens.mean() / math.log(experts)
