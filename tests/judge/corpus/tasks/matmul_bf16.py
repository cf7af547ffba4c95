"""A product of bfloat16 matrices."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return a @ b


def get_inputs():
    return [torch.randn(48, 256).bfloat16(), torch.randn(256, 40).bfloat16()]


def get_init_inputs():
    return []
