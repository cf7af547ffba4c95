"""All elements of a tensor in one sum."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return x.sum()


def get_inputs():
    return [torch.randn(100, 1000)]


def get_init_inputs():
    return []
