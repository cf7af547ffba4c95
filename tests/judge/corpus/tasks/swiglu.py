"""The gate of a Llama block: silu(a) * b."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def forward(self, gate, up):
        return F.silu(gate) * up


def get_inputs():
    return [torch.randn(21, 172), torch.randn(21, 172)]


def get_init_inputs():
    return []
