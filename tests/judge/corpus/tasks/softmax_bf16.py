"""Softmax along the last dim, bfloat16."""

import torch
from torch import nn

TARGET = "softmax"


class Model(nn.Module):
    def forward(self, x):
        return torch.softmax(x, -1)


def get_inputs():
    return [torch.randn(20, 515).bfloat16()]


def get_init_inputs():
    return []
