"""A bool mask decides what is kept."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x, mask):
        return x.masked_fill(mask, -1.0)


def get_inputs():
    return [torch.randn(40, 50), torch.rand(40, 50) > 0.5]


def get_init_inputs():
    return []
