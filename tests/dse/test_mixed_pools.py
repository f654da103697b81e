"""Prefill and decode on devices of different kinds: the pair of kinds is a choice like any other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dse.asking import models_of, plan_codes, point, problem_of, space_of
from dse.experiment import load

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
