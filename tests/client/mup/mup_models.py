"""Small models of every build that a plan has to read. Not a test."""

import torch
from torch import nn
from torch.nn import functional

VOCABULARY = 17


class Conv1D(nn.Module):
    """As in Hugging Face's GPT-2: the weight is (in, out)."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf)), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return x @ self.weight + self.bias


class Attention(nn.Module):
    """Causal attention with separate projections; `keys` heads of keys and values."""

    def __init__(self, width, heads=4, keys=4):
        super().__init__()
        self.heads, self.keys, self.size = heads, keys, width // heads
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, keys * self.size, bias=False)
        self.v_proj = nn.Linear(width, keys * self.size, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)

    def forward(self, x):
        batch, tokens, width = x.shape
        q = self.q_proj(x).view(batch, tokens, self.heads, self.size).transpose(1, 2)
        k = self.k_proj(x).view(batch, tokens, self.keys, self.size).transpose(1, 2)
        v = self.v_proj(x).view(batch, tokens, self.keys, self.size).transpose(1, 2)
        y = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.keys != self.heads, scale=1 / self.size
        )
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, width))


class SwiGlu(nn.Module):
    """Named and ordered as in Meta's Llama: w2 comes back, w3 is registered last."""

    def __init__(self, width):
        super().__init__()
        self.w1 = nn.Linear(width, 3 * width, bias=False)
        self.w2 = nn.Linear(3 * width, width, bias=False)
        self.w3 = nn.Linear(width, 3 * width, bias=False)

    def forward(self, x):
        return self.w2(functional.silu(self.w1(x)) * self.w3(x))


class Experts(nn.Module):
    """A stack of experts, all of them used; (experts, in, out) where `in_out`."""

    def __init__(self, width, count=3, *, in_out=False):
        super().__init__()
        self.in_out = in_out
        up, down = (count, width, 2 * width), (count, 2 * width, width)
        self.up_proj = nn.Parameter(torch.randn(up if in_out else down) * 0.1)
        self.down_proj = nn.Parameter(torch.randn(down if in_out else up) * 0.1)

    def forward(self, x, weights):
        up, down = (self.up_proj, self.down_proj) if self.in_out else (self.up_proj.mT, self.down_proj.mT)
        y = functional.relu(torch.einsum("bti,eij->betj", x, up))
        return torch.einsum("betj,ejo,bte->bto", y, down, weights)


class Mixture(nn.Module):
    def __init__(self, width, *, in_out=False):
        super().__init__()
        self.gate = nn.Linear(width, 3, bias=False)
        self.experts = Experts(width, in_out=in_out)

    def forward(self, x):
        return self.experts(x, self.gate(x).softmax(-1))


class Block(nn.Module):
    """Pre-norm, with norms registered last as in Hugging Face's Llama."""

    def __init__(self, width, keys=4, mlp=SwiGlu):
        super().__init__()
        self.self_attn = Attention(width, keys=keys)
        self.mlp = mlp(width)
        self.input_layernorm = nn.RMSNorm(width)
        self.post_attention_layernorm = nn.RMSNorm(width)

    def forward(self, x):
        x = x + self.self_attn(self.input_layernorm(x))
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """A small Llama, with what is asked for of GQA, experts and tying."""

    def __init__(self, width=32, depth=2, *, keys=4, mlp=SwiGlu, tied=False):
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(Block(width, keys, mlp) for _ in range(depth))
        self.norm = nn.RMSNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        if tied:
            self.lm_head.weight = self.embed_tokens.weight

    def forward(self, ids):
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(self.norm(x))


class Gpt2Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * width, width), Conv1D(width, width)

    def forward(self, x):
        q, k, v = (part.unsqueeze(1) for part in self.c_attn(x).chunk(3, -1))
        return (self.c_proj(functional.scaled_dot_product_attention(q, k, v, is_causal=True).squeeze(1)), None)


class Gpt2Mlp(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c_fc, self.c_proj = Conv1D(4 * width, width), Conv1D(width, 4 * width)

    def forward(self, x):
        return self.c_proj(functional.gelu(self.c_fc(x)))


class Gpt2Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(width), Gpt2Attention(width)
        self.ln_2, self.mlp = nn.LayerNorm(width), Gpt2Mlp(width)

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))[0]
        return x + self.mlp(self.ln_2(x))


class Gpt2(nn.Module):
    """As Hugging Face builds GPT-2: Conv1D, fused projections, a head that is tied."""

    def __init__(self, width=32, depth=2):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(VOCABULARY, width), nn.Embedding(16, width)
        self.h = nn.ModuleList(Gpt2Block(width) for _ in range(depth))
        self.ln_f = nn.LayerNorm(width)
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids):
        x = self.wte(ids) + self.wpe(torch.arange(ids.shape[1]))
        for block in self.h:
            x = block(x)
        return self.lm_head(self.ln_f(x))


class ResidualMlp(nn.Module):
    """Numbers in and out, and branches of `k` linear layers without norms."""

    def __init__(self, width=32, depth=4, k=2, inputs=8, outputs=3):
        super().__init__()
        self.enter = nn.Linear(inputs, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(*(layer for _ in range(k) for layer in (nn.ReLU(), nn.Linear(width, width))))
            for _ in range(depth)
        )
        self.leave = nn.Linear(width, outputs)

    def forward(self, x):
        x = self.enter(x)
        for block in self.blocks:
            x = x + block(x)
        return self.leave(x)


def flat_mlp(width=32, inputs=8, outputs=3):
    """No residual stream: linear layers one after another."""
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


class TorchEncoder(nn.Module):
    """torch's own layers: attention that reads its output layer's weight, linear layers directly in the block."""

    def __init__(self, width=32, depth=2):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 4, 2 * width, dropout=0.0, batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


class BertBlock(nn.Module):
    """Its feed-forward is two children, of which only the second comes back to the stream."""

    def __init__(self, width):
        super().__init__()
        inner = nn.ModuleDict({name: nn.Linear(width, width) for name in ("query", "key", "value")})
        outer = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": nn.LayerNorm(width)})
        self.attention = nn.ModuleDict({"self": inner, "output": outer})
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = nn.ModuleDict({"dense": nn.Linear(4 * width, width), "LayerNorm": nn.LayerNorm(width)})


class SandwichBlock(nn.Module):
    """A norm before and after each branch, as in Gemma 2."""

    def __init__(self, width):
        super().__init__()
        self.self_attn, self.mlp = Attention(width), SwiGlu(width)
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)
        self.pre_feedforward_layernorm, self.post_feedforward_layernorm = nn.RMSNorm(width), nn.RMSNorm(width)

    def forward(self, x):
        x = x + self.post_attention_layernorm(self.self_attn(self.input_layernorm(x)))
        return x + self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(x)))


class Stack(nn.Module):
    """An embedding, blocks of a class, and a head."""

    def __init__(self, block, width=32, depth=4):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, width)
        self.layers = nn.ModuleList(block(width) for _ in range(depth))
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def ids(batch=2, tokens=8, seed=0):
    """(batch, tokens) of the vocabulary."""
    return torch.randint(VOCABULARY, (batch, tokens), generator=torch.Generator().manual_seed(seed))
