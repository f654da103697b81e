"""Step-time tables of engines, and the tokens their caches hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from costmodels.kernel_models.dataflow import Dataflow
from costmodels.kernel_models.operations import DeviceSymbols, Shapes
from costmodels.kernel_models.protocol import KernelTime
from costmodels.kernel_models.registry import find_kernel_model
from costmodels.machines.designs import design_symbols
from costmodels.serving.engine import CACHED, OUTSIDE, TOKENS, engines, kv_capacity
from costmodels.serving.experts import experts_touched, fp4_tile
from costmodels.serving.local import Local
from costmodels.serving.problem import serving_problem, serving_symbols
from costmodels.serving.stack import find_serving_stack, plans_ahead, serving_stack_names
from costmodels.step_tables import Batch, StepTables, step_time
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_accelerator, find_device
from spaces.problem import Problem
from spaces.serving_plan import serving_code

LLAMA = find("llama-3.1-8b")


def problem_of(model: str = "llama-3.1-8b", stack: str = "vllm", device: str = "H100", **fixed: float) -> Problem:
    return serving_problem(find(model), stack, find_device(device), fixed)


def columns_of(**values: list[float]) -> Columns:
    return Columns.from_values({name: np.array(column) for name, column in values.items()})


def decode_seconds(problem: Problem, columns: Columns, requests: float, length: float) -> np.ndarray:
    tables, index = engines(problem, columns)
    return step_time(tables, index, Batch(decode_requests=requests, decode_kv=requests * length))


@pytest.fixture(scope="module")
def llama() -> tuple[StepTables, np.ndarray]:
    return engines(problem_of(), columns_of(tensor=[1, 2, 4]))


def test_every_table_is_positive_and_grows_with_its_totals(llama: tuple[StepTables, np.ndarray]) -> None:
    tables, _ = llama
    for table in (tables.token_time, tables.sequence_time, tables.decode_time, tables.prefill_time):
        assert np.all(table > 0)
        assert np.all(np.diff(table, axis=-1) >= 0)


def test_more_tensor_ranks_shorten_a_large_step(llama: tuple[StepTables, np.ndarray]) -> None:
    tables, index = llama
    time = step_time(tables, index, Batch(prefill_queries=8192, prefill_pairs=8192**2 / 2, prompts_finished=1))
    assert np.all(np.diff(time) < 0)


@pytest.mark.parametrize("axis", ["data", "max_batch", "kv_fraction", "request_rate"])
def test_plans_that_differ_outside_the_step_share_an_engine(axis: str) -> None:
    assert axis in OUTSIDE
    tables, index = engines(problem_of(), columns_of(**{axis: [1, 2, 3], "tensor": [2, 2, 2]}))
    assert len(tables) == 1
    assert index.tolist() == [0, 0, 0]


def test_a_device_or_a_model_size_may_be_a_column_or_a_scalar() -> None:
    h100, h200 = (serving_symbols(find_device(name)) for name in ("H100", "H200"))
    several = {
        name: np.array([h100[name], h200[name]]) for name in h100 if name in h200 and name not in ("device", "generation")
    }
    both, index = engines(problem_of(), Columns.from_values({**several, "tensor": np.array([1, 1])}))
    batch = Batch(decode_requests=16.0, decode_kv=16e3)
    apart = [step_time(*engines(problem_of(device=name), columns_of(tensor=[1])), batch)[0] for name in ("H100", "H200")]
    assert step_time(both, index, batch) == pytest.approx(apart, rel=1e-12)
    assert apart[1] < apart[0]


def test_nothing_asked_is_nothing_answered() -> None:
    tables, index = engines(problem_of(), Columns.from_values({"tensor": np.array([], np.int64)}))
    assert len(index) == 0
    assert len(kv_capacity(problem_of(), Columns.from_values({"tensor": np.array([], np.int64)}))) == 0
    assert len(tables) == 0


def test_cached_tokens_are_the_memory_left_over_a_tokens_bytes() -> None:
    problem = problem_of(stack="torch-graph")
    tokens = kv_capacity(problem, columns_of(tensor=[1]))[0]
    per_token = 2 * LLAMA.layers * LLAMA.kv_heads * LLAMA.head_dim * 2
    weights = 2 * (LLAMA.parameters or 0)
    room = find_device("H100").memory_capacity - weights
    assert tokens * per_token < room
    assert tokens * per_token > 0.8 * room


def test_the_cache_is_divided_among_tensor_ranks_until_heads_run_out() -> None:
    """Eight key-value heads on sixteen ranks are held twice."""
    tokens = kv_capacity(problem_of(stack="torch-graph"), columns_of(tensor=[1, 2, 4, 8, 16]))
    per_rank = tokens[1:] / tokens[:-1]
    assert np.all(per_rank[:3] > 1.9)
    assert per_rank[3] < 1.15


def test_a_model_that_does_not_fit_caches_nothing() -> None:
    assert kv_capacity(problem_of("llama-3.1-70b"), columns_of(tensor=[1])).tolist() == [0.0]


def test_every_stack_fills_tables_for_every_kind_of_model() -> None:
    for stack in serving_stack_names():
        for model in ("gpt2", "gemma-2-9b", "deepseek-v2-lite", "mixtral-8x7b"):
            tables, _ = engines(problem_of(model, stack), columns_of(tensor=[1]))
            assert np.all(np.isfinite(tables.token_time))
            assert np.all(np.isfinite(tables.prefill_time))


def test_popular_experts_are_met_again() -> None:
    """One token reaches all it chose; alike popular, E·(1 − (1 − k/E)^B); less where some are more popular; never over E."""
    tokens = np.array([[1.0, 2.0, 16.0, 64.0, 4096.0]])

    def touched(shape: float) -> np.ndarray:
        fixed = {"devices": 1, "stack.popularity": shape}
        at = serving_problem(find("gpt-oss-120b"), "vllm", find_device("H100"), fixed).at(Columns(n=1, codes={}, levels={}))
        return np.asarray(experts_touched(Local(at, tokens)))[0]

    alike, skewed = touched(1e9), touched(2.0)
    np.testing.assert_allclose(alike, 128 * (1 - (1 - 4 / 128) ** tokens[0]), rtol=1e-6)
    assert skewed[0] == pytest.approx(4.0)
    assert np.all(skewed[1:] < alike[1:])
    assert np.all(np.diff(skewed) > 0)
    assert skewed[-1] < 128


def test_devices_have_their_own_defaults() -> None:
    budgets = {name: serving_problem(find("qwen3-8b"), "vllm", find_device(name)).scalars["token_budget"] for name in DEFAULTS}
    assert budgets == DEFAULTS


DEFAULTS = {"H100": 8192, "H200": 8192, "A100-80GB": 2048, "L40S": 2048}


def test_models_of_a_family_have_their_own_numbers() -> None:
    python, engine = (problem_of(name, "tensorrt-llm").scalars for name in ("deepseek-v3", "llama-3.1-8b"))
    assert python["stack.request_overhead"] > engine["stack.request_overhead"]
    assert python["stack.kernel_gap"] == engine["stack.kernel_gap"]


def test_an_unknown_stack_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="vllm"):
        find_serving_stack("vlm")
    assert find_serving_stack("trtllm").name == "tensorrt-llm"


def test_grids_ascend() -> None:
    assert np.all(np.diff(TOKENS) > 0)
    assert np.all(np.diff(CACHED) > 0)


class Slowed:
    """A kernel model of which every kernel takes `factor` times as long."""

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.reads = find_kernel_model().reads

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        time = find_kernel_model().predict(op, shapes, device)
        value, low, high = (self.factor * part for part in (time.value, time.low, time.high))
        return KernelTime(value=value, low=low, high=high, evidence=time.evidence)


class Counted:
    """The dataflow model, counting the rows it is asked for."""

    def __init__(self) -> None:
        self.rows, self.inner = 0, Dataflow()

    @property
    def reads(self) -> frozenset[str]:
        return self.inner.reads

    def predict(self, op: str, shapes: Shapes, device: DeviceSymbols) -> KernelTime:
        self.rows += len(next(iter(shapes.values())))
        return self.inner.predict(op, shapes, device)

    def seconds_on(self, op: str, shapes: Shapes, devices: Sequence[DeviceSymbols], device: np.ndarray) -> np.ndarray:
        self.rows += len(device)
        return self.inner.seconds_on(op, shapes, devices, device)


def test_engines_of_many_designs_are_each_as_alone_and_share_their_shapes() -> None:
    """Ranks of a design with a domain of two ask for shapes of their own; three alike ask for each shape once each."""
    problem, base = problem_of(device="H100"), find_accelerator("H100")
    designs = design_symbols(base, serving_symbols(find_device("H100")), base.columns({"clock": np.linspace(1e9, 2e9, 6)}), 8.0)
    designs |= {"device.domain": np.array([8.0, 2.0] * 3)}
    which = np.repeat(np.arange(6), 2)
    columns = Columns.from_values({"tensor": np.array([1, 4] * 6), **{name: values[which] for name, values in designs.items()}})
    together, index = engines(problem, columns, Dataflow())
    for i in (0, 1, 3, 10, 11):
        own, _ = engines(problem, columns.take(np.array([i])), Dataflow())
        for name in ("token_time", "sequence_time", "decode_time", "prefill_time"):
            np.testing.assert_allclose(getattr(together, name)[index[i]], getattr(own, name)[0], rtol=1e-12, err_msg=name)
    for engine, alike in ((0, [0, 4, 8]), (1, [1, 5, 9])):
        one, three = Counted(), Counted()
        engines(problem, columns.take(np.array([engine])), one)
        engines(problem, columns.take(np.array(alike)), three)
        assert three.rows == 3 * one.rows > 0


def test_tables_of_a_forgotten_kernel_model_are_never_taken_for_anothers() -> None:
    """A new model often comes to live where the last one did, under the same `id`."""
    problem, columns = problem_of(), columns_of(tensor=[1.0])
    found = [float(engines(problem, columns, Slowed(factor))[0].token_time[0, 0]) for factor in (1.0, 2.0, 4.0, 8.0)]
    assert found == sorted(set(found))


@pytest.mark.parametrize("stages", [2, 4])
def test_stages_that_wait_for_each_other_lengthen_every_step(stages: int) -> None:
    """A ring: each of p batches in flight waits for all p stages; a chain: for each stage once."""
    fixed = {"devices": stages, "input_tokens": 1000, "output_tokens": 100, "pipeline": stages}

    def seconds(ring: float, stage: float, requests: float = 8.0) -> float:
        own = {**fixed, "stack.pipeline.ring": ring, "stack.pipeline.stage": stage}
        bound = serving_problem(find("llama-3.1-8b"), "sglang", find_device("H100"), own)
        tables, row = engines(bound, Columns.from_values({"tensor": np.array([1])}))
        return float(step_time(tables, row, Batch(decode_requests=requests, decode_kv=1000.0 * requests))[0])

    alone = seconds(0.0, 0.0)
    assert seconds(1e-3, 0.0) - alone == pytest.approx(stages**2 * 1e-3, rel=0.02)
    assert seconds(0.0, 1e-3) - alone == pytest.approx(stages * 1e-3, rel=0.02)
    assert seconds(1e-3, 0.0, 1.0) - seconds(0.0, 0.0, 1.0) == pytest.approx(stages * 1e-3, rel=0.02)


def test_pipelines_plan_no_step_ahead() -> None:
    at = {"stack.schedules_ahead": 1.0, "pipeline": np.array([1, 2, 4])}
    assert np.array_equal(plans_ahead(at), [1.0, 0.0, 0.0])


def test_experts_in_four_bits_are_slow_where_triton_widens_them() -> None:
    """Where the matrix units bound them, and not where their bytes do."""

    def seconds(share: float, tokens: float) -> float:
        fixed = {"precision": float(serving_code("precision", "nvfp4")), "kernel.grouped.fp4": share, "devices": 1}
        problem = problem_of("gpt-oss-20b", "tensorrt-llm", **fixed)
        tables, row = engines(problem, columns_of(tensor=[1]))
        batch = Batch(prefill_queries=tokens, prefill_pairs=tokens**2 / 2)
        return float(step_time(tables, row, batch)[0])

    assert seconds(0.3, 8192.0) > 1.5 * seconds(0.85, 8192.0)
    assert seconds(0.3, 4.0) == pytest.approx(seconds(0.85, 4.0), rel=0.05)


def test_rows_of_experts_fill_whole_tiles() -> None:
    """Rows that fill tiles take time where the matrix units bound a step; a step of a few tokens is its bytes'."""

    def seconds(tile: float, tokens: float) -> float:
        fixed = {"stack.expert_tile.more": tile, "stack.expert_tile.fewer": tile, "devices": 4, "tensor": 4, "expert_tensor": 4}
        tables, row = engines(problem_of("qwen3-235b-a22b", "vllm", "A100-80GB", **fixed), columns_of(data=[1]))
        return float(step_time(tables, row, Batch(decode_requests=tokens, decode_kv=tokens))[0])

    assert seconds(128.0, 2048.0) > 1.05 * seconds(64.0, 2048.0) > 1.05 * 1.05 * seconds(8.0, 2048.0)
    assert seconds(64.0, 2.0) == pytest.approx(seconds(16.0, 2.0), rel=0.1)


def test_experts_in_four_bits_run_in_tiles_of_their_share_of_rows() -> None:
    problem = problem_of("gpt-oss-20b")  # 4 of 32 experts a token
    tiles = fp4_tile(Local(problem.at(columns_of(tensor=[1])), np.array([[8.0, 256.0, 300.0, 4096.0]])))
    assert tiles.tolist() == [[16.0, 32.0, 64.0, 128.0]]


def test_what_sampling_is_tried_out_with_leaves_less_cache() -> None:
    plan = {"tensor": 4, "expert_tensor": 4, "devices": 4, "precision": float(serving_code("precision", "fp8"))}
    tokens = {
        (stack, most): float(kv_capacity(problem_of("qwen3-235b-a22b", stack, **plan, max_batch=most), columns_of(data=[1]))[0])
        for stack in ("vllm", "sglang")
        for most in (64.0, 1024.0)
    }
    assert tokens["vllm", 1024.0] < 0.95 * tokens["vllm", 64.0]  # 179,000 and 367,000 in vllm-project/vllm#21348
    assert tokens["sglang", 1024.0] == pytest.approx(tokens["sglang", 64.0])
