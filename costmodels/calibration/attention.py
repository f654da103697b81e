"""Attention kernels: each implementation PyTorch has, forward, backward, and decoding against a cache of keys and values.

Tensors are stored (batch, length, heads, head_dim), as projections leave them. `implementation` is the backend asked for;
`default` lets PyTorch choose, and `backend` then says what it chose. `flops` counts executed products: half of them if causal.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

# heads, KV heads, head_dim
HEADS = (
    (32, 8, 128),
    (16, 16, 64),
    (8, 1, 128),
    (32, 32, 128),
    (64, 8, 128),
    (32, 8, 64),
    (16, 2, 128),
    (4, 4, 128),
    (40, 40, 128),
    (12, 12, 64),
    (32, 32, 64),
    (12, 2, 128),
)
BACKENDS = {0: "math", 1: "flash", 2: "efficient", 3: "cudnn", 4: "override", -1: "error"}


def training_shapes() -> list[tuple[int, int, int, int, int]]:
    """(batch, heads, KV heads, length, head_dim), a rotating choice of batches and lengths for each kind of heads."""
    shapes = []
    for turn in range(6):
        for which, (heads, kv_heads, head_dim) in enumerate(HEADS):
            length = (512, 1024, 2048, 4096, 8192, 16384, 32768)[(2 * turn + 3 * which) % 7]
            batch = (1, 2, 4, 8, 16)[(turn + 2 * which) % 5]
            while batch > 1 and (batch * length > 32768 or 2.0 * batch * heads * length**2 * head_dim > 1.2e13):
                batch //= 2
            if 2.0 * batch * heads * length**2 * head_dim <= 1.2e13:
                shapes.append((batch, heads, kv_heads, length, head_dim))
    return list(dict.fromkeys(shapes))


DECODE_HEADS = ((32, 8, 128), (8, 1, 128), (64, 8, 128), (16, 2, 128), (4, 1, 128), (32, 32, 128), (16, 16, 64), (32, 8, 64))
MORE_HEADS = (
    *((24, 8, 128), (40, 8, 128), (32, 4, 128), (16, 16, 128), (48, 8, 128), (12, 2, 64), (64, 64, 128), (20, 20, 64)),
    *((28, 4, 128), (6, 1, 128), (5, 1, 128), (8, 8, 128), (14, 2, 64), (2, 2, 128), (64, 8, 64), (16, 1, 128)),
)


def decode_shapes(
    kinds: tuple[tuple[int, int, int], ...] = DECODE_HEADS, turns: int = 14
) -> list[tuple[int, int, int, int, int]]:
    """(batch, heads, KV heads, cached length, head_dim), at most 6 GB of cache."""
    lengths = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
    batches = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    shapes = []
    for turn in range(turns):
        for which, (heads, kv_heads, head_dim) in enumerate(kinds):
            batch = batches[(turn + 3 * which) % 9]
            length = lengths[(2 * turn + 5 * which + turn // 9) % 9]
            while 4.0 * batch * length * kv_heads * head_dim > 6e9 and batch > 1:
                batch //= 2
            shapes.append((batch, heads, kv_heads, length, head_dim))
    return list(dict.fromkeys(shapes))


def _task(op: str, shape: tuple[int, int, int, int, int], implementation: str, *, causal: bool, **more: Cell) -> Task:
    batch, heads, kv_heads, length, head_dim = shape
    key: dict[str, Cell] = {"op": op, "dtype": "bf16", "batch": batch, "heads": heads, "kv_heads": kv_heads}
    key |= {"q_len": 1 if op == "attention_decode" else length, "kv_len": length, "head_dim": head_dim, "causal": causal}
    key |= {"implementation": implementation, "cache": "warm", "launch": "graph"} | more
    work = 4.0 * batch * heads * int(str(key["q_len"])) * length * head_dim
    rate = 8e13 if implementation in ("efficient", "unfused") else 3e14
    slower = {"attention_backward": 4.5}.get(op, 1.0)
    moved = 4.0 * batch * kv_heads * length * head_dim
    return Task(key=key, seconds=0.05 + 10 * slower * (work / rate * (0.5 if causal else 1) + moved / 2e12))


def tasks(small: bool) -> list[Task]:
    """All attention rows, most telling first."""
    if small:
        shape = (1, 4, 2, 64, 16)
        ops = ("attention_prefill", "attention_backward", "attention_decode")
        return [_task(op, shape, "default", causal=op != "attention_decode", dtype="fp32") for op in ops]
    shapes = training_shapes()
    both = ("attention_prefill", "attention_backward")
    groups = [[_task(op, s, which, causal=True) for s in shapes for op in both] for which in ("flash", "cudnn")] + [
        [_task(op, s, which, causal=False) for s in shapes[::3] for op in both] for which in ("flash", "cudnn")
    ]
    groups.append([_task(op, s, "default", causal=True) for s in shapes[::2] for op in both])
    groups.append([_task(op, (s[0], s[1], s[1], *s[3:]), "efficient", causal=True) for s in shapes[::4] for op in both])
    short = [s for s in shapes if s[3] <= 4096]
    groups.append([_task(op, (s[0], s[1], s[1], *s[3:]), "unfused", causal=True) for s in short[::3] for op in both])
    decode = decode_shapes()
    groups.append([_task("attention_decode", s, "default", causal=False) for s in decode])
    groups.append([_task("attention_decode", s, "flash", causal=False) for s in decode])
    groups.append([_task("attention_decode", s, "cudnn", causal=False) for s in decode[::2]])
    groups.append([_task("attention_decode", s, "grouped", causal=False) for s in decode[::4]])
    more = decode_shapes(MORE_HEADS, 9)
    groups.append([_task("attention_decode", s, "flash", causal=False) for s in more])
    groups.append([_task("attention_decode", s, "default", causal=False) for s in more[::2]])
    groups.append([_task("attention_decode", s, "grouped", causal=False) for s in more[1::4]])
    cold = [s for s in decode if s[0] * s[2] * s[3] * s[4] * 4 < 1e8]
    groups.append([_task("attention_decode", s, "default", causal=False, cache="cold") for s in cold])
    chunks = [(1, h, kv, 8192, d) for h, kv, d in HEADS[:6]]
    groups.append(
        [
            _task("attention_prefill", s, w, causal=False, q_len=q)
            for s in chunks
            for q in (512, 2048)
            for w in ("flash", "cudnn")
        ]
    )
    return interleave(list({tuple(task.key.items()): task for task in group}.values()) for group in groups)


def _runner(bench: Any, key: Mapping[str, Cell]) -> Callable[[Any, Any, Any], Any]:
    """The implementation asked for, as a function of queries, keys and values (batch, heads, length, head_dim)."""
    torch = bench.torch
    attend = torch.nn.functional.scaled_dot_product_attention
    causal, which = bool(key["causal"]), str(key["implementation"])
    grouped = key["heads"] != key["kv_heads"]
    if which == "grouped":
        ratio = int(key["heads"]) // int(key["kv_heads"])

        def products(q: Any, k: Any, v: Any) -> Any:
            folded = q.reshape(q.shape[0], k.shape[1], ratio, q.shape[3])
            scores = folded @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            return torch.softmax(scores, -1) @ v

        return products
    if which == "unfused":
        size = int(key["kv_len"])
        mask = torch.ones(size, size, device=bench.device, dtype=torch.bool).triu(1)

        def scores_kept(q: Any, k: Any, v: Any) -> Any:
            scores = torch.matmul(q, k.transpose(-2, -1)) * q.shape[-1] ** -0.5
            scores = scores.masked_fill(mask, float("-inf"))
            return torch.matmul(torch.softmax(scores, -1), v)

        return scores_kept
    if which == "default":
        return lambda q, k, v: attend(q, k, v, is_causal=causal, enable_gqa=grouped)
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backend = {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cudnn": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
    }[which]

    def forced(q: Any, k: Any, v: Any) -> Any:
        with sdpa_kernel(backend):
            return attend(q, k, v, is_causal=causal, enable_gqa=grouped)

    return forced


def chosen(bench: Any, q: Any, k: Any, v: Any, *, causal: bool, grouped: bool) -> str:
    """The backend PyTorch picks by itself for these tensors."""
    try:
        which = bench.torch._fused_sdp_choice(q, k, v, is_causal=causal, enable_gqa=grouped)
    except Exception:
        return ""
    return BACKENDS.get(int(which), str(which))


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one attention call; backward alone where the row says so."""
    torch = bench.torch
    batch, heads, kv_heads, q_len, kv_len, head_dim = (
        int(key[c]) for c in ("batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim")
    )
    dtype, op, causal = str(key["dtype"]), str(key["op"]), bool(key["causal"])
    size = 4 if dtype == "fp32" else 2
    queries, cached = batch * q_len * heads * head_dim, batch * kv_len * kv_heads * head_dim
    one = queries + 2 * cached
    sets = max(2, bench.sets(size * one)) if key["cache"] == "cold" else 1
    inputs = []
    for i in range(sets):
        start = i * one
        q = bench.noise(queries, dtype, start).view(batch, q_len, heads, head_dim)
        k = bench.noise(cached, dtype, start + queries).view(batch, kv_len, kv_heads, head_dim)
        v = bench.noise(cached, dtype, start + queries + cached).view(batch, kv_len, kv_heads, head_dim)
        inputs.append(tuple(t.transpose(1, 2) for t in (q, k, v)))
    run = _runner(bench, key)
    backend = str(key["implementation"])
    if backend == "default":
        backend = chosen(bench, *inputs[0], causal=causal, grouped=heads != kv_heads)
    if op == "attention_backward":
        leaves = [t.detach().requires_grad_() for t in inputs[0]]
        out = run(*leaves)
        gradient = torch.randn_like(out)
        launch = str(key["launch"])
        timing = bench.time(lambda _: torch.autograd.grad(out, leaves, gradient, retain_graph=True), launch=launch)
    else:
        with torch.no_grad():
            timing = bench.time(lambda i: run(*inputs[i]), sets=sets, launch=str(key["launch"]))
    bench.tidy(above=30e9)
    work = 4.0 * batch * heads * q_len * kv_len * head_dim * (0.5 if causal else 1.0)
    moved = float(size * (2 * queries + 2 * cached))
    if op == "attention_backward":
        work, moved = 2.5 * work, float(size * (4 * queries + 4 * cached))
    return dict(timing.row() | {"backend": backend, "flops": work, "bytes": moved})


SUITE = Suite(
    name="attention",
    key=(
        *("op", "dtype", "batch", "heads", "kv_heads", "q_len", "kv_len", "head_dim"),
        *("causal", "implementation", "cache", "launch"),
    ),
    measured=(*READINGS, "backend", "flops", "bytes"),
    share=0.17,
    tasks=tasks,
    measure=measure,
)
