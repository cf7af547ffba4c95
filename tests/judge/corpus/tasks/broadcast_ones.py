"""Sizes of 1 on either side: an outer sum."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return a + b


def get_inputs():
    return [torch.randn(1, 37, 1), torch.randn(5, 1, 23)]


def get_init_inputs():
    return []
