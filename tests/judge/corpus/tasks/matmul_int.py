"""A product of int32 matrices, exact or wrong."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return (a[:, :, None] * b).sum(1, dtype=torch.int32)  # torch has no `a @ b` of integers on a GPU


def get_inputs():
    return [torch.randint(-50, 50, (24, 37), dtype=torch.int32), torch.randint(-50, 50, (37, 19), dtype=torch.int32)]


def get_init_inputs():
    return []
