"""Small networks that are no transformers: a residual network of convolutions, an LSTM, and an MLP."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

CHANNELS, HIDDEN, FEATURES, BYTES = 12, 64, 32, 256


class ConvBlock(nn.Module):
    """Two convolutions with batch norm beside a shortcut (arXiv:1512.03385)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = (nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False) for _ in range(2))
        self.bn1, self.bn2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, height, width) to the same."""
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(x + self.bn2(self.conv2(y)))


class ResNet(nn.Module):
    """A stem, residual blocks, and a linear head on the mean."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(ConvBlock() for _ in range(4))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(CHANNELS, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, 16, 16) to (B, 10)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        out: Tensor = self.head(self.dropout(x.mean((2, 3))))
        return out


class LSTM(nn.Module):
    """Bytes through a recurrent network of two layers."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.embed = nn.Embedding(BYTES, 32)
        self.lstm1, self.lstm2 = nn.LSTM(32, HIDDEN, batch_first=True), nn.LSTM(HIDDEN, HIDDEN, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(HIDDEN, BYTES)

    def forward(self, ids: Tensor) -> Tensor:
        """(B, T) to (B, T, 256)."""
        x, _ = self.lstm1(self.embed(ids))
        x, _ = self.lstm2(self.dropout(x))
        out: Tensor = self.head(x)
        return out


class Perceptron(nn.Module):
    """Four hidden layers without shortcuts."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        sizes = [FEATURES, *[HIDDEN] * 4]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(HIDDEN, 10)

    def forward(self, x: Tensor) -> Tensor:
        """(B, features) to (B, 10)."""
        for layer in self.layers:
            x = self.dropout(torch.relu(layer(x)))
        out: Tensor = self.head(x)
        return out
