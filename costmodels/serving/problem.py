"""A serving problem: the symbols of model, device, stack, plan and workload, bound where nothing else binds them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from costmodels.kernel_models.symbols import kernel_symbols
from costmodels.serving.formats import block_scaled
from costmodels.serving.stack import find_serving_stack
from costmodels.serving.tiles import MEASURED, measured_on
from spaces.architecture import Architecture
from spaces.blocks import scalars
from spaces.hardware import Device
from spaces.problem import Problem
from spaces.serving_plan import SERVING_DEFAULTS, SERVING_NAMES


def serving_problem(
    architecture: Architecture,
    stack: str,
    device: Device | None = None,
    fixed: Mapping[str, float] | None = None,
) -> Problem:
    """A problem with every symbol of model, stack and device (when one is given), and the defaults of plan and workload.

    `fixed` binds `input_tokens`, `request_rate` and whatever else is not an axis; SI units. Columns win over them. Raises
    UnknownStack.
    """
    chosen = find_serving_stack(stack)
    bound: dict[str, float] = {**SERVING_DEFAULTS, **scalars(architecture)}
    usual = chosen.default if device is None else chosen.default_on(device.generation, device.memory_capacity)
    bound |= {symbol: value for symbol, value in usual.items() if symbol in ("max_batch", "token_budget", "kv_fraction")}
    bound |= {f"stack.{symbol}": value for symbol, value in usual.items() if f"stack.{symbol}" not in bound}
    bound |= chosen.numbers_for(architecture.name)
    bound["block_scaled"] = float(block_scaled(architecture.name))
    labels: dict[str, tuple[str, ...]] = {**SERVING_NAMES}
    if device is not None:
        bound |= serving_symbols(device)
        labels |= {"device": (device.name,), "generation": (device.generation,)}
    return Problem(architecture=architecture, stack=chosen.name, scalars={**bound, **(fixed or {})}, labels=labels)


@cache
def serving_symbols(device: Device) -> Mapping[str, float]:
    """Every symbol a serving model reads about a device; SI units. An axis over devices binds these."""
    return {**kernel_symbols(device), MEASURED: measured_on(device.generation), "device": 0, "generation": 0}
