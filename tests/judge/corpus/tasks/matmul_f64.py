"""A product of fp64 matrices, odd sizes."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return a @ b


def get_inputs():
    return [torch.randn(33, 61, dtype=torch.float64), torch.randn(61, 29, dtype=torch.float64)]


def get_init_inputs():
    return []
