"""Which elements are larger: a bool output."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return a > b


def get_inputs():
    return [torch.randn(30, 41), torch.randn(30, 41)]


def get_init_inputs():
    return []
