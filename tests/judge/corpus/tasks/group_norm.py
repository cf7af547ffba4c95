"""Four groups of eight channels over an image."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.GroupNorm(4, 32)

    def forward(self, x):
        return self.norm(x)


def get_inputs():
    return [torch.randn(3, 32, 7, 9)]


def get_init_inputs():
    return []
