"""Rows of a bfloat16 table."""

import torch
from torch import nn


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(200, 64, dtype=torch.bfloat16)

    def forward(self, index):
        return self.table(index)


def get_inputs():
    return [torch.randint(0, 200, (7, 15))]


def get_init_inputs():
    return []
