"""What must hold of machines whatever the model says, and the proof that each check fails when its mistake is made.

As `test_mistakes.py` has it for plans: a check is a plain function that `machine_mutations.py` runs with the mistake in place.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from machine_mutations import MUTATIONS
from training_points import TINY, evaluate, problem

from costmodels import energy as energies
from costmodels.kernel_models.roofline import Roofline
from costmodels.machines import price
from costmodels.serving.problem import serving_problem
from costmodels.serving.steady_state import ServingModel
from costmodels.training import TrainingModel
from spaces.architecture import find
from spaces.columns import Columns
from spaces.hardware import find_accelerator, find_device
from spaces.serving_space import serving_space
from spaces.training import training_space


def check_energy_is_the_sum_of_its_parts_under_the_cap() -> None:
    """Parts sum to the total; a cap scales all that is dynamic alike and nothing that is static, down to the cap itself."""
    for cap, capped in ((1e6, False), (200.0, True)):
        at = problem(TINY, device__power=cap).scalars | {"devices": 4.0, "energy.flop": 1e-12}
        seconds, done = np.array([2.0]), [np.array([amount]) for amount in (8e14, 1e12, 4e11, 5e10)]
        found = energies.energy(at, seconds, *done)  # type: ignore[arg-type]
        prices = energies.prices()
        rates = {"compute": 1e-12, **{name: prices[name] for name in ("memory", "scale_up", "scale_out")}}
        asked = {name: 4 * float(one[0]) * rate for (name, rate), one in zip(rates.items(), done, strict=True)}
        static, room = 4 * 2 * at["device.idle_power"], 4 * 2 * (prices["held"] * cap - at["device.idle_power"])
        assert (sum(asked.values()) > room) == capped
        assert found["static"][0] == pytest.approx(static)
        share = min(1.0, room / sum(asked.values()))
        assert {name: float(found[name][0]) for name in asked} == pytest.approx({n: share * j for n, j in asked.items()})
    for cap in (140.0, 700.0):
        metrics = evaluate(problem(TINY, device__power=cap), {"tensor": 2, "data": 8}, {"pipeline": 4, "data": 2})
        whole = metrics.value["energy"]
        np.testing.assert_allclose(sum(metrics.parts["energy"].values()), whole, rtol=1e-12)
        assert (whole <= cap * metrics.value["step_time"] * metrics.value["devices"] * (1 + 1e-9)).all()


def check_capital_never_falls_with_the_count() -> None:
    """Up to and past every size at which something is added: a node, a domain, levels of the fat tree."""
    counts = np.arange(1, 70_000)
    for name, domain in (("H100", 8), ("B200", 72), ("A100", 1)):
        at = find_accelerator(name).columns({"scale_up_domain": float(domain)})
        parts = price.cluster_capital(at, 2e4, counts)
        for part, dollars in parts.items():
            assert (np.diff(dollars) >= -1e-9 * dollars[1:]).all(), part
        assert (np.diff(sum(parts.values())) > 0).all()


SMALL = {"context": [1], "pipeline": [1, 2], "virtual": [1], "recompute": [0], "offload": [0], "zero_stage": [1],
         "micro_batch": [1], "expert": [1]}  # fmt: skip


def check_more_devices_allowed_never_slow_the_best_plan() -> None:
    """Under `at_most` thirteen may be twelve and one idle: neither the best step nor the best answer gets slower."""
    device, asked = find_device("H100"), problem(TINY, sequence=2048)
    steps, tokens = [], []
    for most in (8, 11, 12, 13):
        space = training_space(
            architecture=TINY, devices=(device,), count=most, at_most=True, global_batch=48, sequence=2048, options=SMALL
        )
        metrics = [TrainingModel().evaluate(asked, batch) for batch in space.batches()]
        times = [one.value["step_time"][one.violation["memory"] <= 0] for one in metrics]
        steps.append(float(np.concatenate([*times, np.array([np.inf])]).min()))
    model = find("llama-3.1-8b")
    limits = {"max_batch": 64.0, "token_budget": 2048.0, "kv_fraction": 0.9}
    fixed = {"input_tokens": 1000, "output_tokens": 100, "concurrency": 8, **limits}
    some = {"max_batch": (64,), "pipeline": (1,), "attention_data": (1,)}
    for most in (4, 5):
        served = serving_space(architecture=model, count=most, at_most=True, options=some, defaults=limits)
        found = ServingModel(Roofline()).evaluate(serving_problem(model, "vllm", device, fixed), next(served.batches()))
        tokens.append(float(found.value["tpot"].min()))
    assert steps == sorted(steps, reverse=True)
    assert tokens == sorted(tokens, reverse=True)


RESOURCES = ("device.memory_capacity", "device.memory_bandwidth", "device.scale_up_bandwidth", "device.nic_bandwidth",
             "device.host_link_bandwidth")  # fmt: skip
LADDER = np.array([0.02, 0.3, 1.0, 1.7, 3.0, 8.0])


def check_more_of_a_resource_never_slows_the_best_plan() -> None:
    """All else, price and power cap included, the same: the best step gets no longer, and the cheapest no dearer."""
    device = find_device("H100")
    space = training_space(
        architecture=TINY, devices=(device,), count=16, global_batch=64, sequence=2048, options=SMALL | {"recompute": [0, 2]}
    )
    every = next(space.batches())
    for symbol in RESOURCES:
        asked = problem(TINY, without=frozenset({symbol, "device.peer_bandwidth"}))
        usual = problem(TINY).scalars
        rows = np.repeat(np.arange(len(LADDER)), every.n)
        values = {name: every[name][np.tile(np.arange(every.n), len(LADDER))] for name in every.levels}
        peer = LADDER if symbol == "device.scale_up_bandwidth" else np.ones(len(LADDER))
        points = Columns.from_values(
            values
            | {symbol: usual[symbol] * LADDER[rows], "device.peer_bandwidth": usual["device.peer_bandwidth"] * peer[rows]}
        )
        metrics = TrainingModel().evaluate(asked, points)
        for figure in ("step_time", "price"):
            fits = np.where(metrics.violation["memory"] <= 0, metrics.value[figure], np.inf).reshape(len(LADDER), every.n)
            best = fits.min(axis=1)
            assert np.isfinite(best[-1])
            assert (best[1:] <= best[:-1] * (1 + 1e-9)).all(), (symbol, figure)


CHECKS: dict[str, Callable[[], None]] = {
    name.removeprefix("check_"): value for name, value in list(globals().items()) if name.startswith("check_")
}


@pytest.mark.parametrize("mistake", CHECKS)
def test_the_mistake_is_not_made(mistake: str) -> None:
    CHECKS[mistake]()


@pytest.mark.parametrize(("check", "name"), [(check, name) for check, ways in MUTATIONS.items() for name in ways])
def test_every_mistake_is_caught(check: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the mistake in place its check fails."""
    MUTATIONS[check][name](monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()


def test_every_check_has_its_mistake() -> None:
    assert set(MUTATIONS) == set(CHECKS)
    assert all(MUTATIONS.values())
