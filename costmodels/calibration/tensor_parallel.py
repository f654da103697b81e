"""Tensor parallelism by hand, after Shoeybi 2019 and Korthikanti 2022, and through PyTorch's own interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from torch.autograd import Function

distributed: Any = torch.distributed
Tensor = Any


def _summed(x: Tensor) -> Tensor:
    x = x.contiguous()
    distributed.all_reduce(x)
    return x


def _gathered(x: Tensor) -> Tensor:
    """(batch, length/t, hidden) of every rank to (batch, length, hidden)."""
    world = distributed.get_world_size()
    turned = x.transpose(0, 1).contiguous()
    whole = turned.new_empty((turned.shape[0] * world, *turned.shape[1:]))
    distributed.all_gather_into_tensor(whole, turned)
    return whole.transpose(0, 1)


def _scattered(x: Tensor) -> Tensor:
    """(batch, length, hidden) partial sums to this rank's (batch, length/t, hidden)."""
    world = distributed.get_world_size()
    turned = x.transpose(0, 1).contiguous()
    part = turned.new_empty((turned.shape[0] // world, *turned.shape[1:]))
    distributed.reduce_scatter_tensor(part, turned)
    return part.transpose(0, 1)


def _sliced(x: Tensor) -> Tensor:
    world, rank = distributed.get_world_size(), distributed.get_rank()
    return x.chunk(world, 1)[rank].contiguous()


def _same(x: Tensor) -> Tensor:
    return x


def _pair(forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A differentiable function from what it does forward and what it does to the gradient."""

    class Pair(Function):  # type: ignore[misc, unused-ignore]
        @staticmethod
        def forward(_: Any, x: Tensor) -> Tensor:
            out = forward(x)
            return out.view_as(x) if out is x else out

        @staticmethod
        def backward(_: Any, gradient: Tensor) -> Tensor:
            return backward(gradient)

    def apply(x: Tensor) -> Tensor:
        return Pair.apply(x)

    return apply


enter = _pair(_same, _summed)
leave = _pair(_summed, _same)
gather = _pair(_gathered, _scattered)
scatter = _pair(_scattered, _gathered)
divide = _pair(_sliced, _gathered)
unite = _pair(_gathered, _sliced)


class Sharded(nn.Module):  # type: ignore[misc, unused-ignore]
    """A module of which each rank holds a part, between the collective before and the one after."""

    def __init__(self, inner: Any, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.before, self.after = inner, before, after

    def forward(self, x: Tensor, *rest: Any) -> Tensor:
        return self.after(self.inner(self.before(x), *rest))


class Ends(nn.Module):  # type: ignore[misc, unused-ignore]
    """A module followed by a function: the embedding cut up by sequence, the last norm gathered again."""

    def __init__(self, inner: Any, after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.inner, self.after = inner, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.inner(x))


def wrap(model: Any, *, sequence: bool) -> None:
    """Put the collectives around attention and feed-forward; with `sequence`, split the stream between them too."""
    before, after = (gather, scatter) if sequence else (enter, leave)
    for block in model.blocks:
        block.attention = Sharded(block.attention, before, after)
        block.feed_forward = Sharded(block.feed_forward, before, after)
    if sequence:
        model.embedding = Ends(model.embedding, divide)
        model.norm = Ends(model.norm, unite)


class VocabularyEmbedding(nn.Module):  # type: ignore[misc, unused-ignore]
    """An embedding of which each rank holds a range of tokens."""

    def __init__(self, vocab: int, hidden: int, like: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(vocab, hidden, device=like.device, dtype=like.dtype) * 0.02)
        self.first = vocab * distributed.get_rank()

    def forward(self, tokens: Tensor) -> Tensor:
        local = tokens - self.first
        outside = (local < 0) | (local >= self.weight.shape[0])
        found = nn.functional.embedding(local.masked_fill(outside, 0), self.weight)
        return leave(found.masked_fill(outside.unsqueeze(-1), 0.0))


class VocabularyLoss(Function):  # type: ignore[misc, unused-ignore]
    """Cross-entropy of logits whose vocabulary is spread over the ranks, as Megatron does it."""

    @staticmethod
    def forward(context: Any, logits: Tensor, targets: Tensor) -> Tensor:
        wide = logits.float()
        highest = wide.amax(-1)
        distributed.all_reduce(highest, distributed.ReduceOp.MAX)
        wide = wide - highest.unsqueeze(-1)
        local = targets - logits.shape[-1] * distributed.get_rank()
        outside = (local < 0) | (local >= logits.shape[-1])
        local = local.masked_fill(outside, 0)
        aimed = wide.gather(-1, local.unsqueeze(-1)).squeeze(-1).masked_fill(outside, 0.0)
        distributed.all_reduce(aimed)
        wide = wide.exp_()
        total = wide.sum(-1)
        distributed.all_reduce(total)
        context.save_for_backward(wide.div_(total.unsqueeze(-1)), local, outside)
        context.dtype = logits.dtype
        return (total.log() - aimed).mean()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        chances, local, outside = context.saved_tensors
        chances.scatter_add_(-1, local.unsqueeze(-1), (outside.float() - 1.0).unsqueeze(-1))
        return chances.mul_(gradient / local.numel()).to(context.dtype), None


def shard_vocabulary(model: Any, bench: Any) -> None:
    """Leave this rank its range of the vocabulary in embedding and head."""
    vocab, hidden = model.a.vocab // bench.world, model.a.hidden
    weight = model.head.weight
    model.embedding = VocabularyEmbedding(vocab, hidden, weight)
    model.head = nn.Linear(hidden, vocab, bias=False, device=weight.device, dtype=weight.dtype)


def vocabulary_step(
    bench: Any, key: Mapping[str, Any], model: Any, optimizer: Any, marks: Callable[[], None]
) -> Callable[[], None]:
    """A training step whose loss is spread over the ranks."""
    shape = (2, int(key["micro_batch"]), int(key["seq"]))
    tokens, targets = torch.randint(0, int(key["vocab"]), shape, device=bench.device)
    distributed.broadcast(tokens, 0)

    def step() -> None:
        x = model.norm(model.run_blocks(model.embed(tokens)))
        logits = model.head(enter(x))
        loss = VocabularyLoss.apply(logits.view(-1, logits.shape[-1]), targets.view(-1))
        marks()
        loss.backward()
        del loss, logits, x
        marks()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def shard_with_dtensor(model: Any, bench: Any, *, sequence: bool) -> None:
    """The same plan through `torch.distributed.tensor.parallel`."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        PrepareModuleInput,
        RowwiseParallel,
        SequenceParallel,
        parallelize_module,
    )

    mesh = init_device_mesh(bench.device.type, (bench.world,))
    row = {"output_layouts": Shard(1)} if sequence else {}
    plan: dict[str, Any] = {
        "attention.qkv": ColwiseParallel(),
        "attention.out": RowwiseParallel(**row),
        "feed_forward.up": ColwiseParallel(),
        "feed_forward.down": RowwiseParallel(**row),
    }
    if sequence:
        plan |= {
            "attention_norm": SequenceParallel(),
            "feed_forward_norm": SequenceParallel(),
            "attention": PrepareModuleInput(input_layouts=(Shard(1), None), desired_input_layouts=(Replicate(), None)),
            "feed_forward": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
        }
    for block in model.blocks:
        parallelize_module(block, mesh, plan)
        attention = block.attention
        attention.heads //= bench.world
        attention.kv_heads //= bench.world
        attention.widths = [width // bench.world for width in attention.widths]
    if sequence:
        model.embedding = Ends(model.embedding, divide)
        model.norm = Ends(model.norm, unite)
