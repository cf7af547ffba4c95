"""Small attention modules that spell their scores in the ways that models do, for capture and patch tests.

Each takes x of shape (batch, length, width) and gives the same shape. None knows of kgen.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

WIDTH, HEADS, LENGTH, BATCH = 32, 4, 24, 2


class Base(nn.Module):
    """Projections, and a forward that leaves the scores to `modify`."""

    def __init__(self, width: int = WIDTH, heads: int = HEADS, length: int = LENGTH):
        super().__init__()
        self.heads, self.length = heads, length
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.drop = nn.Dropout(0.1)

    def split(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        b, t, c = x.shape
        q, k, v = self.qkv(x).split(c, dim=2)
        return tuple(y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in (q, k, v))

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return scores

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.split(x)
        weights = self.drop(torch.softmax(self.modify(self.scores(q, k), x), dim=-1))
        return self.out((weights @ v).transpose(1, 2).reshape(b, t, c))


class Plain(Base):
    pass


class RelativeTable(Base):
    """A learned bias looked up by the distance, as in Swin and many encoders."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(2 * self.length - 1, self.heads)

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        position = torch.arange(t, device=x.device)
        distance = position[:, None] - position[None, :] + self.length - 1
        bias = self.table(distance).permute(2, 0, 1).unsqueeze(0)
        mask = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        return (scores + bias).masked_fill(~mask, float("-inf"))


class Alibi(Base):
    def __init__(self) -> None:
        super().__init__()
        slopes = torch.tensor([2.0 ** (-8.0 * (i + 1) / self.heads) for i in range(self.heads)])
        self.register_buffer("slopes", slopes.view(1, -1, 1, 1))

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        i = torch.arange(t, device=x.device)
        bias = -self.slopes * (i.view(1, 1, t, 1) - i.view(1, 1, 1, t)).abs()
        return scores + bias


class Causal(Base):
    """nanoGPT's spelling: a buffer of ones below the diagonal, cut to length."""

    def __init__(self) -> None:
        super().__init__()
        n = 2 * self.length
        self.register_buffer("bias", torch.tril(torch.ones(n, n)).view(1, 1, n, n))

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        return scores.masked_fill(self.bias[:, :, :t, :t] == 0, float("-inf"))


class AdditiveCausal(Base):
    """An additive mask of a very negative number, made with triu."""

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        return scores + torch.full((t, t), torch.finfo(x.dtype).min).triu(1)


class Softcap(Base):
    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return 20.0 * torch.tanh(scores / 20.0)


class Window(Base):
    """A band: causal and at most 8 back."""

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        band = torch.tril(torch.ones(t, t)) * torch.triu(torch.ones(t, t), diagonal=-7)
        return torch.where(band == 1, scores, float("-inf"))


class Bucketed(Base):
    """T5's buckets: near distances one each, far ones by logarithm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(8, self.heads)

    def bucket(self, distance: torch.Tensor) -> torch.Tensor:
        sign = (distance > 0).to(torch.long) * 4
        distance = distance.abs()
        large = 2 + (torch.log(distance.float() / 2) / math.log(8 / 2) * 2).to(torch.long)
        return sign + torch.where(distance < 2, distance, torch.min(large, torch.full_like(large, 3)))

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        i = torch.arange(x.shape[1], device=x.device)
        bias = self.table(self.bucket(i[None, :] - i[:, None]))
        return scores + bias.permute([2, 0, 1]).unsqueeze(0)

    def scores(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.matmul(q, k.transpose(3, 2))


class ScaledQuery(Base):
    """OPT's spelling: the query scaled first, batch and heads merged, bmm."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        d = c // self.heads
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        merge = lambda y: y.view(b, t, self.heads, d).transpose(1, 2).contiguous().view(b * self.heads, t, d)  # noqa: E731
        q, k, v = merge(q * d**-0.5), merge(k), merge(v)
        scores = torch.bmm(q, k.transpose(1, 2)).view(b, self.heads, t, t)
        mask = torch.full((t, t), float("-inf"), device=x.device)
        i = torch.arange(t, device=x.device)
        mask = mask.masked_fill(i < (i + 1).view(t, 1), 0)
        weights = F.softmax((scores + mask).view(b * self.heads, t, t), dim=-1)
        y = torch.bmm(F.dropout(weights, 0.1, self.training), v)
        return self.out(y.view(b, self.heads, t, d).transpose(1, 2).reshape(b, t, c))


class Einsum(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1) for y in self.qkv(x).chunk(3, dim=-1))
        scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * (c // self.heads) ** -0.5
        y = torch.einsum("bhqk,bkhd->bqhd", scores.softmax(-1), v)
        return self.out(y.reshape(b, t, c))


class Grouped(Base):
    """Two key heads for four query heads, repeated by expand (Llama) or repeat_interleave."""

    def __init__(self, interleave: bool = False) -> None:
        super().__init__()
        self.kv = nn.Linear(WIDTH, WIDTH)
        self.interleave = interleave

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        d, groups = c // self.heads, 2
        q = self.qkv(x)[..., :c].view(b, t, self.heads, d).transpose(1, 2)
        k, v = self.kv(x).chunk(2, dim=-1)
        k, v = (y.view(b, t, groups, d).transpose(1, 2) for y in (k, v))
        n = self.heads // groups
        if self.interleave:
            k, v = (y.repeat_interleave(n, dim=1) for y in (k, v))
        else:
            k, v = (y[:, :, None].expand(b, groups, n, t, d).reshape(b, self.heads, t, d) for y in (k, v))
        scores = torch.matmul(q, k.transpose(2, 3)) / math.sqrt(d)
        scores = scores + torch.triu(torch.full((t, t), float("-inf")), diagonal=1)
        weights = F.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        return self.out((weights @ v).transpose(1, 2).contiguous().view(b, t, c))


class Sdpa(Base):
    def __init__(self, is_causal: bool = False) -> None:
        super().__init__()
        self.is_causal = is_causal

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.split(x)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class SdpaMask(Base):
    def __init__(self, additive: bool = False) -> None:
        super().__init__()
        self.additive = additive

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        i = torch.arange(t, device=x.device)
        mask = (i[:, None] >= i) & (i[:, None] - i < 6)
        if self.additive:
            mask = torch.zeros(t, t).masked_fill(~mask, float("-inf"))
        q, k, v = self.split(x)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3)
        return self.out(y.transpose(1, 2).reshape(x.shape))


class Documents(Base):
    """Attention within documents, by a tensor of document ids: forward(x, ids)."""

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = self.split(x)
        scores = self.scores(q, k)
        same = ids[:, None, :, None] == ids[:, None, None, :]
        causal = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        scores = scores.masked_fill(~(same & causal), float("-inf"))
        return self.out((torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(b, t, c))


class Padded(Base):
    """BERT's spelling: forward(x, mask) with 1 for tokens and 0 for padding, made additive."""

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        extended = (1.0 - mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        q, k, v = self.split(x)
        weights = self.drop(nn.functional.softmax(self.scores(q, k) + extended, dim=-1))
        y = torch.matmul(weights, v).permute(0, 2, 1, 3).contiguous()
        return self.out(y.view(*y.shape[:-2], -1))


class Computed(Base):
    """A bias that layers compute from the distance, as in Swin v2."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(1, 8), nn.ReLU(), nn.Linear(8, self.heads))

    def modify(self, scores: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        i = torch.arange(x.shape[1], device=x.device, dtype=x.dtype)
        bias = 4 * torch.sigmoid(self.mlp((i[:, None] - i[None, :])[..., None]))
        return scores + bias.permute(2, 0, 1)


class Classifier(nn.Module):
    """No attention, a softmax at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.softmax(self.linear(x.mean(1)), dim=1)


def example(module: nn.Module, batch: int = BATCH, length: int = LENGTH) -> tuple[torch.Tensor, ...]:
    """Inputs that a module takes."""
    x = torch.randn(batch, length, WIDTH)
    if isinstance(module, Documents):
        return x, torch.arange(length).expand(batch, length) // 5 + torch.arange(batch)[:, None]
    if isinstance(module, Padded):
        mask = torch.ones(batch, length, dtype=torch.long)
        mask[0, length - 4 :] = 0
        return x, mask
    return (x,)


VARIANTS = {
    "plain": Plain, "relative_table": RelativeTable, "alibi": Alibi, "causal": Causal,
    "additive_causal": AdditiveCausal, "softcap": Softcap, "window": Window, "bucketed": Bucketed,
    "scaled_query": ScaledQuery, "einsum": Einsum, "grouped_expand": Grouped,
    "grouped_interleave": lambda: Grouped(True), "sdpa": Sdpa, "sdpa_causal": lambda: Sdpa(True),
    "sdpa_mask": SdpaMask, "sdpa_bias": lambda: SdpaMask(True), "documents": Documents, "padded": Padded,
    "computed": Computed,
}  # fmt: skip
