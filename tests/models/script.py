"""A training script of the usual kind: what it makes depends on its arguments, and main() does not run here."""

import sys

import torch
from torch import nn

width = int(sys.argv[1]) if len(sys.argv) > 1 else 8
model = nn.Sequential(nn.Linear(width, width), nn.Softmax(dim=-1)).eval()


def build():
    return nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU())


def batch():
    return {"input": torch.randn(3, width)}


pair = (torch.randn(3, width),)

if __name__ == "__main__":
    raise SystemExit("training starts")
