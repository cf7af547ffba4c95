"""SiLU in half precision."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def forward(self, x):
        return F.silu(x)


def get_inputs():
    return [torch.randn(48, 130).half()]


def get_init_inputs():
    return []
