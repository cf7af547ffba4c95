"""Grouped queries in bfloat16."""

import torch
from torch import nn
from torch.nn import functional as F

TARGET = "attention"


class Model(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, enable_gqa=True)


def get_inputs():
    return [torch.randn(1, n, 33, 32).bfloat16() for n in (4, 2, 2)]


def get_init_inputs():
    return []
