"""Prefill and decode on devices of different kinds: the pair of kinds is a choice like any other."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse.asking import models_of, plan_codes, point, problem_of, space_of
from dse.experiment import ExperimentError, load
from dse.runner import answer_to
from dse.tables import place

EXPERIMENTS = Path(__file__).parents[2] / "experiments" / "hardware"
QUESTION: dict[str, Any] = {
    "kind": "serving",
    "model": "llama-3.1-8b",
    "workload": {"input_tokens": 1000, "output_tokens": 100, "concurrency": 64},
    "stack": "vllm",
    "space": {
        "prefill": {"tensor": 1, "pipeline": 1, "token_budget": 8192},
        "decode": {"tensor": 1, "pipeline": 1, "max_batch": 64},
    },
    "objectives": ["max: tokens_per_second", "price_per_hour"],
}
KINDS = ("H100-80GB-SXM", "A100-80GB-SXM")


def asked(prefill: Any, decode: Any) -> Any:
    pools = {"prefill": {"device": prefill, "devices": {"at_most": 2}}, "decode": {"device": decode, "devices": {"at_most": 2}}}
    return load({**QUESTION, "hardware": {"pools": pools}})


def figures(experiment: Any, plan: str = "") -> dict[str, float]:
    """Closed-form metrics of two engines for each phase."""
    chosen = plan_codes(experiment, "prefill.data=2,data=2,max_batch=64,prefill.token_budget=8192" + plan)
    found = models_of(experiment)[0].model.evaluate(problem_of(experiment), point(experiment, chosen))
    return {name: float(value[0]) for name, value in found.value.items()}


@pytest.mark.parametrize("prefill", KINDS)
@pytest.mark.parametrize("decode", KINDS)
def test_a_pair_chosen_is_the_pair_given(prefill: str, decode: str) -> None:
    chosen = figures(asked(list(KINDS), list(KINDS)), f",prefill.device={prefill},device={decode}")
    assert chosen == pytest.approx(figures(asked(prefill, decode)), rel=1e-9)


def test_the_phase_feels_its_own_devices() -> None:
    """Prompts are read by one pool and answers written by the other, whatever the other is made of."""
    both = {(p, d): figures(asked(p, d)) for p in KINDS for d in KINDS}
    fast, slow = KINDS
    assert both[fast, slow]["ttft"] < both[slow, slow]["ttft"]
    assert both[slow, fast]["tpot"] < both[slow, slow]["tpot"]
    mixed, own = both[fast, slow], (both[fast, fast], both[slow, slow])
    for whole in ("rated_power", "devices"):
        assert mixed[whole] == pytest.approx((own[0][whole] + own[1][whole]) / 2)
    assert mixed["rated_power"] == pytest.approx(2 * 700 + 2 * 400)
    price = {pair: f["price_per_million_tokens"] * f["tokens_per_second"] for pair, f in both.items()}
    assert price[fast, slow] == pytest.approx((price[fast, fast] + price[slow, slow]) / 2)


def test_pools_of_one_kind_each_are_named_by_their_kinds() -> None:
    """Not all of them by the decode pool's."""
    run = answer_to(asked("H100", "A100"))
    assert all("prefill H100" in answer.text and "decode A100" in answer.text for answer in run.front)
    assert place(run.front[0]).endswith(" devices: ")
    same = answer_to(asked("H100", "H100"))
    assert all("H100" not in answer.text for answer in same.front)


def test_every_pair_of_kinds_is_tried_once() -> None:
    kinds = list(KINDS)
    several, single = asked(kinds, kinds), asked(kinds[0], kinds[0])
    assert space_of(several).size() == 4 * space_of(single).size()
    problem, batch = problem_of(several), next(space_of(several).batches())
    cost = models_of(several)[0].model
    assert np.isfinite(cost.evaluate(problem, batch).value["tokens_per_second"]).all()
    assert cost.evaluate(problem, batch.take(slice(0, 0))).n == 0


@pytest.mark.parametrize("name", sorted(path.stem for path in EXPERIMENTS.glob("h100-a100-pools-*.yaml")))
def test_shipped_experiments_hold_their_budget(name: str) -> None:
    import dse

    run = dse.run(
        EXPERIMENTS / f"{name}.yaml",
        overrides=[
            "space.prefill.tensor=8",
            "space.decode.tensor=8",
            "search.simulate=4",
            "workload.requests=200",
            "workload.concurrency=256",
        ],
    )
    assert run.certificate["complete"]
    metric, most = ("rated_power", 28e3) if "power" in name else ("price_per_hour", 190.0)
    assert run.front
    assert all(answer.figures[metric].value <= most * (1 + 1e-9) for answer in run.front)
    assert all(answer.plan["prefill.device"] in KINDS for answer in run.front)


CAPS = (350.0, 450.0, 550.0, 650.0, 700.0)
MEETING = 1e-3
"""How far the part as it was measured and what is inferred of it under a cap may miss each other where they meet."""


def test_a_power_cap_never_speeds_a_pool_up_and_its_power_stays_under_it() -> None:
    """Each pool under its own cap: what the caps say together is never exceeded, and neither phase gains by a lower one."""
    pool = {"device": "H100", "devices": {"at_most": 2}, "power_cap": list(CAPS)}
    experiment = load({**QUESTION, "hardware": {"pools": {"prefill": pool, "decode": pool}}})

    def under(prefill: float, decode: float) -> dict[str, float]:
        names = [KINDS[0] if cap == 700.0 else f"{KINDS[0]} at {cap:g} W" for cap in (prefill, decode)]
        return figures(experiment, f",prefill.device={names[0]},device={names[1]}")

    free = under(700.0, 700.0)
    assert free == pytest.approx(figures(asked("H100", "H100")), rel=1e-9)
    both = [under(cap, cap) for cap in CAPS]
    for cap, found in zip(CAPS, both, strict=True):
        assert found["rated_power"] == pytest.approx(4 * cap)
        assert found["power"] <= 4 * cap * (1 + 1e-9)
    for lower, higher in itertools.pairwise(both):
        assert lower["tokens_per_second"] <= higher["tokens_per_second"] * (1 + MEETING)
    reading, writing = ([under(cap, 700.0)["ttft"] for cap in CAPS], [under(700.0, cap)["tpot"] for cap in CAPS])
    for times in (reading, writing):
        assert all(slow >= quick * (1 - MEETING) for slow, quick in itertools.pairwise(times))
    assert reading[0] / reading[-1] > writing[0] / writing[-1]  # writing waits for memory, which a cap leaves as it is


def test_a_cap_below_what_a_device_idles_at_is_told() -> None:
    pool = {"device": "H100", "devices": 2, "power_cap": "20 W"}
    with pytest.raises(ExperimentError, match=r"pools.prefill.*when idle; a cap of 20 W leaves it nothing"):
        load({**QUESTION, "hardware": {"pools": {"prefill": pool, "decode": {"device": "H100", "devices": 2}}}})
