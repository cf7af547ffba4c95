"""RMSNorm on bfloat16 activations."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(256, dtype=torch.bfloat16))

    def forward(self, x):
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
        return self.weight * scaled.to(x.dtype)


def get_inputs():
    return [torch.randn(40, 256).bfloat16()]


def get_init_inputs():
    return []
