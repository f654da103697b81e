"""What serving costs to run: power from the work a second, price from device-hours."""

from __future__ import annotations

import numpy as np

from costmodels.block_table import blocks_of, graphs
from costmodels.energy import SECONDS_PER_HOUR, energy, held_share
from costmodels.serving.formats import weight_bytes
from costmodels.serving.load import Work
from costmodels.serving.stack import find_serving_stack
from spaces.architecture import Architecture
from spaces.blocks import scalars
from spaces.columns import Bindings, FloatArray, IntArray
from spaces.problem import Problem


def joules_per_second(
    problem: Problem,
    at: Bindings,
    rate: FloatArray,
    work: Work,
    place: IntArray,
    step: FloatArray,
    running: FloatArray,
    cached: FloatArray,
    stages: FloatArray,
) -> FloatArray:
    """Watts of all devices, (n,): each computes the tokens of `rate` requests a second, and reads weights and caches each step.

    Matrix work is two FLOPs an active parameter and token. Each of a pipeline's `stages` batches takes a step every `step`
    seconds, where anybody runs (Poisson of mean `running`, or just so many): it reads the weights, of the experts those that it
    reaches, and `cached` bytes a request on each device.
    """
    stack = find_serving_stack(problem.stack)
    devices = np.asarray(at["devices"], np.float64)
    active = active_parameters(problem.architecture, stack.name)
    model = problem.architecture
    total = float(graphs(model, stack.traits).parameters())
    idle = 1.0 - model.experts_per_token / model.experts if model.experts else 1.0  # of the experts, for one token
    missed = idle ** np.maximum(running * np.asarray(at["attention_data"], np.float64) - 1.0, 0.0) if model.experts else 0.0
    weights = total - (total - active) * missed
    # prompts are read at the cap, where a FLOP is cheaper, for longer than a cap averages over
    tokens = held_share(at) * work.prompt[place] + work.output[place]
    flops = 2.0 * active * rate * tokens / devices
    replica = devices / np.asarray(at["data"], np.float64)
    closed = np.asarray(at["concurrency"]) > 0  # so many at any time; else as many as happen to be there
    busy = np.where(closed, np.minimum(running * stages, 1.0), -np.expm1(-running * stages))
    read = weights * weight_bytes(at["precision"]) / replica + np.maximum(running, 1.0) * cached
    traffic = busy * stages * read / np.maximum(step, 1e-12)
    one = np.ones(at.n)
    parts = energy(at, one, flops * one, traffic * one, 0.0, 0.0, np.asarray(busy * one, np.float64))
    return np.asarray(sum(parts.values()), np.float64)


def active_parameters(architecture: Architecture, stack: str) -> float:
    """Parameters that one token meets: all, but of the routed experts only those chosen."""
    model = graphs(architecture, find_serving_stack(stack).traits)
    at = {**scalars(architecture)}
    per_layer = 3 if architecture.gated else 2
    idle = (architecture.experts - architecture.experts_per_token) * architecture.moe_ffn * architecture.hidden * per_layer
    whole = float(sum(graph.parameters().evaluate(at) for graph in blocks_of(model)[-1:]))
    total = float(model.parameters())
    return max(total - idle * architecture.expert_layers, whole)


def price_per_second(at: Bindings) -> FloatArray:
    """US dollars a second of all devices, at the device-hour price."""
    return np.asarray(np.asarray(at["devices"], np.float64) * at["device.price_per_hour"] / SECONDS_PER_HOUR)


__all__ = ["active_parameters", "joules_per_second", "price_per_second"]
