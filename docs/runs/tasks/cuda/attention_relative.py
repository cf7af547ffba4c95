"""Attention whose score is shifted by the relative position of query and key."""

import math

import torch
from torch import nn


class Model(nn.Module):
    def forward(self, query, key, value):
        length = query.shape[-2]
        score = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
        q_idx = torch.arange(length, device=query.device)[:, None]
        kv_idx = torch.arange(length, device=query.device)[None, :]
        score = score + (q_idx - kv_idx)
        return torch.softmax(score, dim=-1) @ value


def get_init_inputs():
    return []


def get_inputs():
    return [torch.randn(2, 16, 2048, 64, dtype=torch.float16) for _ in range(3)]
