"""A compact transformer of both families, plain PyTorch: what the measured training and serving steps run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

Tensor = Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Sizes and choices of a model. `llama`: RMSNorm, gated SiLU, no biases; `gpt`: LayerNorm, GELU, biases, positions.

    `fused`: one projection for queries, keys and values and one for gate and up, split afterwards.
    """

    style: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    seq: int
    fused: bool = True
    rotary: bool = False
    tied: bool = False
    norm: str = "fused"
    degree: int = 1

    @classmethod
    def of(cls, key: Mapping[str, Any], degree: int = 1) -> Architecture:
        """From the columns of a row; heads and widths divided by the tensor-parallel `degree`."""
        sizes: dict[str, Any] = {
            c: int(key[c]) for c in ("hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab", "seq")
        }
        flags: dict[str, Any] = {c: bool(key[c]) for c in ("fused", "rotary", "tied") if c in key}
        return cls(style=str(key["style"]), norm=str(key.get("norm", "fused")), degree=degree, **sizes, **flags)


class RMSNormComposite(nn.Module):  # type: ignore[misc, unused-ignore]
    """RMSNorm as Llama's reference code writes it: in fp32, several kernels."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(hidden))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)).to(x.dtype) * self.weight


def make_norm(a: Architecture) -> Any:
    """The normalisation of a block."""
    if a.style == "gpt":
        return nn.LayerNorm(a.hidden)
    return RMSNormComposite(a.hidden) if a.norm == "composite" else nn.RMSNorm(a.hidden, eps=1e-5)


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding, halves rotated, as Hugging Face's models do. x: (batch, heads, length, head_dim)."""
    first, second = x.chunk(2, -1)
    return x * cosine + torch.cat((-second, first), -1) * sine


class NarrowLinear(nn.Module):  # type: ignore[misc, unused-ignore]
    """A linear layer without bias in fp8: its input is cast by a kernel of its own, with one scale a tensor, known before."""

    def __init__(self, wide: Any) -> None:
        super().__init__()
        narrow = wide.weight.detach().to(torch.float8_e4m3fn)
        self.weight = nn.Parameter(narrow, requires_grad=False)
        self.register_buffer("one", torch.ones((), device=narrow.device))

    def forward(self, x: Tensor) -> Tensor:
        narrow = x.reshape(-1, x.shape[-1]).to(torch.float8_e4m3fn)
        product = torch._scaled_mm(
            narrow, self.weight.t(), scale_a=self.one, scale_b=self.one, out_dtype=torch.bfloat16, use_fast_accum=True
        )
        return product.view(*x.shape[:-1], -1)


def narrow(model: Any) -> None:
    """Put the linear layers of the blocks into fp8; embedding, norms and head stay as they are."""
    for block in model.blocks:
        for part in (block.attention, block.feed_forward):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, NarrowLinear(child))


class Attention(nn.Module):  # type: ignore[misc, unused-ignore]
    """Causal self-attention with grouped KV heads."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        bias = a.style == "gpt"
        self.heads, self.kv_heads = a.heads // a.degree, max(1, a.kv_heads // a.degree)
        self.widths = [self.heads * a.head_dim, self.kv_heads * a.head_dim, self.kv_heads * a.head_dim]
        if a.fused:
            self.qkv = nn.Linear(a.hidden, sum(self.widths), bias=bias)
        else:
            self.q, self.k, self.v = (nn.Linear(a.hidden, width, bias=bias) for width in self.widths)
        self.out = nn.Linear(self.widths[0], a.hidden, bias=bias)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys, values as (batch, length, heads, head_dim)."""
        parts = self.qkv(x).split(self.widths, -1) if self.a.fused else (self.q(x), self.k(x), self.v(x))
        batch, length = parts[0].shape[:2]
        q, k, v = (t.view(batch, length, -1, self.a.head_dim) for t in parts)
        return q, k, v

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        q, k, v = (t.transpose(1, 2) for t in self.project(x))
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        grouped = self.heads != self.kv_heads
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        batch, _, length, _ = mixed.shape
        return self.out(mixed.transpose(1, 2).reshape(batch, length, -1))


class FeedForward(nn.Module):  # type: ignore[misc, unused-ignore]
    """Gated SiLU, or GELU."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        ffn, bias = a.ffn // a.degree, a.style == "gpt"
        if a.style == "gpt":
            self.up = nn.Linear(a.hidden, ffn, bias=bias)
        elif a.fused:
            self.up = nn.Linear(a.hidden, 2 * ffn, bias=False)
        else:
            self.gate, self.up = nn.Linear(a.hidden, ffn, bias=False), nn.Linear(a.hidden, ffn, bias=False)
        self.down = nn.Linear(ffn, a.hidden, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.a.style == "gpt":
            return self.down(functional.gelu(self.up(x)))
        gate, up = self.up(x).chunk(2, -1) if self.a.fused else (self.gate(x), self.up(x))
        return self.down(functional.silu(gate) * up)


class Block(nn.Module):  # type: ignore[misc, unused-ignore]
    """One layer: attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.attention_norm, self.attention = make_norm(a), Attention(a)
        self.feed_forward_norm, self.feed_forward = make_norm(a), FeedForward(a)

    def forward(self, x: Tensor, rope: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rope)
        return x + self.feed_forward(self.feed_forward_norm(x))


class Transformer(nn.Module):  # type: ignore[misc, unused-ignore]
    """Embedding, blocks, norm, head: tokens (batch, length) to logits (batch, length, vocab)."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        self.a = a
        self.embedding = nn.Embedding(a.vocab, a.hidden)
        self.positions = nn.Embedding(a.seq, a.hidden) if a.style == "gpt" else None
        self.blocks = nn.ModuleList(Block(a) for _ in range(a.layers))
        self.norm = make_norm(a)
        self.head = nn.Linear(a.hidden, a.vocab, bias=False)
        if a.tied:
            self.head.weight = self.embedding.weight
        self.recompute = False
        self.rope: Tensor | None = None

    def initialise(self) -> None:
        """Small random weights."""
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, std=0.02)
        if self.a.rotary:
            parameter = self.norm.weight
            angles = torch.arange(self.a.seq, device=parameter.device)[:, None] * 1e4 ** (
                -torch.arange(0, self.a.head_dim, 2, device=parameter.device) / self.a.head_dim
            )
            angles = torch.cat((angles, angles), -1)
            self.rope = torch.stack((angles.cos(), angles.sin())).to(parameter.dtype)

    def embed(self, tokens: Tensor) -> Tensor:
        """Tokens to the stream."""
        x = self.embedding(tokens)
        if self.positions is not None:
            x = x + self.positions(torch.arange(tokens.shape[1], device=tokens.device))
        return x

    def run_blocks(self, x: Tensor) -> Tensor:
        """The stream through all blocks, recomputed in backward where asked."""
        for block in self.blocks:
            if self.recompute:
                from torch.utils.checkpoint import checkpoint

                x = checkpoint(block, x, self.rope, use_reentrant=False)
            else:
                x = block(x, self.rope)
        return x

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.norm(self.run_blocks(self.embed(tokens))))


def build(a: Architecture, device: Any, dtype: Any, *, recompute: bool = False) -> Any:
    """A model with random weights, made on the device."""
    previous = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = Transformer(a)
    finally:
        torch.set_default_dtype(previous)
    model.initialise()
    model.recompute = recompute
    return model


def loss_of(logits: Tensor, targets: Tensor, *, wide: bool) -> Tensor:
    """Cross-entropy over the vocabulary, in fp32 where `wide`, else in the logits' dtype."""
    flat = logits.view(-1, logits.shape[-1])
    return functional.cross_entropy(flat.float() if wide else flat, targets.view(-1))
