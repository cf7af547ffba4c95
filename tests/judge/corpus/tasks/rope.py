"""Rotary positions: pairs of halves turned by tables of angles."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        angle = torch.arange(40)[:, None] / 10000 ** (torch.arange(16) / 16)
        self.register_buffer("cos", angle.cos())
        self.register_buffer("sin", angle.sin())

    def forward(self, x):
        a, b = x.chunk(2, -1)
        return torch.cat([a * self.cos - b * self.sin, b * self.cos + a * self.sin], -1)


def get_inputs():
    return [torch.randn(2, 3, 40, 32)]


def get_init_inputs():
    return []
