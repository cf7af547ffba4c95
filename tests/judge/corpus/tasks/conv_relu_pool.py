"""A 5x5 convolution, ReLU, 2x2 maximum."""

import torch
from torch import nn
from torch.nn import functional as F


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 5)

    def forward(self, x):
        return F.max_pool2d(F.relu(self.conv(x)), 2)


def get_inputs():
    return [torch.randn(2, 3, 20, 18)]


def get_init_inputs():
    return []
