"""What the parts of a model are: attention by its class or by the projections it owns."""

import pytest
import torch
from torch import nn

from internist.model.roles import is_attention


def owning(*names, **parameters):
    """A module whose class is named after nothing, with linear layers of these names."""
    module = nn.Module()
    for name in names:
        setattr(module, name, nn.Linear(2, 2))
    for name, value in parameters.items():
        setattr(module, name, nn.Parameter(value))
    return module


@pytest.mark.parametrize("name", ["SelfAttn", "CausalSelfAttention", "MHA", "FlashMHA", "MultiHead", "GQAttention"])
def test_a_class_named_after_attention_is_attention(name):
    assert is_attention(type(name, (nn.Module,), {})())


@pytest.mark.parametrize(
    "names", [("q_proj", "k_proj"), ("query", "key", "value"), ("wq", "wk"), ("to_qkv",), ("c_attn",)]
)
def test_a_module_that_owns_queries_and_keys_is_attention(names):
    assert is_attention(owning(*names))


def test_weights_of_its_own_count_as_projections():
    assert is_attention(owning(wq=torch.ones(2, 2), wk=torch.ones(2, 2)))


@pytest.mark.parametrize("names", [(), ("gate", "up"), ("q_proj",), ("key", "value"), ("router", "experts")])
def test_other_modules_are_not(names):
    assert not is_attention(owning(*names))
