"""Bitwise mixing of two int32 tensors."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, a, b):
        return ((a ^ (a >> 3)) & b) | (~b & 255)


def get_inputs():
    return [torch.randint(-(2**31), 2**31 - 1, (999,), dtype=torch.int32), torch.randint(-(2**31), 2**31 - 1, (999,), dtype=torch.int32)]


def get_init_inputs():
    return []
