"""A batch of products whose second matrix is a transposed view."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return torch.bmm(a, b)


def get_inputs():
    return [torch.randn(4, 20, 48), torch.randn(4, 24, 48).transpose(1, 2)]


def get_init_inputs():
    return []
