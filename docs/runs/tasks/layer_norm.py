"""LayerNorm over the last three dimensions."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.norm = nn.LayerNorm(shape)

    def forward(self, x):
        return self.norm(x)


def get_init_inputs():
    return [(32, 64, 64)]


def get_inputs():
    return [torch.randn(32, 32, 64, 64)]
