"""The short causal convolution of state-space models, one filter a channel."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(24, 24, 4, groups=24, padding=3)

    def forward(self, x):
        return self.conv(x)[..., : x.shape[-1]]


def get_inputs():
    return [torch.randn(2, 24, 50)]


def get_init_inputs():
    return []
