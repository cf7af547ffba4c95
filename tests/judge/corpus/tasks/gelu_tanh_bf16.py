"""The GELU by tanh, in bfloat16."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def forward(self, x):
        return F.gelu(x, approximate="tanh")


def get_inputs():
    return [torch.randn(64, 256).bfloat16()]


def get_init_inputs():
    return []
