"""Experts and latent attention as servers run them, beside what others measured at shapes that no constant was fitted to."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from benchmarks.kernels import PUBLISHED
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.serving.attention import decode_calls
from costmodels.serving.calls import Call, total_time
from costmodels.serving.experts import fp4_tile, marlin_tile
from costmodels.serving.local import Local, layer_graphs
from costmodels.serving.problem import serving_symbols
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.step_graph import gaps, operator_calls
from spaces.architecture import find
from spaces.blocks import scalars
from spaces.columns import FloatArray
from spaces.graph import Kind
from spaces.hardware import find_device
from spaces.serving_plan import serving_code

MODEL = find("deepseek-v3")
CARDS = {"h100-80gb-sxm": "H100-80GB-SXM", "h200-141gb-sxm": "H200-141GB-SXM"}
PROJECTIONS = ("q_down", "q_norm", "q_up", "kv_down", "kv_norm", "kv_up", "rotary", "attention_output")


def rows(folder: str, name: str, **wanted: str) -> dict[str, Any]:
    with (PUBLISHED / folder / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if all(row[key] == value for key, value in wanted.items())]
    words = ("stack", "version", "precision")
    return {key: np.array([row[key] if key in words else float(row[key]) for row in found]) for key in found[0]}


def bound(stack: str, device: str, at: dict[str, Any], **sizes: Any) -> dict[str, Any]:
    one = dict.fromkeys(("tensor", "expert", "expert_tensor", "attention_data", "pipeline"), 1.0)
    codes = {"precision": np.array([serving_code("precision", word) for word in at["precision"]])}
    whole = {**scalars(MODEL), **one, "lora_rank": 0.0, "kv_precision": serving_code("kv_precision", "bf16"), **codes, **sizes}
    return {**serving_symbols(find_device(device)), **find_serving_stack(stack).numbers, **whole}


def seconds(calls: list[Call], device: str, n: int, dims: int = 1) -> FloatArray:
    symbols = [kernel_symbols(find_device(device))]
    return total_time(calls, (1,) * dims, symbols, np.zeros(n, np.int64), find_kernel_model()).ravel()


def expert_seconds(stack: str, device: str, at: dict[str, Any]) -> FloatArray:
    """The routed experts of a layer by themselves, (n,): permutes, products, activation, and what passes between them."""
    named = ("hidden", "moe_ffn", "experts_per_token", "experts", "expert_tensor", "block_scaled")
    local = Local(bound(stack, device, at, **{name: at[name] for name in named}), at["tokens"][:, None])  # type: ignore[arg-type]
    server = find_serving_stack(stack)
    graph = next(graph for kind, graph, _ in layer_graphs(MODEL, server) if kind == "moe")
    ops = [op for op in graph.operators if op.kind in (Kind.PERMUTE, Kind.GROUPED_GEMM) or op.name.startswith("expert_")]
    calls = [call for op in ops for call in operator_calls(op, graph, server, local)]
    calls.append(gaps(calls, local, {"latent": False, "experts": True}))
    return seconds(calls, device, len(at["tokens"]))


def latent_seconds(stack: str, device: str, at: dict[str, Any]) -> FloatArray:
    """Latent attention of a layer, (n,): projections, absorption, attention and its output."""
    server, n = find_serving_stack(stack), len(at["requests"])
    blocks = (at["precision"] == "fp8").astype(np.float64)
    symbols = bound(stack, device, at, tensor=MODEL.heads / at["heads"], block_scaled=blocks)
    local = Local(symbols, at["requests"][:, None])  # type: ignore[arg-type]
    graph = layer_graphs(MODEL, server)[0][1]
    calls = [call for op in graph.operators if op.name in PROJECTIONS for call in operator_calls(op, graph, server, local)]
    casts = blocks[:, None] * server.numbers["stack.quantise_kernels.blocks"]
    calls.append(Call(op="quantise_fp8", shape={"rows": local.tokens, "cols": MODEL.hidden}, times=casts))
    calls.append(gaps(calls, local, {"latent": True, "experts": False}))
    requests = at["requests"][:, None, None]
    decode: Iterator[Call] = decode_calls(MODEL, server, symbols, requests, requests * at["cached"][:, None, None])  # type: ignore[arg-type]
    return seconds(calls, device, n) + seconds(list(decode), device, n, 2) / MODEL.layers


@pytest.mark.parametrize("folder", CARDS)
@pytest.mark.parametrize(
    ("stack", "precision", "within"),
    [
        ("vllm", "bf16", 0.1),
        ("vllm", "fp8", 0.1),
        ("vllm", "nvfp4", 0.15),
        ("vllm", "int4", 0.15),
        ("sglang", "fp8", 0.1),
        ("sglang", "bf16", 0.1),
        ("tensorrt-llm", "nvfp4", 0.15),
        ("tensorrt-llm", "bf16", 0.1),
        ("tensorrt-llm", "fp8", 0.1),
    ],
)
def test_experts_of_servers_take_what_somebody_measured(folder: str, stack: str, precision: str, within: float) -> None:
    at = rows(folder, "experts", stack=stack, precision=precision)
    error = np.abs(expert_seconds(stack, CARDS[folder], at) / at["time_s"] - 1.0)
    assert np.median(error) < within


def some(stack: str, tokens: float, precision: str = "nvfp4", **sizes: float) -> float:
    """Seconds of the experts of gpt-oss-120b's size under a stack on an H200."""
    whole = {"hidden": 2880.0, "moe_ffn": 2880.0, "experts_per_token": 4.0, "experts": 128.0}
    whole |= {"expert_tensor": 1.0, "block_scaled": 0.0}
    at: dict[str, Any] = {name: np.array([size]) for name, size in {**whole, "tokens": tokens, **sizes}.items()}
    return float(expert_seconds(stack, "H200-141GB-SXM", {**at, "precision": np.array([precision])})[0])


def test_an_expert_held_costs_where_the_server_looks_at_each() -> None:
    def more(stack: str, blocks: float) -> float:
        """Seconds that twice as many experts take longer with one token."""
        few, many = (some(stack, 1.0, "fp8", experts=n, block_scaled=blocks) for n in (128.0, 256.0))
        return many - few

    held = find_serving_stack("tensorrt-llm").numbers["stack.held_expert_time"]
    assert more("tensorrt-llm", 1.0) == pytest.approx(128.0 * held, rel=0.01)
    assert abs(more("tensorrt-llm", 0.0)) < 1e-7
    assert abs(more("vllm", 1.0)) < 1e-7


def test_four_bits_are_widened_once_for_every_tile_of_rows() -> None:
    """As many tiles and more rows in them cost little; memory twice as quick does not halve the time of few rows."""
    bytes_alone = 3.0 * 2880.0**2 * 128.0 * 0.5625 / find_device("H200-141GB-SXM").memory_bandwidth
    assert some("vllm", 128.0) > 1.5 * bytes_alone
    assert some("vllm", 128.0) < 1.05 * some("vllm", 96.0)


def test_tiles_follow_the_share_of_rows() -> None:
    at = {"attention_data": 1.0, "experts_per_token": 8.0, "experts": 256.0}
    local = Local(at, np.array([[1.0, 300.0, 1024.0, 65536.0]]))  # type: ignore[arg-type]
    assert marlin_tile(local).tolist() == [[8.0, 16.0, 32.0, 64.0]]
    assert fp4_tile(local).tolist() == [[16.0, 16.0, 32.0, 128.0]]


@pytest.mark.parametrize("folder", CARDS)
@pytest.mark.parametrize("precision", ["bf16", "fp8"])
def test_latent_attention_of_vllm_takes_what_somebody_measured(folder: str, precision: str) -> None:
    at = rows(folder, "latent", stack="vllm", precision=precision)
    error = np.abs(latent_seconds("vllm", CARDS[folder], at) / at["time_s"] - 1.0)
    assert np.median(error) < 0.1
