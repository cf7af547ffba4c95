"""One step of AdamW: four inputs, three outputs."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, p, g, m, v):
        m = 0.9 * m + 0.1 * g
        v = 0.999 * v + 0.001 * g * g
        return p * 0.999 - 1e-3 * (m / 0.1) / ((v / 0.001).sqrt() + 1e-8), m, v


def get_inputs():
    return [torch.randn(3000), torch.randn(3000), torch.randn(3000), torch.rand(3000)]


def get_init_inputs():
    return []
