"""Softmax along the last dim, fp64."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, -1)


def get_inputs():
    return [torch.randn(10, 201, dtype=torch.float64)]


def get_init_inputs():
    return []
