"""Which elements are finite: NaN and infinities among the input."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return torch.isfinite(x)


def get_inputs():
    x = torch.randn(20, 33)
    x[3, 5:9], x[7, 0], x[8, 32] = float("nan"), float("inf"), -float("inf")
    return [x]


def get_init_inputs():
    return []
