"""Step-time tables of the distinct engines of some plans, and the tokens their caches hold.

An engine is one replica. Plans that differ in replicas, batch limits or workload share its tables; each is filled once per
distinct combination of the symbols it reads, kernels once per distinct shape.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np

from costmodels.block_memory import parameters
from costmodels.kernel_models.protocol import KernelModel
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.serving.attention import decode_calls, prefill_calls
from costmodels.serving.calls import total_time
from costmodels.serving.capacity import capacity
from costmodels.serving.formats import weight_bytes
from costmodels.serving.local import PLACEMENT, Local, layer_graphs
from costmodels.serving.speculation import draft_time, where_drafted
from costmodels.serving.stack import ServingStack, find_serving_stack
from costmodels.serving.step_graph import sequence_calls, token_calls
from costmodels.step_tables import StepTables, read_1d
from spaces.architecture import Architecture
from spaces.columns import Bindings, Columns, FloatArray, IntArray, distinct
from spaces.problem import Problem
from spaces.serving_space import PREFILL

OUTSIDE = frozenset(
    {
        "devices",
        "data",
        "max_batch",
        "token_budget",
        "kv_fraction",
        "preemption",
        "acceptance",
        "input_tokens",
        "output_tokens",
        "request_rate",
        "concurrency",
        "prefix_hit",
        "mode",
        "link_bandwidth",
        "link_latency",
        "device.price_per_hour",
        "device.idle_power",
        "energy.flop",
        "energy.memory",
        "energy.scale_up",
        "energy.scale_out",
    }
)
"""Symbols that no step table depends on; whatever else is a column does matter."""

TOKENS = np.unique(np.round(np.concatenate([[1, 2, 4, 8], 2.0 ** np.arange(4, 10, 0.5), 2.0 ** np.arange(10, 14.01)])))
SEQUENCES = np.unique(np.round(2.0 ** np.arange(0, 11.01, 1.0)))
REQUESTS = np.unique(np.round(2.0 ** np.arange(0, 11.01, 1.0)))
CACHED = np.concatenate([[0.0], 2.0 ** np.arange(7, 25.01, 1.0)])
QUERIES = 2.0 ** np.arange(4, 15.01, 1.0)
PAIRS = np.concatenate([[0.0], 2.0 ** np.arange(7, 31.01, 1.0)])
_DEVICE = ("device.", "kernel.", "link.", "chip.", "base.")


def engines(problem: Problem, columns: Columns, model: KernelModel | None = None) -> tuple[StepTables, IntArray]:
    """(tables of c distinct engines, engine of every point (n,)); `model` is the kernel model, the learned one if None."""
    stack = find_serving_stack(problem.stack)
    combinations, index = distinct(columns, frozenset(columns.levels) - OUTSIDE)
    return _remembered(problem, stack, combinations, model), index


def _remembered(problem: Problem, stack: ServingStack, combinations: Columns, model: KernelModel | None) -> StepTables:
    """The tables of c engines, those filled before taken from memory: screening and simulation ask for the same ones."""
    if combinations.n > _REMEMBERED:  # more than are kept: nobody asks for them again before they are forgotten
        return _tables(problem, stack, problem.at(combinations), model or find_kernel_model())
    own = {name: value for name, value in problem.scalars.items() if name not in OUTSIDE and not name.startswith(PREFILL)}
    shared = frozenset(own.items())
    devices = tuple(problem.labels.get("device", ()))
    names = tuple(sorted(combinations.levels))
    memory = _memory(problem.architecture, stack.name, shared, devices, _Identity(model), names)
    keys = list(zip(*(combinations[name].tolist() for name in names), strict=True)) if names else [()] * combinations.n
    new = [i for i, key in enumerate(keys) if key not in memory]
    if new or not keys:
        if len(memory) > _REMEMBERED:
            memory.clear()
            new = list(range(combinations.n))
        tables = _tables(problem, stack, problem.at(combinations.take(np.array(new, np.int64))), model or find_kernel_model())
        memory.update((keys[row], (tables, i)) for i, row in enumerate(new))
        if len(new) == len(keys):
            return tables
    rows = [memory[key] for key in keys]
    found = {}
    for field in fields(StepTables):
        first = getattr(rows[0][0], field.name)
        found[field.name] = first if field.name in _GRIDS else np.stack([getattr(tables, field.name)[i] for tables, i in rows])
    return StepTables(**found)


_GRIDS = frozenset({"tokens", "sequences", "requests", "decode_kv", "queries", "pairs"})
_REMEMBERED = 4096


@dataclass(frozen=True, slots=True, eq=False)
class _Identity:
    """A kernel model as a key: equal to itself alone, and kept while its tables are, so that no other takes its place."""

    model: KernelModel | None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and other.model is self.model

    def __hash__(self) -> int:
        return id(self.model)


@lru_cache(maxsize=8)
def _memory(*_: Hashable) -> dict[tuple[Any, ...], tuple[StepTables, int]]:
    """Tables of engines, and the row in them, by their choices: one memory for each problem and set of symbols that choose."""
    return {}


def kv_capacity(problem: Problem, columns: Columns) -> FloatArray:
    """Tokens that the cache of one replica holds, all its attention groups together, (n,); 0 where the weights do not fit."""
    stack = find_serving_stack(problem.stack)
    combinations, index = distinct(columns, frozenset(columns.levels) - {"data", "devices", "request_rate", "concurrency"})
    at = problem.at(combinations)
    groups = np.asarray(at["attention_data"], np.float64)
    return np.asarray((capacity(problem.architecture, stack, at).tokens * groups)[index])


def _tables(problem: Problem, stack: ServingStack, at: Bindings, model: KernelModel) -> StepTables:
    architecture, c = problem.architecture, at.n
    devices, device = _devices(problem, at)

    def rows(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (c,)).copy()

    def seconds(calls: object, *grid: int) -> FloatArray:
        return total_time(calls, grid, devices, device, model)  # type: ignore[arg-type]

    requests, cached = REQUESTS[None, :, None], CACHED[None, None, :]
    queries, pairs = QUERIES[None, :, None], PAIRS[None, None, :]
    token_time = seconds(token_calls(architecture, stack, at, TOKENS[None, :]), len(TOKENS))
    sequence_time = seconds(sequence_calls(architecture, stack, at, SEQUENCES[None, :]), len(SEQUENCES))
    decode = seconds(decode_calls(architecture, stack, at, requests, cached), len(REQUESTS), len(CACHED))
    prefill = seconds(prefill_calls(architecture, stack, at, queries, pairs), len(QUERIES), len(PAIRS))
    drafts = np.zeros_like(decode)
    if np.any(rows(at["speculation"]) > 0):
        decode, prefill, drafts = _with_drafts(at, (token_time, sequence_time, decode, prefill))
    fetched = fetch_time(architecture, at, TOKENS[None, :]) + weight_fetch_time(architecture, stack, at)[:, None]
    token_time = token_time + fetched
    layers, pipeline = rows(at["layers"]), rows(at["pipeline"])
    graphed = rows(at["cuda_graphs"]) > 0
    return StepTables(
        tokens=TOKENS,
        token_time=np.maximum.accumulate(token_time, axis=1),
        sequences=SEQUENCES,
        sequence_time=np.maximum.accumulate(sequence_time, axis=1),
        requests=REQUESTS,
        decode_kv=CACHED,
        decode_time=np.maximum.accumulate(decode, axis=2),
        draft_time=np.maximum.accumulate(drafts, axis=2),
        queries=QUERIES,
        pairs=PAIRS,
        prefill_time=np.maximum.accumulate(prefill, axis=2),
        host=rows(at["stack.host"]),
        host_per_sequence=rows(at["stack.host_per_sequence"]),
        host_overlap=rows(at["stack.host_overlap"]),
        launch=_kernels(problem, stack) * np.where(graphed, rows(at["stack.host_per_kernel"]), rows(at["stack.eager_kernel"])),
        graph_sequences=np.where(graphed, rows(at["stack.graph_sequences"]), 0.0),
        fetch=_cache_fetch_time(architecture, stack, at),
        fetch_overlap=rows(at["stack.kv_fetch_overlap"]),
        stages=pipeline,
        slowest_share=np.where(pipeline > 1, np.ceil(layers / pipeline) / layers, 1.0),
    )


def _with_drafts(at: Bindings, tables: tuple[FloatArray, ...]) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Both attention tables (c, R, K) and (c, Q, P) with what drafting adds to steps: the drafted tokens of every decoding
    request one after another, and once over every prompt, each at its share of the model's own time (Leviathan 2023, c);
    and what it adds to the first (c, R, K)."""
    tokens, sequences, decode, prefill = tables
    row = np.arange(at.n)[:, None]

    def column(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (at.n,))[:, None, None]

    one = read_1d(TOKENS, tokens, row, REQUESTS[None, :]) + read_1d(SEQUENCES, sequences, row, REQUESTS[None, :])
    prompt = read_1d(TOKENS, tokens, row, QUERIES[None, :])
    drafted, share = column(at["speculation"]), column(at["draft_share"])
    drafts = draft_time(one[:, :, None] + decode, drafted, share)
    return decode + drafts, prefill + (prompt[:, :, None] + prefill) * where_drafted(drafted, share), drafts


def fetch_time(architecture: Architecture, at: Bindings, tokens: FloatArray) -> FloatArray:
    """Seconds that offloaded experts take over the host link in a step of `tokens` (1, T) new tokens, (c, T); 0 without.

    A step of B tokens reaches E·(1 − (1 − k/E)^B) of a layer's experts, each rank fetching its shard of those it holds; which
    they are is known only after routing, so nothing hides the fetch (Eliseev and Mazur 2023, arXiv:2312.17238, without the
    cache of recent experts).
    """

    def column(name: str) -> FloatArray:
        return np.broadcast_to(np.asarray(at[name], np.float64), (at.n,))[:, None]

    if not architecture.experts:
        return np.zeros((at.n, tokens.shape[1]))
    chance = architecture.experts_per_token / architecture.experts
    reached = architecture.experts * (1.0 - (1.0 - chance) ** tokens)
    matrices = 3 if architecture.gated else 2
    size = matrices * architecture.hidden * architecture.moe_ffn * weight_bytes(column("precision"))
    ranks = column("expert") * column("expert_tensor")
    layers = architecture.expert_layers
    link = column("device.host_link_bandwidth") * column("link.host.copy")
    return np.asarray(column("expert_offload") * reached * size / ranks * layers / link)


def weight_fetch_time(architecture: Architecture, stack: ServingStack, at: Bindings) -> FloatArray:
    """Seconds that offloaded weights, experts apart, take over each device's own host link in every step, (c,).

    Kernels read them in place over the link, and wait for it (UVAOffloader of vLLM: `cpu_offload_gb`), stage after stage.
    """

    def rows(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (at.n,)).copy()

    offloaded = rows(at["weight_offload"])
    if not np.any(offloaded):
        return offloaded
    local = Local(at, 1)
    layers = ((parameters(graph, PLACEMENT, local)[0], count) for _, graph, count in layer_graphs(architecture, stack))
    size = sum((np.asarray(dense, np.float64) * count for dense, count in layers), np.zeros((at.n, 1)))
    link = rows(at["device.host_link_bandwidth"]) * rows(at["link.host.read"])
    return offloaded * size[:, 0] * weight_bytes(rows(at["precision"])) / link


def _cache_fetch_time(architecture: Architecture, stack: ServingStack, at: Bindings) -> FloatArray:
    """Seconds that a cached token's share in host memory takes over each device's own link, all layers, one way; (c,)."""

    def rows(value: object) -> FloatArray:
        return np.broadcast_to(np.asarray(value, np.float64), (at.n,)).copy()

    offloaded = rows(at["kv_offload"])
    if not np.any(offloaded):
        return offloaded
    stage = np.ceil(rows(at["layers"]) / rows(at["pipeline"]))
    each = capacity(architecture, stack, at).whole / stage  # bytes a layer
    link = rows(at["device.host_link_bandwidth"]) * rows(at["link.host.copy"])
    return np.asarray(offloaded * each * rows(at["layers"]) / link)


def _kernels(problem: Problem, stack: ServingStack) -> float:
    """Kernels that a step launches one by one: every operator of every layer that is not fused away."""
    fused = sum(stream.op == "none" for stream in stack.streams.values())
    return float(
        sum(max(len(graph.operators) - fused, 4) * count for _, graph, count in layer_graphs(problem.architecture, stack))
    )


def _devices(problem: Problem, at: Bindings) -> tuple[list[dict[str, float]], IntArray]:
    """The distinct devices among the combinations as symbols of their own, and each combination's device (c,)."""
    names = [name for name in {**problem.scalars, **at.columns.levels} if name.startswith(_DEVICE)]
    combinations, index = distinct(at.columns, [name for name in names if name in at.columns.levels])
    own = problem.at(combinations)
    if not combinations.n:  # no plans run on no device: its figures are asked for nothing
        return [dict.fromkeys(names, 1.0)], np.asarray(index, np.int64)
    columns = [np.broadcast_to(np.asarray(own[name], np.float64), (combinations.n,)).tolist() for name in names]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)], np.asarray(index, np.int64)
