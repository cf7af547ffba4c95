"""ReLU and a scale over NaN, infinities, signed zeros and subnormal numbers."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return torch.relu(x) * 0.5


def get_inputs():
    x = torch.randn(31, 37)
    x[0, :6] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40])
    x[5] = torch.linspace(-1e-38, 1e-38, 37)
    return [x]


def get_init_inputs():
    return []
