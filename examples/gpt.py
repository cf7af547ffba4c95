"""A small GPT in plain torch, with attention written out: matmul, a relative-position bias, softmax.

Every head has a learned slope and adds slope * (key position - query position) to its scores, so near
tokens weigh more. The model gives, for each position, the probabilities of the next token.
"""

import math

import torch
from torch import nn

CONTEXT = 1024
VOCABULARY = 4096
WIDTH = 512
HEADS = 8
LAYERS = 3


class RelativeAttention(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.head_width = width // heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.slopes = nn.Parameter(2.0 ** (-8.0 * torch.arange(1, heads + 1) / heads))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        q = q.view(batch, length, self.heads, self.head_width).transpose(1, 2)
        k = k.view(batch, length, self.heads, self.head_width).transpose(1, 2)
        v = v.view(batch, length, self.heads, self.head_width).transpose(1, 2)

        position = torch.arange(length, device=x.device)
        distance = position[None, :] - position[:, None]  # key minus query
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.head_width)
        scores = scores + self.slopes[:, None, None] * distance
        scores = scores.masked_fill(distance > 0, float("-inf"))
        y = torch.matmul(torch.softmax(scores, dim=-1), v)

        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = RelativeAttention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(4 * width, width),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Model(nn.Module):
    def __init__(self, vocabulary: int, width: int, heads: int, layers: int):
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return torch.softmax(self.head(self.norm(x)), dim=-1)


def get_init_inputs() -> list:
    return [VOCABULARY, WIDTH, HEADS, LAYERS]


def get_inputs() -> list:
    return [torch.randint(0, VOCABULARY, (1, CONTEXT))]
