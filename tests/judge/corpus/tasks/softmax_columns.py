"""Softmax along a middle dim."""

import torch
from torch import nn

TARGET = "softmax"


class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, 1)


def get_inputs():
    return [torch.randn(3, 70, 21)]


def get_init_inputs():
    return []
