"""A matrix times a vector: long rows."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, x):
        return a @ x


def get_inputs():
    return [torch.randn(64, 3000), torch.randn(3000)]


def get_init_inputs():
    return []
