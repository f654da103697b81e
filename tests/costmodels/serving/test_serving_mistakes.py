"""Mistakes that serving models nearby make, one check each, and the proof that a check fails when its mistake is put back."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from costmodels.serving import attention, capacity, engine, experts, load, products, step_graph, waiting
from costmodels.serving.calls import Call
from costmodels.serving.engine import engines, kv_capacity
from costmodels.serving.problem import serving_problem
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.steady_state import ServingModel
from costmodels.step_tables import Batch, step_time
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_device


@pytest.fixture(autouse=True)
def _no_tables_from_before() -> Iterator[None]:
    """Tables filled with a mistake in place are not taken from memory after it, nor the other way round."""
    engine._memory.cache_clear()
    yield
    engine._memory.cache_clear()


Check = Callable[[], None]
Mistake = Callable[[pytest.MonkeyPatch], None]
ONE = {"devices": 1, "input_tokens": 1000, "output_tokens": 400}


def problem(model: str = "llama-3.1-8b", stack: str = "vllm", **fixed: float) -> Any:
    return serving_problem(find(model), stack, find_device("H100"), {**ONE, **fixed})


def rows(**values: list[float]) -> Columns:
    return Columns.from_values({name: np.array(column) for name, column in values.items()})


def decode(model: str, columns: Columns, requests: float, length: float) -> Any:
    tables, row = engines(problem(model), columns)
    return step_time(tables, row, Batch(decode_requests=requests, decode_kv=requests * length))


# ---- the checks ---------------------------------------------------------------------------------------------------------


def check_decode_takes_longer_with_a_longer_context() -> None:
    """The cache is read every step: 32 requests of 8,192 tokens move 34 GB more than 32 of 64."""
    short, long = (float(decode("llama-3.1-8b", rows(tensor=[1]), 32, length)[0]) for length in (64, 8192))
    more = 32 * (8192 - 64) * 131072 / find_device("H100").memory_bandwidth
    assert long - short > 0.9 * more


def check_the_cache_counts_grouped_heads() -> None:
    """A token of Llama-3.1-70B takes 327,680 bytes, an eighth of what 64 heads would."""
    at = problem("llama-3.1-70b").at(rows(tensor=[1]))
    held = capacity.capacity(find("llama-3.1-70b"), find_serving_stack("vllm"), at)
    assert held.token[0] == 2 * 80 * 8 * 128 * 2


def check_a_pipeline_divides_the_cache_by_layers() -> None:
    """Two stages hold forty layers' keys and values each: a token takes half, and weights leave more room."""
    tokens = kv_capacity(problem("llama-3.1-70b"), rows(tensor=[4, 4], pipeline=[1, 2]))
    assert tokens[1] > 2 * tokens[0]


def check_experts_touched_grow_with_the_batch() -> None:
    """One token meets 8 of 128 experts, 64 tokens nearly all: their weights are read too."""
    one, many = (float(decode("qwen3-30b-a3b", rows(tensor=[1]), batch, 16)[0]) for batch in (1, 64))
    experts = 128 * 3 * 2048 * 768 * 2 * 48 / find_device("H100").memory_bandwidth
    assert many - one > 0.7 * experts


def check_an_expert_has_its_own_width() -> None:
    """30 billion parameters, not those of 128 dense layers."""
    tables, _ = engines(problem("qwen3-30b-a3b"), rows(tensor=[1]))
    full = float(tables.token_time[0, np.searchsorted(tables.tokens, 1024)])
    assert full < 6 * 61e9 / find_device("H100").memory_bandwidth


def check_narrow_weights_are_quicker_as_well_as_smaller() -> None:
    """Decode at batch 1 reads the weights and little else."""
    wide, eight, four = decode("llama-3.1-8b", rows(precision=[2, 3, 7]), 1, 64)
    tokens = kv_capacity(problem(), rows(precision=[2, 3, 7]))
    assert tokens[0] < tokens[1] < tokens[2]
    assert eight < 0.75 * wide
    assert four < eight


def check_the_first_token_waits_in_a_queue() -> None:
    """At nine tenths of the highest rate a prompt waits for others; at a hundredth for none."""
    model, own = ServingModel(), problem()
    highest = model.evaluate(own, rows(request_rate=[1e6])).value["request_rate"][0]
    first = model.evaluate(own, rows(request_rate=[0.01 * highest, 0.9 * highest])).value["ttft"]
    assert first[1] > 1.5 * first[0]


def check_replicas_keep_their_own_figures() -> None:
    """Plans side by side: each row its own, whatever the rows beside it."""
    together = ServingModel().evaluate(problem(request_rate=4.0), rows(data=[1, 2, 4], devices=[1, 2, 4]))
    for i, n in enumerate((1, 2, 4)):
        alone = ServingModel().evaluate(problem(request_rate=4.0), rows(data=[n], devices=[n]))
        assert together.value["ttft"][i] == pytest.approx(alone.value["ttft"][0], rel=1e-12)
    assert len(set(together.value["tpot"].tolist())) == 3


def check_decode_is_not_prefill_carried_on() -> None:
    """A decoded token costs a hundred times a prefilled one: weights are read for few rows."""
    tables, row = engines(problem(stack="torch-graph"), rows(tensor=[1]))
    whole = step_time(tables, row, Batch(prefill_queries=4096.0, prefill_pairs=4096.0**2 / 2, prompts_finished=1.0))[0]
    token = step_time(tables, row, Batch(decode_requests=1.0, decode_kv=4096.0))[0]
    assert token > 120 * whole / 4096


# ---- the mistakes -------------------------------------------------------------------------------------------------------


def context_ignored(patch: pytest.MonkeyPatch) -> None:
    original = attention.decode_calls
    patch.setattr("costmodels.serving.engine.decode_calls", lambda a, s, at, r, kv: original(a, s, at, r, kv * 0 + r * 512))


def every_head_cached(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(capacity, "values_per_token", lambda _, at: 2.0 * np.asarray(at["heads"]) * at["head_dim"] / at["tensor"])


def cache_of_all_layers_on_every_stage(patch: pytest.MonkeyPatch) -> None:
    original = capacity._token_bytes
    patch.setattr(capacity, "_token_bytes", lambda a, s, at: original(a, s, at) * np.asarray(at["pipeline"]).reshape(-1))


def experts_of_one_token(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(experts, "experts_touched", lambda at: np.asarray(at["experts_per_token"], np.float64) / at["expert"])


def experts_as_wide_as_dense(patch: pytest.MonkeyPatch) -> None:
    original = products.weight_product

    def wide(local: Any, m: Any, n: Any, k: Any, groups: Any, quantised: bool, **rest: Any) -> Call:
        factor = local["ffn"] / local["moe_ffn"] if np.any(np.asarray(groups) > 1) else 1.0
        return original(local, m, n * factor, k, groups, quantised, **rest)

    patch.setattr(experts, "weight_product", wide)


def formats_of_memory_alone(patch: pytest.MonkeyPatch) -> None:
    for room in (products, experts, step_graph):
        patch.setattr(room, "compute_format", lambda p, _: (np.full(np.shape(p), "bf16"), np.zeros(np.shape(p), bool)))


def no_queue(patch: pytest.MonkeyPatch) -> None:
    def served_at_once(*arguments: Any) -> Any:
        return arguments[6][:1] + 0 * arguments[0]  # `service`, at any rate

    patch.setattr(waiting, "open_loop", served_at_once)
    patch.setattr(waiting, "admission", lambda running, *_: 0.0 * running)


def the_last_replica_s_figures(patch: pytest.MonkeyPatch) -> None:
    original = load.at
    patch.setattr(load, "at", lambda curve, row, place, share, name: original(curve, row, place, share, name)[-1] + 0 * share)


def decode_at_prefill_s_rate(patch: pytest.MonkeyPatch) -> None:
    original = step_graph.token_calls

    def carried(a: Any, s: Any, at: Any, tokens: Any) -> Any:
        for call in original(a, s, at, np.full_like(tokens, 4096.0)):
            yield Call(op=call.op, shape=call.shape, times=call.times * tokens / 4096.0, floor=call.floor, cap=call.cap)

    patch.setattr("costmodels.serving.engine.token_calls", carried)


MISTAKES: dict[Check, Mistake] = {
    check_decode_takes_longer_with_a_longer_context: context_ignored,
    check_the_cache_counts_grouped_heads: every_head_cached,
    check_a_pipeline_divides_the_cache_by_layers: cache_of_all_layers_on_every_stage,
    check_experts_touched_grow_with_the_batch: experts_of_one_token,
    check_an_expert_has_its_own_width: experts_as_wide_as_dense,
    check_narrow_weights_are_quicker_as_well_as_smaller: formats_of_memory_alone,
    check_the_first_token_waits_in_a_queue: no_queue,
    check_replicas_keep_their_own_figures: the_last_replica_s_figures,
    check_decode_is_not_prefill_carried_on: decode_at_prefill_s_rate,
}


@pytest.mark.parametrize("check", MISTAKES, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_mistake_is_not_made(check: Check) -> None:
    check()


@pytest.mark.parametrize("check", MISTAKES, ids=lambda check: check.__name__.removeprefix("check_"))
def test_the_mistake_would_be_caught(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    MISTAKES[check](monkeypatch)
    with pytest.raises(AssertionError):
        check()
