"""Prefill and decode steps of a served model: plain PyTorch kernels, a static cache of keys and values, CUDA graphs.

`prefill` runs `seq` tokens of each of `batch` requests into an empty cache; `decode` adds one token to `batch` requests
that each hold `seq` tokens. Both end with logits of the last token and a greedy choice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

SIZES = ("style", "hidden", "layers", "heads", "kv_heads", "head_dim", "ffn", "vocab")

# The models themselves, and what one of eight tensor-parallel ranks holds of larger ones
MODELS: tuple[tuple[str, int, int, int, int, int, int, int], ...] = (
    ("llama", 4096, 32, 32, 8, 128, 14336, 128256),
    ("llama", 8192, 16, 8, 1, 128, 3584, 16032),
    ("llama", 2048, 16, 32, 8, 64, 8192, 128256),
    ("llama", 3584, 14, 28, 4, 128, 18944, 152064),
    ("gpt", 4096, 8, 32, 32, 128, 16384, 50304),
    ("llama", 8192, 8, 64, 8, 128, 28672, 128256),
)
# Widths, head counts and vocabularies between those above, over sizes of their own
MORE_MODELS: tuple[tuple[str, int, int, int, int, int, int, int], ...] = (
    ("llama", 4096, 12, 32, 8, 128, 12288, 151936),
    ("llama", 5120, 12, 32, 4, 128, 12800, 75968),
    ("llama", 8192, 10, 16, 2, 128, 7168, 32064),
    ("llama", 896, 24, 14, 2, 64, 4864, 151936),
    ("llama", 5120, 10, 40, 40, 128, 13824, 32000),
    ("llama", 2048, 24, 4, 1, 128, 2816, 32000),
)
# In fp8: a whole model, some layers of larger ones, and what one of eight ranks holds
NARROW_MODELS: tuple[tuple[str, int, int, int, int, int, int, int], ...] = (
    ("llama", 4096, 32, 32, 8, 128, 14336, 128256),
    ("llama", 8192, 10, 64, 8, 128, 28672, 128256),
    ("llama", 5120, 12, 64, 8, 128, 25600, 151936),
    ("llama", 8192, 16, 8, 1, 128, 3584, 16032),
)
NARROW_DECODE = ((1, 512), (4, 2048), (8, 1024), (16, 512), (16, 4096), (32, 1024), (64, 2048), (128, 512), (256, 1024))
NARROW_PREFILL = ((1, 128), (1, 512), (1, 2048), (1, 8192), (4, 1024))
DECODE = (
    (1, 512),
    (1, 8192),
    (4, 2048),
    (8, 512),
    (16, 4096),
    (32, 1024),
    (64, 2048),
    (128, 512),
    (128, 2048),
    (256, 1024),
    (1, 32768),
    (8, 16384),
)
MORE_DECODE = (
    (1, 1024),
    (2, 4096),
    (4, 512),
    (16, 1024),
    (24, 3000),
    (48, 1500),
    (64, 512),
    (96, 4096),
    (192, 1024),
    (256, 256),
    (512, 512),
    (32, 8192),
)
PREFILL = ((1, 128), (1, 512), (1, 2048), (1, 8192), (4, 1024), (8, 512), (2, 4096), (16, 128))
MORE_PREFILL = ((1, 256), (1, 1024), (1, 4096), (2, 1024), (3, 700), (8, 2048), (1, 16384), (32, 64))


def _task(op: str, model: tuple[Cell, ...], batch: int, seq: int, launch: str = "graph", dtype: str = "bf16") -> Task:
    key: dict[str, Cell] = {"op": op, **dict(zip(SIZES, model, strict=True))}
    key |= {"batch": batch, "seq": seq, "dtype": dtype, "launch": launch}
    return Task(key=key, seconds=0.35 + (batch * seq / 2e4 if op == "prefill" else 0.05))


def tasks(small: bool) -> list[Task]:
    """All serving steps; those of one model follow each other, so that it is built once."""
    if small:
        tiny: tuple[Cell, ...] = ("llama", 32, 2, 4, 2, 8, 64, 128)
        sizes = dict(zip(SIZES, tiny, strict=True))
        common: dict[str, Cell] = {"batch": 2, "seq": 16, "dtype": "fp32", "launch": "eager"}
        return [Task(key={"op": op, **sizes, **common}, seconds=0.05) for op in ("prefill", "decode")]
    groups = [_steps(model, DECODE, PREFILL) for model in MODELS]
    groups += [_steps(model, MORE_DECODE, MORE_PREFILL) for model in MORE_MODELS]
    groups += [narrow_steps(model) for model in NARROW_MODELS]
    return [task for group in groups for task in group]


def _steps(
    model: tuple[str, int, int, int, int, int, int, int],
    decode: tuple[tuple[int, int], ...],
    prefill: tuple[tuple[int, int], ...],
) -> list[Task]:
    """The steps of one model whose cache fits; a few decode steps from Python, call by call."""
    _, _, layers, _, kv_heads, head_dim, *_ = model
    fitting = [(b, s) for b, s in decode if b * s <= 20e9 / (4.0 * layers * kv_heads * head_dim)]
    alone = [(b, s) for b, s in decode[:5:2] if (b, s) in fitting]
    found = [_task("decode", model, b, s) for b, s in fitting] + [_task("decode", model, b, s, "eager") for b, s in alone]
    return interleave([found, [_task("prefill", model, b, s) for b, s in prefill]])


def narrow_steps(model: tuple[str, int, int, int, int, int, int, int]) -> list[Task]:
    """The steps of one model in fp8."""
    decode = [_task("decode", model, b, s, dtype="fp8") for b, s in NARROW_DECODE]
    return interleave([decode, [_task("prefill", model, b, s, dtype="fp8") for b, s in NARROW_PREFILL]])


class Server:
    """A model without gradients, whole or this rank's part of it, and its cache."""

    def __init__(self, bench: Any, key: Mapping[str, Cell], degree: int = 1) -> None:
        from costmodels.calibration.network import Architecture, build, narrow

        torch = bench.torch
        self.bench, self.torch, self.degree = bench, torch, degree
        self.a = Architecture.of(dict(key) | {"seq": 65536, "fused": True, "rotary": False, "tied": False}, degree)
        eight = key["dtype"] == "fp8"
        self.dtype = bench.dtype("bf16" if eight else str(key["dtype"]))
        self.model = build(self.a, bench.device, self.dtype)
        if degree > 1:
            part = self.a.vocab // degree
            self.model.head = torch.nn.Linear(self.a.hidden, part, bias=False, device=bench.device, dtype=self.dtype)
        self.model.requires_grad_(False)
        if eight:
            narrow(self.model)

    @classmethod
    def of(cls, bench: Any, key: Mapping[str, Cell], degree: int = 1) -> Server:
        """The server of a row; the one built last is kept."""
        name = str([key[c] for c in (*SIZES, "dtype")])
        if name not in _LAST:
            forget()
            bench.release()
            _LAST[name] = cls(bench, key, degree)
        server: Server = _LAST[name]
        return server

    def cache(self, batch: int, length: int) -> list[tuple[Any, Any]]:
        """Random keys and values, (batch, length, KV heads, head_dim) for each layer."""
        shape = (batch, length, max(1, self.a.kv_heads // self.degree), self.a.head_dim)
        return [
            (
                self.torch.randn(shape, device=self.bench.device, dtype=self.dtype),
                self.torch.randn(shape, device=self.bench.device, dtype=self.dtype),
            )
            for _ in range(self.a.layers)
        ]

    def reduced(self, x: Any) -> Any:
        """The sum over the ranks."""
        if self.degree > 1:
            self.torch.distributed.all_reduce(x)
        return x

    def chosen(self, logits: Any) -> Any:
        """The greedy choice among the logits of all ranks."""
        if self.degree > 1:
            batch, part = logits.shape
            every = self.torch.empty(self.degree * batch, part, device=logits.device, dtype=logits.dtype)
            self.torch.distributed.all_gather_into_tensor(every, logits.contiguous())
            logits = every.view(self.degree, batch, part).transpose(0, 1).reshape(batch, -1)
        return logits.argmax(-1)

    def step(self, tokens: Any, cache: list[tuple[Any, Any]], position: Any, *, causal: bool) -> Any:
        """tokens (batch, new) to the next token (batch,); new keys and values are written at `position` (new,)."""
        functional = self.torch.nn.functional
        model, grouped = self.model, self.a.heads != self.a.kv_heads
        x = model.embedding(tokens)
        if model.positions is not None:
            x = x + model.positions(position)
        for block, (keys, values) in zip(model.blocks, cache, strict=True):
            q, k, v = block.attention.project(block.attention_norm(x))
            keys.index_copy_(1, position, k)
            values.index_copy_(1, position, v)
            mixed = functional.scaled_dot_product_attention(
                q.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2), is_causal=causal, enable_gqa=grouped
            )
            x = x + self.reduced(block.attention.out(mixed.transpose(1, 2).reshape(*x.shape[:2], -1)))
            x = x + self.reduced(block.feed_forward(block.feed_forward_norm(x)))
        return self.chosen(model.head(model.norm(x[:, -1])))

    def call(self, key: Mapping[str, Cell]) -> Callable[[], Any]:
        """The step of a row, ready to be timed."""
        torch = self.torch
        batch, seq = int(key["batch"]), int(key["seq"])
        decode = key["op"] == "decode"
        new = 1 if decode else seq
        cache = self.cache(batch, seq)
        tokens = torch.randint(0, self.a.vocab, (batch, new), device=self.bench.device)
        position = torch.arange(seq - new, seq, device=self.bench.device)

        def step() -> Any:
            with torch.no_grad():
                return self.step(tokens, cache, position, causal=not decode)

        return step

    def bytes_read(self, key: Mapping[str, Cell]) -> float:
        """Bytes of weights, and when decoding of cached keys and values, that a rank reads in a step."""
        names = self.model.named_parameters()
        weights = sum(p.numel() * p.element_size() for n, p in names if "embedding" not in n and "positions" not in n)
        cached = int(key["batch"]) * int(key["seq"]) * self.a.layers * max(1, self.a.kv_heads // self.degree) * self.a.head_dim
        return float(weights + (2 * self.dtype.itemsize * cached if key["op"] == "decode" else 0))


_LAST: dict[str, Any] = {}


def forget() -> None:
    """Drop the model that was built last."""
    _LAST.clear()


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one step of serving."""
    server = Server.of(bench, key)
    call = server.call(key)
    timing = bench.time(lambda _: call(), launch=str(key["launch"]), least=5e-3, repeats=6)
    bench.tidy(above=30e9)
    return dict(timing.row() | {"bytes": server.bytes_read(key)})


SUITE = Suite(
    name="serving",
    key=("op", *SIZES, "batch", "seq", "dtype", "launch"),
    measured=(*READINGS, "bytes"),
    share=0.10,
    tasks=tasks,
    measure=measure,
)
