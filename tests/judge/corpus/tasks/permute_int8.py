"""Channels last of an int8 image."""

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1).contiguous()


def get_inputs():
    return [torch.randint(-128, 128, (2, 5, 12, 9), dtype=torch.int8)]


def get_init_inputs():
    return []
