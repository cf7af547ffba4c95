"""Convolution, ReLU and max pooling: the first layers of an image network."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self, inside, outside, kernel):
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride=2, padding=3)
        self.pool = nn.MaxPool2d(3, stride=2)

    def forward(self, x):
        return self.pool(torch.relu(self.conv(x)))


def get_init_inputs():
    return [3, 32, 7]


def get_inputs():
    return [torch.randn(4, 3, 224, 224)]
