"""Causal attention, fp32."""

import torch
from torch import nn
from torch.nn import functional as F

TARGET = "attention"


class Model(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def get_inputs():
    return [torch.randn(1, 2, 45, 32) for _ in range(3)]


def get_init_inputs():
    return []
