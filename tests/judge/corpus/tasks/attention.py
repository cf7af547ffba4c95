"""Attention without a mask, fp32."""

import torch
from torch import nn
from torch.nn import functional as F

TARGET = "attention"


class Model(nn.Module):
    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


def get_inputs():
    return [torch.randn(1, 2, 40, 32), torch.randn(1, 2, 50, 32), torch.randn(1, 2, 50, 24)]


def get_init_inputs():
    return []
