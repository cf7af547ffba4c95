"""A model as KernelBench has them."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, width: int, depth: int = 2):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return torch.softmax(x, dim=1)


def get_init_inputs():
    return [16]


def get_inputs():
    return [torch.randn(4, 16)]
