"""Mistakes about machines, one or more for each check of `test_machine_mistakes`, as `mutations.py` has those about plans."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from mutations import Mutation, Patch, _Instead, _wrap

from costmodels import block, block_kernels, data_parallel, training
from costmodels import energy as energies
from costmodels.machines import price
from spaces import serving_space
from spaces import training as plans
from spaces.training_axes.scope import axis_of

# ---- energy -------------------------------------------------------------------------------------------------------------


def _parts_changed(patch: Patch, change: Callable[[dict[str, Any], Any], Mapping[str, Any]]) -> None:
    def changed(original: Any, at: Any, *amounts: Any) -> Any:
        found = original(at, *amounts)
        unlimited = original(_Instead(at, **{"device.power": 1e30, "energy.flop": _own_flop(at)}), *amounts)
        return change(found, {name: found[name] / np.maximum(unlimited[name], 1e-30) for name in found})

    _wrap(patch, energies, "energy", changed)
    _wrap(patch, training, "energy", changed)


def _own_flop(at: Any) -> Any:
    """Joules a FLOP at the cap that there is: they are a share of its watts."""
    peak = np.maximum(at["device.matrix_flops.bf16"], at["device.matrix_flops.fp16"])
    return energies.prices()["compute_share"] * (at["device.power"] - at["device.idle_power"]) / peak


def a_part_above_the_cap(patch: Patch) -> None:
    """The cap scales every part but one."""
    _parts_changed(patch, lambda found, share: found | {"memory": found["memory"] / np.maximum(share["memory"], 1e-30)})


def static_under_the_cap(patch: Patch) -> None:
    """The cap scales what a device draws at rest, too."""
    _parts_changed(patch, lambda found, share: found | {"static": found["static"] * share["memory"]})


def a_part_left_out(patch: Patch) -> None:
    def without(original: Any, *args: Any) -> Any:
        found = original(*args)
        value = {**found.value, "energy": found.value["energy"] - found.parts["energy"]["scale_up"]}
        return replace(found, value=value)

    _wrap(patch, training, "_metrics", without)


def the_total_before_the_cap(patch: Patch) -> None:
    def uncapped(original: Any, problem: Any, at: Any, *args: Any) -> Any:
        found = original(problem, at, *args)
        free = _Instead(at, **{"device.power": 1e30, "energy.flop": _own_flop(at)})
        return replace(found, value={**found.value, "energy": original(problem, _Free(at, free), *args).value["energy"]})

    _wrap(patch, training, "_metrics", uncapped)


class _Free:
    """Bindings with some symbols replaced."""

    def __init__(self, at: Any, instead: _Instead) -> None:
        self._at, self._instead = at, instead

    def __getitem__(self, symbol: str) -> Any:
        return self._instead[symbol]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._at, name)

    def __contains__(self, symbol: object) -> bool:
        return symbol in self._at or symbol == "energy.flop"


# ---- money --------------------------------------------------------------------------------------------------------------


def _capital_changed(patch: Patch, change: Callable[[dict[str, Any], Any, Any], Mapping[str, Any]]) -> None:
    _wrap(patch, price, "cluster_capital", lambda original, at, device, count: change(original(at, device, count), at, count))


def no_network_beyond_a_domain(patch: Patch) -> None:
    def within(parts: dict[str, Any], at: Any, count: Any) -> Mapping[str, Any]:
        nodes = np.asarray(at["device.nic_bandwidth"] * 1e-6 * count)
        return parts | {"nics": np.where(np.asarray(count) > at["device.domain"], 0.0, nodes)}

    _capital_changed(patch, within)


def only_the_part_empty_node_has_a_host(patch: Patch) -> None:
    def remainder(parts: dict[str, Any], at: Any, count: Any) -> Mapping[str, Any]:
        return parts | {"hosts": 5e4 * np.ceil(np.asarray(count) % at["device.per_node"] / at["device.per_node"])}

    _capital_changed(patch, remainder)


def deeper_trees_cost_less(patch: Patch) -> None:
    _wrap(patch, price, "network_levels", lambda original, devices: 4.0 - original(devices))


def a_discount_on_all_of_them(patch: Patch) -> None:
    def discount(parts: dict[str, Any], _: Any, count: Any) -> Mapping[str, Any]:
        return parts | {"devices": parts["devices"] * np.where(np.asarray(count) > 2000, 0.5, 1.0)}

    _capital_changed(patch, discount)


# ---- more of anything ---------------------------------------------------------------------------------------------------


def all_of_them_must_train(patch: Patch) -> None:
    def exactly(scope: Any) -> Any:
        return axis_of("devices", scope.counts[-1:])

    patch.setattr(plans, "_AXES", tuple(exactly if make.__name__ == "devices" else make for make in plans._AXES))


def all_of_them_must_serve(patch: Patch) -> None:
    patch.setattr(serving_space, "_devices", lambda scope: serving_space._axis("devices", [scope.count]))


def a_reserve_that_outgrows_the_memory(patch: Patch) -> None:
    def more(original: Any, at: Any, *args: Any, **kwargs: Any) -> Any:
        found = original(at, *args, **kwargs)
        size = np.asarray(at["device.memory_capacity"], np.float64)
        return replace(found, device=found.device + size * size / 2e11)

    _wrap(patch, training, "memory_use", more)


def bandwidth_divides(patch: Patch) -> None:
    """A quicker link takes longer."""

    def slower(original: Any, kind: str, size: Any, ranks: Any, inside: Any, *links: Any) -> Any:
        turned = [replace(link, bandwidth=1e21 / np.asarray(link.bandwidth)) for link in links]
        return original(kind, size, ranks, inside, *turned)

    _wrap(patch, block, "collective_time", slower)
    _wrap(patch, data_parallel, "collective_time", slower)


def memory_bandwidth_divides(patch: Patch) -> None:
    def slower(original: Any, at: Any, *args: Any, **kwargs: Any) -> Any:
        turned = 1e25 / np.asarray(at["device.memory_bandwidth"])
        return original(_Instead(at, **{"device.memory_bandwidth": turned}), *args, **kwargs)

    _wrap(patch, block_kernels, "streaming_time", slower)


def quick_machines_are_dear(patch: Patch) -> None:
    """Money by what a device can do, though its price is given."""

    def by_speed(original: Any, at: Any, time: Any) -> Any:
        return original(at, time) * (np.asarray(at["device.nic_bandwidth"]) / 5e10) ** 2

    _wrap(patch, training, "price", by_speed)


MUTATIONS: Mapping[str, Mapping[str, Mutation]] = {
    "energy_is_the_sum_of_its_parts_under_the_cap": {
        "a part above the cap": a_part_above_the_cap,
        "static scaled": static_under_the_cap,
        "a part left out": a_part_left_out,
        "the total before the cap": the_total_before_the_cap,
    },
    "capital_never_falls_with_the_count": {
        "no network beyond a domain": no_network_beyond_a_domain,
        "one host": only_the_part_empty_node_has_a_host,
        "deeper trees cost less": deeper_trees_cost_less,
        "a discount on all": a_discount_on_all_of_them,
    },
    "more_devices_allowed_never_slow_the_best_plan": {
        "all must train": all_of_them_must_train,
        "all must serve": all_of_them_must_serve,
    },
    "more_of_a_resource_never_slows_the_best_plan": {
        "reserve": a_reserve_that_outgrows_the_memory,
        "bandwidth divides": bandwidth_divides,
        "memory bandwidth divides": memory_bandwidth_divides,
        "dear": quick_machines_are_dear,
    },
}
"""Ways to make each mistake, by the check that catches it."""
