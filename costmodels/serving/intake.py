"""The way in: one process of a server reads, renders and tokenises requests one by one before any reaches the scheduler.

There is one for each replica and attention group (vLLM starts as many API servers as it has data-parallel ranks). Its event
loop takes turns among what came together, so that requests of one moment are handed on together, when the last of
them is ready; what came before goes first. A lone request's own share is part of `stack.request_overhead`.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from costmodels.simulation.outcome import Outcome
from spaces.columns import FloatArray, Value
from spaces.expressions import SymbolTable
from spaces.workload import Requests


def intake_seconds(at: SymbolTable, prompt: Value) -> FloatArray:
    """Seconds that taking in a prompt of so many tokens keeps the process, on the hosts around the device."""
    own = at["stack.intake.request"] + at["stack.intake.token"] * np.asarray(prompt, np.float64)
    return np.asarray(at["kernel.host.pace"] * own, np.float64)


def lone_seconds(at: SymbolTable, prompt: Value) -> FloatArray:
    """Seconds from a client to the scheduler and of the first token back, of a prompt of so many tokens that none holds up."""
    return np.asarray(at["stack.request_overhead"] + at["stack.request_token"] * np.asarray(prompt, np.float64), np.float64)


def waits(requests: Requests, seconds: FloatArray, servers: int) -> FloatArray:
    """Seconds each of n requests waits for others on its way to the scheduler, (n,); `servers` processes share them evenly.

    In a closed loop and in sessions what comes back one at a time waits for nobody.
    """
    n = len(requests)
    waited = np.zeros(n)
    heads = np.arange(n) if requests.follows is None else np.flatnonzero(requests.follows < 0)
    if requests.concurrency:
        heads = heads[: requests.concurrency]
    if not n or not np.any(seconds > 0):
        return waited
    arrival, each = requests.arrival[heads], seconds[heads] / servers
    if requests.follows is not None:
        order = np.argsort(arrival, kind="stable")
        heads, arrival, each = heads[order], arrival[order], each[order]
    done = np.cumsum(each)
    ready = done + np.maximum.accumulate(arrival - (done - each))  # Lindley 1952: first come, first served
    last = np.searchsorted(arrival, arrival, side="right") - 1
    # seconds / servers: a share of the work each; one request alone is one server's
    waited[heads] = np.maximum(ready[last] - arrival - each, 0.0)
    return waited


def held_up(requests: Requests, waited: FloatArray) -> Requests:
    """The requests as the scheduler sees them come; a closed loop still starts at 0, later than its clients by its wait."""
    return requests if requests.concurrency else replace(requests, arrival=requests.arrival + waited)


def since_sent(outcome: Outcome, waited: FloatArray) -> Outcome:
    """The outcome with every request's arrival at the moment its client sent it."""
    return replace(outcome, arrival=outcome.arrival - waited)
