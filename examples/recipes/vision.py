"""Images: a small vision transformer as timm builds them; patches are its tokens, and attention is measured."""

import torch
from torch import Tensor, nn
from torch.nn import functional

import internist


class Block(nn.Module):
    """Attention and a multilayer perceptron, each on the residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(16), nn.LayerNorm(16)
        self.qkv, self.proj = nn.Linear(16, 48), nn.Linear(16, 16)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))

    def forward(self, x: Tensor) -> Tensor:
        """The stream after the block."""
        q, k, v = self.qkv(self.norm1(x)).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches of an image, two blocks, and the class of what it shows."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, 16, kernel_size=4, stride=4)
        self.blocks = nn.ModuleList(Block() for _ in range(2))
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of the classes."""
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(1))


model = VisionTransformer()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

internist.watch(model, optimizer)

for _ in range(12):
    images, classes = torch.randn(4, 3, 16, 16), torch.randint(0, 10, (4,))
    loss = functional.cross_entropy(model(images), classes)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    internist.log(loss=loss)
