"""Accuracy on published results does not worsen beyond what the engine is held to; `dse validate` says what it is."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Iterator

import pytest

from costmodels.comparison import rank_agreement
from costmodels.published import JUDGED_GENERATIONS, read_facts
from dse.prediction import predict_rows
from dse.validation import Validation, bars, memory_by_source, validate
from tests.dse.conftest import Finished

pytestmark = pytest.mark.slow

Run = Callable[..., Finished]


@pytest.fixture(scope="module", autouse=True)
def _asked_once() -> Iterator[None]:
    """Rows of serving are predicted once for all of these tests: a row's answer hangs on nothing but the row."""
    known: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}

    def remembered(rows: list[dict[str, str]], kind: str) -> list[dict[str, str]]:
        keys = [tuple(sorted(row.items())) for row in rows]
        new = {key: row for key, row in zip(keys, rows, strict=True) if key not in known}
        known.update(zip(new, predict_rows(list(new.values()), kind), strict=True))
        return [known[key] for key in keys]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dse.validation.predict_rows", remembered)
        yield


@pytest.fixture(scope="module")
def held_out(_asked_once: None) -> Validation:
    return validate()


@pytest.fixture(scope="module")
def everything(_asked_once: None) -> Validation:
    return validate("all")


# --- what accuracy is held to -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("median of the sources' medians", -math.inf, 8.0),
        ("mean over all rows", -math.inf, 12.0),
        ("largest median of a source", -math.inf, 15.0),
        ("rows answered", 90.0, math.inf),
        ("Korthikanti 2022 Table 5, mean", -math.inf, 5.0),
        ("plans of one job in the right order", 85.0, math.inf),
        ("90 % intervals that hold the truth", 80.0, math.inf),
    ],
)
def test_held_out_rows_are_predicted_as_well_as_asked(held_out: Validation, name: str, least: float, most: float) -> None:
    bar = next(bar for bar in bars(held_out) if bar.name.startswith(name))
    assert least <= bar.least
    assert bar.most <= most
    assert least <= bar.value <= most, str(bar)


def test_every_source_has_a_median_of_at_most_fifteen_percent(held_out: Validation) -> None:
    judged = [s for s in held_out.sources if JUDGED_GENERATIONS & set(s.generation.split("+"))]
    assert len(judged) >= 7
    worse = {s.source: round(s.errors.median, 1) for s in judged if not s.errors.median <= 15.0}
    assert not worse, f"median error above 15 %: {worse}"


def test_of_two_plans_for_one_job_the_faster_is_put_first(everything: Validation) -> None:
    found = everything.agreement
    assert found.share >= 85.0, f"{found.agreed} of {found.pairs} pairs in the right order, {found.share:.1f} %"


def test_of_two_serving_plans_on_equal_accelerators_the_faster_is_put_first(everything: Validation) -> None:
    for name, least in (("plans", 10), ("replicas", 40)):
        found = everything.serving_order(name)
        assert found.pairs >= least
        assert found.share >= 75.0, f"{name}: {found.agreed} of {found.pairs} pairs"
    assert everything.serving_order("replicas", "held-out").pairs <= everything.serving_order("replicas").pairs


def test_nothing_asked_is_missed_in_silence(held_out: Validation) -> None:
    missed = [str(bar) for bar in bars(held_out) if not bar.met]
    assert not missed, "; ".join(missed)


# --- how it is counted ------------------------------------------------------------------------------------------------


def test_calibration_rows_never_count_as_held_out(held_out: Validation, everything: Validation) -> None:
    assert {c.fact.split for c in held_out.compared} == {"held-out"}
    assert {c.fact.id for c in everything.judged} == {c.fact.id for c in held_out.judged}
    assert len(everything.compared) == len(held_out.compared) + len(validate("calibration").compared)


def test_a_refused_row_counts_as_an_error_and_is_named() -> None:
    refusing = validate(predictor=lambda rows: [{"error": "not today"} for _ in rows])
    assert all(s.errors.median == 100.0 and s.errors.refused == s.errors.rows for s in refusing.sources)
    assert not any(bar.met for bar in bars(refusing))
    assert "refused: 17 of tt: not today" in str(refusing)


def test_a_slower_engine_shows_as_bias_and_misses_its_bars() -> None:
    def slow(rows: list[dict[str, str]]) -> list[dict[str, str]]:
        return [{**row, "step_time_s": f"{1.3 * float(row['step_time_s']):.9g}"} for row in predict_rows(rows)]

    found = {bar.name: bar for bar in bars(validate(predictor=slow))}
    assert not found["median of the sources' medians"].met
    assert "missed" in str(found["mean over all rows"])


def test_no_rows_are_no_bars() -> None:
    nothing = validate(facts=[])
    assert (nothing.sources, nothing.groups, bars(nothing), memory_by_source(nothing)) == ((), (), (), ())
    assert "no two plans" in str(nothing)


def test_other_generations_are_reported_and_not_judged() -> None:
    facts = [fact for fact in read_facts() if fact.source == "tt"]
    future = [dataclasses.replace(fact, inputs={**fact.inputs, "gpu": "B200-192GB-SXM"}) for fact in facts]
    found = validate(facts=future)
    assert bars(found) == ()
    assert {"Blackwell"} <= {group.generation for group in found.groups}


def test_blackwell_is_reported_whole(held_out: Validation) -> None:
    """By datasheet, none refused; in the order of plans it counts like any other."""
    rows = [c for c in held_out.compared if c.fact.generation == "Blackwell"]
    assert len(rows) >= 60
    assert not [c.fact.id for c in rows if c.refused]
    assert {device.split("-")[0] for device in (c.fact.inputs["gpu"] for c in rows)} == {"GB300", "GB200", "B300", "B200"}
    assert rank_agreement(rows).share >= 85.0


def test_memory_is_compared_by_source(everything: Validation) -> None:
    rows = memory_by_source(everything)
    assert {row.published for row in rows} == {"reserved", "analytical"}
    assert all(row.refused == 0 and math.isfinite(row.median) for row in rows)


# --- the command ------------------------------------------------------------------------------------------------------


def test_json_is_one_entry_a_source_in_percent(dse: Run, held_out: Validation) -> None:
    done = dse("validate", "--json")
    assert done.code == 0
    entries = json.loads(done.out.splitlines()[-1])
    every = (*held_out.sources, *held_out.serving_sources)
    assert [entry["source"] for entry in entries] == [source.source for source in every]
    for entry in entries:
        assert isinstance(entry["rows"], int)
        assert all(isinstance(entry[name], float) for name in ("median", "mean", "p90", "bias", "coverage"))
        assert 0 <= entry["coverage"] <= 100
        assert all(0 <= order["agreed"] <= order["pairs"] for order in entry["orders"].values())


def test_the_page_of_a_terminal_has_every_table(dse: Run) -> None:
    done = dse("validate", "--split", "all")
    assert done.code == 0
    tables, orders = ("By source", "By generation", "median of medians"), ("Order of plans", "Order of serving plans")
    for said in (*tables, *orders, "Ampere+Hopper", "kort22", "mlm21"):
        assert said in done.out
    assert max(map(len, done.out.splitlines())) <= 128


def test_an_unknown_split_is_refused(dse: Run) -> None:
    done = dse("validate", "--split", "heldout")
    assert (done.code, "the nearest is held-out" in done.err) == (1, True)


def test_the_page_of_serving_accuracy_names_every_source() -> None:
    from benchmarks.serving_accuracy import PAGE
    from costmodels.published_serving import METRICS, NAMES, read_serving_facts

    page = PAGE.read_text(encoding="utf-8")
    for fact in read_serving_facts():
        source = fact.source.removesuffix(f" {NAMES[fact.metric]}")
        assert f"| {fact.split} | {source} | {fact.inputs['stack']} |" in page
    assert all(f"| {NAMES[metric]} |" in page for metric in METRICS)
