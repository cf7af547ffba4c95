"""Attention as known architectures write it, cut to its core: Swin, GPT-NeoX, Transformer-XL, decoding, and parts
of torch itself. None knows of kgen."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn


class Swin(nn.Module):
    """Cosine attention over windows, a table of relative positions in two dims, masks between regions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.table = nn.Parameter(torch.randn(49, 4))
        self.scale = nn.Parameter(torch.randn(4, 1, 1))
        grid = torch.stack(torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
        relative = (grid[:, :, None] - grid[:, None, :]).permute(1, 2, 0) + 3
        self.register_buffer("index", relative[..., 0] * 7 + relative[..., 1])
        mask = torch.zeros(3, 16, 16)
        mask[1, :8, 8:] = mask[1, 8:, :8] = mask[2, 3:, :3] = -100.0
        self.register_buffer("mask", mask)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, 4, c // 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        scores = scores * torch.clamp(self.scale, max=math.log(100.0)).exp()
        bias = self.table[self.index.view(-1)].view(n, n, -1).permute(2, 0, 1).contiguous()
        scores = scores + bias.unsqueeze(0)
        scores = scores.view(b // 3, 3, 4, n, n) + self.mask.unsqueeze(1).unsqueeze(0)
        weights = scores.view(-1, 4, n, n).softmax(dim=-1)
        return (weights @ v).transpose(1, 2).reshape(b, n, c)


class NeoX(nn.Module):
    """baddbmm, a causal buffer cut to length, where with the lowest finite number."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        keep = torch.tril(torch.ones(64, 64, dtype=torch.bool))
        self.register_buffer("bias", keep.view(1, 1, 64, 64), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 4, 24).permute(0, 2, 1, 3).chunk(3, -1)
        q, k = q.reshape(b * 4, n, 8), k.reshape(b * 4, n, 8)
        scores = torch.zeros(b * 4, n, n)
        scores = torch.baddbmm(scores, q, k.transpose(1, 2), beta=1.0, alpha=8**-0.5).view(b, 4, n, n)
        lowest = torch.tensor(torch.finfo(scores.dtype).min, dtype=scores.dtype)
        scores = torch.where(self.bias[:, :, :n, :n], scores, lowest)
        return (scores.softmax(-1).to(v.dtype) @ v).permute(0, 2, 1, 3).reshape(b, n, c)


class TransformerXL(nn.Module):
    """Two products are added before the softmax; the second is shifted by padding and reshaping."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.r = nn.Linear(32, 96), nn.Linear(32, 32)
        self.u, self.v = nn.Parameter(torch.randn(4, 8)), nn.Parameter(torch.randn(4, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, n, c = x.shape
        q, k, v = (y.view(b, n, 4, 8) for y in self.qkv(x).chunk(3, -1))
        r = self.r(torch.linspace(-1, 1, (2 * n - 1) * 32).view(-1, 32)).view(-1, 4, 8)
        content = torch.einsum("bihd,bjhd->bhij", q + self.u, k)
        position = torch.einsum("bihd,jhd->bhij", q + self.v, r)
        position = F.pad(position, (1, 0)).view(b, 4, 2 * n, n)[:, :, 1:].view(b, 4, n, 2 * n - 1)[..., :n]
        weights = ((content + position) / 8**0.5).softmax(-1)
        return torch.einsum("bhij,bjhd->bihd", weights, v).reshape(b, n, c)


class Decode(nn.Module):
    """One new token against a cache: forward(x, k, v, position), position by sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.q = nn.Linear(32, 32)

    def forward(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        b = x.shape[0]
        q = self.q(x).view(b, 1, 4, 8).transpose(1, 2)
        scores = q @ k.mT * 8**-0.5
        slot = torch.arange(k.shape[2])[None, None, None]
        scores = scores.masked_fill(slot > position[:, None, None, None], float("-inf"))
        return (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, 1, 32)


class WithWeights(nn.Module):
    """Gives its attention weights beside the result."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v = (y.unflatten(-1, (4, 8)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        weights = (q @ k.mT / 8**0.5).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2), weights


class DropsWeights(nn.Module):
    """A layer that uses WithWeights and drops the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = WithWeights()
        self.norm = nn.LayerNorm(32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.attention(x)[0])


class NoWeights(nn.Module):
    """torch's own attention, told not to give its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(32, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x, x, x, need_weights=False)[0]


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)


class Decoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(32, 4, 64, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, x.flip(1))


def inputs_of(module: nn.Module) -> tuple[torch.Tensor, ...]:
    if isinstance(module, Swin):
        return (torch.randn(6, 16, 32),)
    if isinstance(module, Decode):
        return torch.randn(2, 1, 32), torch.randn(2, 4, 20, 8), torch.randn(2, 4, 20, 8), torch.tensor([3, 19])
    return (torch.randn(2, 12, 32),)


ARCHITECTURES = {
    "swin": Swin, "neox": NeoX, "transformer_xl": TransformerXL, "decode": Decode, "drops_weights": DropsWeights,
    "no_weights": NoWeights, "encoder": encoder, "decoder": Decoder,
}  # fmt: skip
