"""Matrix products of real models under tensor parallelism: which shapes, and what each takes.

A linear layer y[m,n] = x[m,k] · w[n,k]ᵀ; `layout` says which of the three products of training it is: `forward`,
`dgrad` (dx[m,n] = dy[m,k] · w[k,n]) or `wgrad` (dw[m,n] = dy[k,m]ᵀ · x[k,n]). m, n, k are always those of the product itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from costmodels.calibration.suite import READINGS, Cell, Row, Suite, Task, interleave

# name, hidden, heads, KV heads, head_dim, FFN width, width multiplier of the up projection, vocabulary
MODELS: tuple[tuple[str, int, int, int, int, int, int, int], ...] = (
    ("llama-3.1-8b", 4096, 32, 8, 128, 14336, 2, 128256),
    ("llama-3.1-70b", 8192, 64, 8, 128, 28672, 2, 128256),
    ("llama-3.1-405b", 16384, 128, 8, 128, 53248, 2, 128256),
    ("qwen2.5-7b", 3584, 28, 4, 128, 18944, 2, 152064),
    ("qwen3-32b", 5120, 64, 8, 128, 25600, 2, 151936),
    ("gpt3-175b", 12288, 96, 96, 128, 49152, 1, 51200),
    ("gemma-2-9b", 3584, 16, 8, 256, 14336, 2, 256000),
    ("mistral-large", 12288, 96, 8, 128, 28672, 2, 32768),
    ("phi-3-medium", 5120, 40, 10, 128, 17920, 2, 32064),
    ("llama-3.2-1b", 2048, 32, 8, 64, 8192, 2, 128256),
    ("llama-3.2-3b", 3072, 24, 8, 128, 8192, 2, 128256),
    ("qwen2.5-72b", 8192, 64, 8, 128, 29568, 2, 152064),
    ("qwen3-8b", 4096, 32, 8, 128, 12288, 2, 151936),
    ("llama-2-13b", 5120, 40, 40, 128, 13824, 2, 32000),
    ("llama-2-7b", 4096, 32, 32, 128, 11008, 2, 32000),
    ("gemma-2-27b", 4608, 32, 16, 128, 36864, 2, 256000),
    ("qwen2.5-1.5b", 1536, 12, 2, 128, 8960, 2, 151936),
    ("phi-3-mini", 3072, 32, 32, 96, 8192, 2, 32064),
    ("gpt2-xl", 1600, 25, 25, 64, 6400, 1, 50304),
)

# name, n, k: projections that do not follow the table above
OTHERS: tuple[tuple[str, int, int], ...] = (
    ("deepseek-v3.q_down", 1536, 7168),
    ("deepseek-v3.q_up", 24576, 1536),
    ("deepseek-v3.q_up/8", 3072, 1536),
    ("deepseek-v3.kv_down", 576, 7168),
    ("deepseek-v3.kv_up", 32768, 512),
    ("deepseek-v3.kv_up/8", 4096, 512),
    ("deepseek-v3.out", 7168, 16384),
    ("deepseek-v3.out/8", 7168, 2048),
    ("deepseek-v3.ffn_up", 36864, 7168),
    ("deepseek-v3.ffn_down", 7168, 18432),
    ("deepseek-v3.expert_up", 4096, 7168),
    ("deepseek-v3.router", 256, 7168),
    ("qwen3-235b.expert_up", 3072, 4096),
    ("qwen3-235b.expert_down", 4096, 1536),
    ("qwen3-30b.expert_up", 1536, 2048),
    ("qwen3-30b.expert_down", 2048, 768),
    ("square", 1024, 1024),
    ("square", 2048, 2048),
    ("square", 4096, 4096),
    ("square", 8192, 8192),
    ("square", 16384, 16384),
)

TOKENS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
DEGREES = (1, 2, 4, 8)


def sites(models: int = len(MODELS)) -> list[tuple[int, int]]:
    """Distinct (n, k) of the models' projections under tensor parallelism; models and projections take turns."""
    groups: list[list[tuple[int, int]]] = []
    for _, hidden, heads, kv_heads, head_dim, ffn, gates, vocabulary in MODELS[:models]:
        group = []
        for degree in DEGREES:
            if heads % degree:
                continue
            kv = max(kv_heads, degree)
            shapes = (
                ((heads + 2 * kv) * head_dim // degree, hidden),
                (gates * ffn // degree, hidden),
                (hidden, ffn // degree),
                (hidden, heads * head_dim // degree),
            )
            group += [shape for shape in shapes if not (shape[0] % 16 or shape[1] % 16)]
            if degree in (1, 8) and vocabulary % (16 * degree) == 0:
                group.append((vocabulary // degree, hidden))
        # neighbours in the list differ in degree and projection, so that a run cut short still saw all kinds
        groups.append(group[::3] + group[1::3] + group[2::3])
    groups.append([(n, k) for _, n, k in OTHERS])
    turns = [group[i] for i in range(max(map(len, groups))) for group in groups if i < len(group)]
    return list(dict.fromkeys(turns))


def _passes(places: list[tuple[int, int]], stride: int = 5, rounds: int = 2) -> list[tuple[int, int, int]]:
    """(m, n, k): every site gets `rounds` of each `stride` token counts, another set at the next site."""
    passes: list[list[tuple[int, int, int]]] = [[] for _ in range(len(TOKENS))]
    for site, (n, k) in enumerate(places):
        chosen = [i for i in range(len(TOKENS)) if (i + 2 * site) % stride in (0, stride // 2)][: 4 * rounds]
        start = site % len(chosen)
        for turn, i in enumerate(chosen[start:] + chosen[:start]):
            passes[turn].append((TOKENS[i], n, k))
    return [shape for one in passes for shape in one if 2 * shape[0] * shape[1] * shape[2] <= 3e13]


def _task(m: int, n: int, k: int, *, dtype: str = "bf16", layout: str = "forward", cache: str = "warm", **more: Cell) -> Task:
    key: dict[str, Cell] = {"op": "gemm", "dtype": dtype, "layout": layout, "m": m, "n": n, "k": k, "groups": 1}
    key |= {"fast_accumulate": dtype == "fp8", "cache": cache, "launch": "graph"}
    key |= more
    seconds = 0.035 + 12 * 2.0 * m * n * k * int(str(key["groups"])) / 6e14
    return Task(key=key, seconds=seconds + (1.5 if cache == "sustained" else 0.0))


def tasks(small: bool) -> list[Task]:
    """All products to be measured, most telling first."""
    if small:
        shapes = [(4, 64, 32), (16, 32, 64), (64, 128, 96)]
        cpu = [_task(*shape, dtype="fp32", layout=layout) for shape in shapes for layout in ("forward", "dgrad", "wgrad")]
        return [*cpu, _task(8, 64, 64, dtype="fp32", cache="cold"), _task(8, 64, 64, dtype="fp32", launch="single")]
    places = sites()
    warm = [_task(*shape) for shape in _passes(places)]
    cold = [_task(*shape, cache="cold") for shape in _passes(places[::2], 5, 2) if shape[0] <= 512][::2]
    fp8 = [_task(*shape, dtype="fp8") for shape in _passes(places[::2])]
    slow8 = [_task(*shape, dtype="fp8", fast_accumulate=False) for shape in _passes(places[::8])][::2]
    cold8 = [_task(*shape, dtype="fp8", cache="cold") for shape in _passes(places[::6]) if shape[0] <= 256]
    half = [_task(*shape, dtype="fp16") for shape in _passes(places[::8])][::2]
    training = [shape for shape in _passes(places[::2]) if shape[0] >= 512]
    dgrad = [_task(t, k, n, layout="dgrad") for t, n, k in training]
    wgrad = [_task(n, k, t, layout="wgrad") for t, n, k in training]
    grouped = [
        _task(m, n, k, groups=groups)
        for groups, n, k in ((8, 28672, 4096), (8, 4096, 14336), (32, 4096, 7168), (32, 7168, 2048), (128, 1536, 2048))
        for m in (16, 64, 256, 1024, 4096)
        if groups * m <= 32768
    ]
    grouped += [
        _task(m, n, k, groups=groups)
        for groups, n, k in (
            (4, 28672, 4096),
            (16, 2816, 2048),
            (64, 2816, 2048),
            (64, 2048, 1408),
            (16, 5120, 8192),
            (32, 2880, 2880),
        )
        for m in (32, 128, 512, 2048)
        if groups * m <= 65536
    ]
    single = [_task(m, n, k, launch=launch) for m, n, k in warm_shapes() for launch in ("eager", "single")]
    held = [
        _task(m, n, k, dtype=dtype, cache="sustained")
        for m, n, k in ((8192, 8192, 8192), (4096, 28672, 8192), (16384, 4096, 4096))
        for dtype in ("bf16", "fp8")
    ]
    return interleave([warm, cold, fp8, slow8, cold8, half, dgrad, wgrad, grouped, single, held])


def warm_shapes() -> list[tuple[int, int, int]]:
    """A few products to be timed as Python issues them."""
    return [(m, n, k) for n, k in ((4096, 4096), (28672, 4096), (8192, 8192)) for m in (1, 128, 2048, 8192)]


def measure(bench: Any, key: Mapping[str, Cell]) -> Row:
    """Time one product on random data."""
    torch = bench.torch
    m, n, k, groups = (int(key[c]) for c in ("m", "n", "k", "groups"))
    dtype, layout, cache = str(key["dtype"]), str(key["layout"]), str(key["cache"])
    size = {"fp8": 1, "fp32": 4}.get(dtype, 2)
    out_size = 4 if dtype == "fp32" else 2
    read = size * (m * k * groups + n * k * groups)
    one = (m * k + n * k) * groups
    sets = bench.sets(read) if cache == "cold" else 1
    if cache == "cold" and sets == 1:
        sets = 2
    pairs = []
    for i in range(sets):
        x = bench.noise(m * k * groups, dtype, i * one)
        w = bench.noise(n * k * groups, dtype, i * one + m * k * groups)
        pairs.append((x, w))
    linear = torch.nn.functional.linear
    if groups > 1:
        ends = torch.arange(1, groups + 1, device=bench.device, dtype=torch.int32) * m
        three = [(x.view(groups * m, k), w.view(groups, n, k).transpose(-2, -1)) for x, w in pairs]

        def call(i: int) -> object:
            return torch._grouped_mm(three[i][0], three[i][1], offs=ends)

    elif dtype == "fp8":
        one_scale = torch.ones((), device=bench.device)
        fast = bool(key["fast_accumulate"])
        eight = [(x.view(m, k), w.view(n, k).t()) for x, w in pairs]

        def call(i: int) -> object:
            x8, w8 = eight[i]
            return torch._scaled_mm(x8, w8, scale_a=one_scale, scale_b=one_scale, out_dtype=torch.bfloat16, use_fast_accum=fast)

    elif layout == "dgrad":
        plain = [(x.view(m, k), w.view(k, n)) for x, w in pairs]

        def call(i: int) -> object:
            return plain[i][0] @ plain[i][1]

    elif layout == "wgrad":
        turned = [(x.view(k, m).t(), w.view(k, n)) for x, w in pairs]

        def call(i: int) -> object:
            return turned[i][0] @ turned[i][1]

    else:
        straight = [(x.view(m, k), w.view(n, k)) for x, w in pairs]

        def call(i: int) -> object:
            return linear(*straight[i])

    if cache == "sustained":
        timing = bench.time(call, repeats=50, least=30e-3, most=30e-3)
    else:
        timing = bench.time(call, sets=sets, launch=str(key["launch"]))
    bench.tidy(above=30e9)
    flops = 2.0 * m * n * k * groups
    return dict(timing.row() | {"flops": flops, "bytes": float(read + out_size * m * n * groups)})


SUITE = Suite(
    name="gemm",
    key=("op", "dtype", "layout", "m", "n", "k", "groups", "fast_accumulate", "cache", "launch"),
    measured=(*READINGS, "flops", "bytes"),
    share=0.30,
    tasks=tasks,
    measure=measure,
)
