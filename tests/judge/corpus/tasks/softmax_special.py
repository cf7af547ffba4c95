"""Softmax of rows with NaN, with infinities and of nothing but minus infinity."""

import torch
from torch import nn

TARGET = "softmax"


class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, -1)


def get_inputs():
    x = torch.randn(12, 50)
    x[0, 3], x[1, 4], x[2, :25], x[3] = float("nan"), float("inf"), -float("inf"), -float("inf")
    return [x]


def get_init_inputs():
    return []
