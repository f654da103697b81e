"""The published facts: their split, their completeness, and what their figures say about each other."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import groupby

import pytest

from costmodels.comparison import (
    REFUSED_ERROR,
    Comparison,
    compare,
    error_statistics,
    median_of_source_medians,
    rank_agreement,
)
from costmodels.published import (
    CONTRACT,
    CONVERSIONS,
    DIMENSIONS,
    Fact,
    MissingQuantity,
    StepFlops,
    best_rows,
    implied_step_time,
    memory_errors,
    memory_rows,
    read_facts,
    to_canonical,
    to_printed,
)

FACTS = read_facts()
USABLE = [fact for fact in FACTS if fact.usable]
CALIBRATION = {"mlm21", "mtnlg", "bloom", "llama3", "llama31", "mpt", "mbridge"}
PRESET_ONLY = {"deepseek-v3", "qwen3-30b-a3b", "qwen3-235b-a22b", "gpt-oss-120b"}
STACKS = {
    "megatron-2022", "megatron", "torchtitan-eager", "torchtitan-compile", "llm-foundry", "deepspeed", "torch-eager",
    "torch-compile", "torch-graph",
}  # fmt: skip
CONSISTENT = 0.03
"""Two figures of one configuration may differ by this much: many are printed with two digits."""


def integer(fact: Fact, name: str, default: int | None = None) -> int:
    text = fact.inputs[name]
    return int(text) if text or default is None else default


def conversion_inputs(fact: Fact) -> dict[str, str]:
    return {**fact.inputs, "trained_tokens": str(fact.trained_tokens)}


def step_flops(fact: Fact) -> StepFlops:
    """FLOP per step by the formula of Narayanan et al. 2021 eq. 3, in its general form; NaN for mixtures of experts.

    Forward matrix FLOPs per token: query, key, value and output projections, 4·s·h of scores, two or three products of the
    feed-forward block, and the head. Three times that, plus the layers' forward again under full recomputation and the
    scores' under selective.
    """
    if not all(fact.inputs[name] for name in DIMENSIONS):
        return StepFlops()
    layers, hidden, heads, kv_heads, ffn, vocab = (integer(fact, name) for name in DIMENSIONS)
    seq = integer(fact, "seq")
    products = 3 if fact.inputs["gated"] == "true" else 2
    scores = 4 * seq * hidden
    layer = 4 * hidden * hidden + 4 * hidden * hidden * kv_heads / heads + scores + 2 * products * hidden * ffn
    head = 2 * hidden * vocab
    tokens = seq * integer(fact, "global_batch")
    again = {"full": layer, "selective": scores}.get(fact.inputs["recompute"].removesuffix("+sp"), 0.0)
    return StepFlops(
        model=3 * tokens * (layers * layer + head),
        hardware=tokens * (3 * (layers * layer + head) + layers * again),
        causal=3 * tokens * (layers * (layer - scores / 2) + head),
    )


# --- the file --------------------------------------------------------------------------------------------------------


def test_one_row_per_configuration_and_metric() -> None:
    keys = [(fact.id, fact.printed_metric) for fact in FACTS]
    assert len(set(keys)) == len(keys) == 802


def test_the_split_is_by_source_and_disjoint() -> None:
    splits = defaultdict(set)
    for fact in FACTS:
        splits[fact.source].add(fact.split)
    assert all(len(names) == 1 for names in splits.values())
    assert {source for source, names in splits.items() if names == {"calibration"}} == CALIBRATION
    assert set().union(*splits.values()) == {"calibration", "held-out"}


def test_every_row_is_cited_and_every_unusable_row_says_why() -> None:
    for fact in FACTS:
        assert fact.citation, fact.id
        assert fact.usable == (not fact.why), fact.id
        assert fact.metric == CONVERSIONS[fact.printed_metric].metric, fact.id
        assert fact.unit == CONVERSIONS[fact.printed_metric].unit, fact.id


def test_a_configuration_has_one_set_of_inputs() -> None:
    inputs = defaultdict(set)
    for fact in USABLE:
        inputs[fact.id].add(tuple(fact.inputs[name] for name in CONTRACT))
    assert {name for name, distinct in inputs.items() if len(distinct) > 1} == set()


@pytest.mark.parametrize("fact", best_rows(FACTS), ids=lambda fact: fact.id)
def test_usable_rows_have_what_the_contract_needs(fact: Fact) -> None:
    tp, pp, dp, cp = (integer(fact, name, 1) for name in ("tp", "pp", "dp", "cp"))
    devices = integer(fact, "n_gpus")
    if fact.inputs["dp"]:
        assert devices == tp * pp * dp * cp
    ranks = devices // (tp * pp * cp)
    assert ranks * tp * pp * cp == devices
    assert integer(fact, "global_batch") % (ranks * integer(fact, "micro_batch", 1)) == 0
    assert integer(fact, "seq") > 0
    assert fact.inputs["gpu"]
    assert fact.generation != "other"
    assert fact.inputs["precision"] in {"fp16", "bf16", "fp8", "mxfp8", "nvfp4"}
    assert fact.inputs["recompute"].removesuffix("+sp") in {"", "none", "selective", "full"}
    assert fact.inputs["recompute"].endswith("+sp") <= (fact.inputs["sequence_parallel"] == "true")
    assert fact.inputs["zero_stage"] in {"", "0", "1", "2", "3"}
    assert fact.inputs["stack"] in STACKS
    assert (fact.inputs["schedule"] == "interleaved") == (integer(fact, "vpp", 1) > 1)
    given = [bool(fact.inputs[name]) for name in (*DIMENSIONS, "gated", "tied_embeddings")]
    assert all(given) or (fact.inputs["model"] in PRESET_ONLY and not any(given))
    assert fact.value > 0


# --- conversions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fact", [f for f in FACTS if f.metric != "plan"], ids=lambda f: f"{f.id}:{f.printed_metric}")
def test_unit_conversions_invert_and_give_the_stored_value(fact: Fact) -> None:
    printed = float(fact.printed_value)
    row = conversion_inputs(fact)
    canonical = to_canonical(printed, fact.printed_metric, fact.printed_unit, row)
    assert canonical == pytest.approx(fact.value, rel=1e-8)
    assert to_printed(canonical, fact.printed_metric, fact.printed_unit, row) == pytest.approx(printed, rel=1e-12)


def test_conversions_by_hand() -> None:
    row = {"global_batch": "1536", "seq": "2048", "n_gpus": "384", "trained_tokens": "3e11"}
    assert to_canonical(90, "days_for_300B_tokens", "days", row) == pytest.approx(81.537, rel=1e-4)
    assert to_canonical(180_000, "gpu_hours_per_trillion_tokens", "H800 h / 1T tok", {"trained_tokens": "1e12"}) == (
        pytest.approx(1543.2, rel=1e-4)
    )
    assert to_canonical(1, "tokens_per_day_B", "B tok/day", {"n_gpus": "1"}) == pytest.approx(11574.07, rel=1e-6)
    assert to_canonical(120, "model_state_memory", "GB/GPU", {}) == pytest.approx(111.7587, rel=1e-6)
    with pytest.raises(MissingQuantity, match="n_gpus"):
        to_canonical(1.0, "tokens_per_s", "tok/s", {})


# --- figures of one configuration agree ------------------------------------------------------------------------------


def formula_applies(fact: Fact) -> bool:
    """Whether `step_flops` is the count the source used; the exceptions are tested by their own counts below."""
    return fact.source not in {"mpt", "dsv3"}


@pytest.mark.parametrize("name", sorted({f.id for f in USABLE if CONVERSIONS[f.printed_metric].rank is not None}))
def test_published_figures_of_a_configuration_agree(name: str) -> None:
    rows = [f for f in USABLE if f.id == name and CONVERSIONS[f.printed_metric].rank is not None]
    flops = step_flops(rows[0]) if formula_applies(rows[0]) else StepFlops()
    times = {f.printed_metric: implied_step_time(f, flops) for f in rows}
    known = {metric: time for metric, time in times.items() if math.isfinite(time)}
    assert known
    assert max(known.values()) / min(known.values()) - 1 <= CONSISTENT, known


def test_korthikanti_hardware_utilisation_adds_three_times_the_scores() -> None:
    """Why its HFU rows are not used: eq. 9 of the paper adds 12·s·h per token and layer where the recomputed part is 4·s·h."""
    times = {fact.id: fact for fact in FACTS if fact.source == "kort22" and fact.metric == "step_time"}
    rows = [fact for fact in FACTS if fact.source == "kort22" and fact.metric == "hfu"]
    assert len(rows) == 4
    for fact in rows:
        count = step_flops(fact)
        printed_count = count.model + 3 * (count.hardware - count.model)
        device_seconds = times[fact.id].value * integer(fact, "n_gpus")
        assert not fact.usable
        assert printed_count / (device_seconds * fact.peak_tflops * 1e12) == pytest.approx(fact.value / 100, rel=0.01)


def test_throughput_increases_are_ratios_of_iteration_times() -> None:
    times = {fact.id: fact.value for fact in FACTS if fact.printed_metric == "iteration_time"}
    increases = [fact for fact in FACTS if fact.metric == "throughput_increase"]
    assert len(increases) == 4
    for fact in increases:
        ratio = times[fact.id.replace("selsp", "full")] / times[fact.id]
        assert 100 * (ratio - 1) == pytest.approx(fact.value, abs=0.1)


def test_layer_times_are_forward_plus_backward() -> None:
    rows = [fact for fact in FACTS if fact.id.startswith("kort22-t4")]
    for _, group in groupby(rows, key=lambda fact: fact.id):
        forward, backward, total = (fact.value for fact in group)
        assert forward + backward == pytest.approx(total, abs=1e-4)


def test_mpt_utilisation_counts_six_per_parameter_with_its_positions() -> None:
    """MPT prints 6·N + 12·L·h·s per token over 312 TFLOP/s, N including the learned positions (s·h)."""
    rates = {fact.id: fact.value for fact in FACTS if fact.source == "mpt" and fact.metric == "tokens_per_s_per_gpu"}
    shares = [fact for fact in FACTS if fact.source == "mpt" and fact.metric == "mfu"]
    assert len(shares) == len(rates) == 78
    for fact in shares:
        layers, hidden, _, _, ffn, vocab = (integer(fact, name) for name in DIMENSIONS)
        seq = integer(fact, "seq")
        parameters = layers * (4 * hidden**2 + 2 * hidden * ffn) + (vocab + seq) * hidden
        flops = 6 * parameters + 12 * layers * hidden * seq
        assert rates[fact.id] * flops / (fact.peak_tflops * 1e12) == pytest.approx(fact.value / 100, rel=CONSISTENT)


def test_megatron_bridge_rates_count_causal_attention() -> None:
    """Why its TFLOP/s rows are not used: they match half the scores, not all of them."""
    rows = [f for f in FACTS if f.source.startswith("mbridge") and all(f.inputs[name] for name in DIMENSIONS)]
    for rate in (f for f in rows if f.metric == "model_tflops_per_gpu"):
        assert not rate.usable
        tokens = next(f for f in rows if f.id == rate.id and f.metric == "tokens_per_s_per_gpu")
        seconds = implied_step_time(tokens) * integer(rate, "n_gpus") * 1e12
        assert step_flops(rate).causal / seconds == pytest.approx(rate.value, rel=CONSISTENT)


# --- choosing and judging --------------------------------------------------------------------------------------------


def test_one_configuration_counts_once_under_its_best_metric() -> None:
    best = best_rows(FACTS)
    assert len({fact.id for fact in best}) == len(best)
    for fact in best:
        rank = CONVERSIONS[fact.printed_metric].rank
        others = [CONVERSIONS[f.printed_metric].rank for f in USABLE if f.id == fact.id]
        assert rank == min(other for other in others if other is not None)
    assert {f.metric for f in best if f.source.startswith("mbridge")} == {"tokens_per_s_per_gpu"}
    assert {f.metric for f in best if f.source == "megascale"} == {"step_time"}


def perfect_prediction(fact: Fact, scale: float = 1.0) -> dict[str, float | str]:
    """A prediction row whose FLOP count is the formula's and whose time is `scale` × the published one."""
    count = step_flops(fact)
    time = scale * implied_step_time(fact, count)
    seconds = time * integer(fact, "n_gpus") * 1e12
    return {
        "step_time_s": time,
        "step_time_s_low": 0.9 * time,
        "step_time_s_high": 1.2 * time,
        "model_tflops_per_gpu": count.model / seconds,
        "hw_tflops_per_gpu": count.hardware / seconds,
        "mfu": 0.4,
        "mfu_causal": 0.4 * count.causal / count.model,
        "error": "",
    }


@pytest.mark.parametrize("scale", [1.0, 1.25, 0.8])
def test_errors_are_in_time_for_every_metric(scale: float) -> None:
    """Predicting 25 % too slow is +25 %, whether the source printed seconds, tokens, FLOP rates or utilisation."""
    facts = [f for f in USABLE if CONVERSIONS[f.printed_metric].rank is not None and all(f.inputs[d] for d in DIMENSIONS)]
    assert {f.metric for f in facts} >= {"step_time", "tokens_per_s_per_gpu", "model_tflops_per_gpu", "mfu", "hfu"}
    compared = compare(facts, [perfect_prediction(fact, scale) for fact in facts])
    assert all(c.error == pytest.approx(scale - 1) for c in compared)
    statistics = error_statistics(compared)
    assert statistics.bias == pytest.approx(100 * (scale - 1))
    assert statistics.median == pytest.approx(100 * abs(scale - 1))
    assert statistics.coverage == (100.0 if scale == 1.0 else 0.0)
    assert statistics.width == pytest.approx(30.0)


def test_a_refused_row_counts_as_an_error_over_ten_percent() -> None:
    facts = best_rows(FACTS)[:3]
    predictions = [perfect_prediction(facts[0]), {"error": "no such device"}, {"error": "", "step_time_s": ""}]
    compared = compare(facts, predictions)
    assert [c.refused for c in compared] == ["", "no such device", "no step time"]
    statistics = error_statistics(compared)
    assert (statistics.rows, statistics.predicted, statistics.refused) == (3, 1, 2)
    assert statistics.within_10 == pytest.approx(100 / 3)
    assert statistics.median == 100 * REFUSED_ERROR
    assert math.isnan(error_statistics([]).median)


def comparison(fact: Fact, published: float, predicted: float) -> Comparison:
    return Comparison(fact=fact, published=published, predicted=predicted, low=predicted, high=predicted)


def test_the_headline_median_weighs_sources_equally() -> None:
    facts = {source: next(f for f in USABLE if f.source == source) for source in ("mpt", "kort22", "tt")}
    compared = [comparison(facts["mpt"], 1.0, 1.5)] * 9
    compared += [comparison(facts["kort22"], 1.0, 1.02), comparison(facts["tt"], 1.0, 0.96)]
    assert median_of_source_medians(compared) == pytest.approx(4.0)


def test_rank_agreement_pairs_plans_of_one_job() -> None:
    slow = next(f for f in USABLE if f.id == "kort22-t5-22B-full")
    fast = next(f for f in USABLE if f.id == "kort22-t5-22B-selsp" and f.metric == "step_time")
    adapters = replace(fast, inputs={**fast.inputs, "trainable": "lora"})
    other_job = replace(fast, inputs={**fast.inputs, "seq": "4096"})
    right = rank_agreement([comparison(slow, 1.42, 1.5), comparison(fast, 1.1, 1.2), comparison(other_job, 9.0, 1.0)])
    assert rank_agreement([comparison(slow, 1.42, 1.5), comparison(adapters, 0.9, 0.8)]).pairs == 0
    assert (right.pairs, right.agreed, right.share) == (1, 1, 100.0)
    assert rank_agreement([comparison(slow, 1.42, 1.0), comparison(fast, 1.1, 1.2)]).share == 0.0
    assert rank_agreement([comparison(slow, 1.14, 1.5), comparison(fast, 1.1, 1.2)]).pairs == 0
    refused = Comparison(fact=slow, published=1.42, refused="why not")
    assert rank_agreement([refused, comparison(fast, 1.1, 1.2)]).agreed == 0


def test_memory_figures_are_whole_and_in_bytes() -> None:
    rows = memory_rows(FACTS)
    by_id = {row.fact.id: row for row in rows}
    assert by_id["kort22-f1-22B-selsp"].bytes == pytest.approx((45.5625 + 9.5625) * 2**30)
    assert by_id["kort22-f1-22B-none"].bytes == pytest.approx((45.5625 + 59.25) * 2**30)
    assert {row.fact.source: row.column for row in rows} == {"kort22": "peak_memory_bytes", "tt": "device_memory_bytes"}
    assert (len(rows), len(by_id)) == (25, 25)
    predictions = [{row.column: 1.1 * row.bytes, "error": ""} for row in rows]
    assert memory_errors(rows, predictions) == pytest.approx([0.1] * len(rows))
    assert math.isnan(memory_errors(rows[:1], [{"error": "no"}])[0])
