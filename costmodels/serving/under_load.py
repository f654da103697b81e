"""What plans deliver under a load: where on their engine's curve they are, and what their requests wait for there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from costmodels.serving import load, waiting
from costmodels.serving.clusters import clusters
from costmodels.step_tables import StepTables
from spaces.columns import FloatArray, IntArray


@dataclass(frozen=True, slots=True, eq=False)
class Served:
    """What n plans deliver; arrays (n,): a batch's running requests, seconds, requests a second of a replica set, and the
    `highest` that it can carry."""

    running: FloatArray
    token: FloatArray
    decode: FloatArray
    first: FloatArray
    rate: FloatArray
    highest: FloatArray
    excess: FloatArray


def in_open_loop(
    tables: StepTables,
    work: load.Work,
    curve: load.Curve,
    row: IntArray,
    rate: FloatArray,
    most: FloatArray,
    uneven: FloatArray,
) -> Served:
    """Poisson arrivals at `rate` a second on one batch of at most `most` requests."""
    stages, groups = tables.stages[work.engine[row]], work.groups[row]
    highest = load.at(curve, row, *load.place_of(curve.running, row, most), "rate") / uneven
    highest = np.minimum(highest, 1.0 / np.maximum(work.intake[row] * stages, 1e-9))
    carried = np.minimum(rate, highest)
    left, share = load.place_of(curve.rate, row, carried * uneven)
    v = {name: load.at(curve, row, left, share, name) for name in load.Curve.__slots__}
    few = np.minimum(carried * uneven / curve.rate[row, 0], 1.0)  # below one running request: as lonely, and rarer
    running = np.minimum(v["running"] * few, most)
    fits = (work.budget[row] - np.where(work.mixed[row] > 0, running, 0.0)) / work.prompt[row]
    lives = np.maximum(work.output[row] - 1.0, load.LEAST)
    steps = lives * v["token"] / v["step"]
    mixed, ahead = work.mixed[row], work.ahead[row]
    clustered = np.where(work.output[row] > 1, load.clustered(groups, mixed, fits, v["shared"]), groups <= 1)
    pace = carried * uneven * groups  # prompts a second of one's own steps, of all groups that step together
    busy = np.where(clustered > 0, np.minimum(pace * v["added"], 0.999), 0.0)
    # prompts come in clusters, so that a request sees more beside it than one more than the mean
    crowd = (1.0 / (1.0 - busy) ** 2 - 1.0) / groups
    beside, mean = (
        load.at(curve, row, *load.place_of(curve.running, row, many), "decode")
        for many in (np.minimum(running + crowd, most), running)
    )
    slower = np.where(work.output[row] > 1, np.maximum(beside - mean, 0.0) / np.maximum(crowd, 1e-9) / groups, 0.0)
    several = np.where(work.output[row] > 1, np.clip(fits - 1.0, 0.0, 1.0), 0.0)
    apart = np.where((groups <= 1) & (mixed <= 0), several, 0.0)  # prompts go first, all that came together
    turns = v["step"] / v["decode"]  # steps for one that decodes
    gain = (1.0 - apart) / (1.0 - busy) + apart * turns
    found = clusters(busy, pace * steps * slower, steps * stages, 1.0 + ahead, gain)
    one = v["step"] * (1.0 - apart * v["loaded"])  # a mean step, whether it decodes or not
    own = v["added"] * found.own + slower * found.behind
    varied = v["added"] * (own + slower * found.behind) + slower**2 * steps * found.beside  # of steps, over prompts of one
    second = one + pace * varied
    queue = (carried * groups, v["decode"], one, second, v["added"], found.own, v["service"], fits * groups, mixed, stages)
    first = waiting.open_loop(*queue, slower * found.behind)
    long = v["decode"] + (v["step"] - v["decode"]) / v["loaded"]
    chunks = np.maximum(v["service"] / long, 1.0)
    share_loaded = np.where(groups > 1, load.loaded_share(carried, v["decode"], long, chunks, groups), v["loaded"] * few)
    together = waiting.lockstep(carried, v["decode"], share_loaded, long - v["decode"], v["service"], fits)
    first = np.where(groups > 1, together + clustered * (first - together), first) + work.overhead[row]
    first = first + waiting.front(carried * stages, work.intake[row])
    first = first + ahead * few * one  # the step planned before it came
    lonely = few * (v["step"] - v["decode"])
    step = v["decode"] + np.where((groups > 1) & (few < 1), share_loaded * (long - v["decode"]), lonely)
    token = step * v["token"] / v["step"] * uneven
    # what came in its own step goes before its second token, where prompts have steps of their own
    after = (turns - 1.0) * (one + own + ahead * one - (1.0 + ahead) * v["decode"])
    behind = ((1.0 - apart) * found.behind * v["added"] + apart * after) / stages
    # where one prompt fits a step, every one of its steps carries prompts at most
    behind = np.where((mixed > 0) & (fits < 2.0), np.minimum(behind, steps * np.maximum(long - step, 0.0)), behind)
    full = load.at(curve, row, *load.place_of(curve.running, row, most), "token") * uneven  # a full batch lets nobody in early
    crowded = slower * found.beside / stages * (1.0 - apart + apart * turns)
    held_up = token + clustered * np.where(work.output[row] > 1, crowded * v["token"] / v["step"] + behind / lives, 0.0)
    held_up = np.minimum(held_up, np.maximum(token, full))
    running = np.minimum(running + carried * lives * (held_up - token), most)
    token = held_up
    stay = (work.output[row] - 1.0) * token
    uneasy = 1.0 + clustered * (found.beside - 1.0) / groups
    first = first + waiting.admission(running * stages, most * stages, stay, uneasy) + waiting.overload(rate, highest)
    excess = np.where(rate > 0, rate / highest - 1.0, -1.0)
    return Served(running, token, v["decode"], first, carried, highest, excess)


def in_closed_loop(
    tables: StepTables,
    work: load.Work,
    curve: load.Curve,
    row: IntArray,
    together: FloatArray,
    most: FloatArray,
    uneven: FloatArray,
) -> Served:
    """`together` requests in flight on one batch, equal and started at once; ROUNDS rounds of them."""
    mixed = work.mixed[row]
    inside = np.minimum(np.maximum(together, 1e-9), most)
    left, share = load.place_of(curve.running, row, inside)
    v = {name: load.at(curve, row, left, share, name) for name in load.Curve.__slots__}
    cohorts = np.maximum(inside / v["shared"], 1.0)
    first_round = waiting.burst(inside, v["shared"], v["service"], v["added"], mixed)
    held = np.maximum(together * tables.stages[work.engine[row]] - 1.0, 0.0) * work.intake[row]
    lives = np.maximum(work.output[row] - 1.0, load.LEAST)
    away = work.overhead[row]
    chunks = np.maximum(work.prompt[row] / np.maximum(work.budget[row] - inside, 1.0), 1.0)
    lag, back = waiting.returning(cohorts, v["decode"], v["service"], chunks, away, work.ahead[row])
    # prompts that have steps of their own come first, and all of them before anybody's second token
    added = v["added"] * v["shared"]
    all_prompts = np.where(mixed > 0, v["service"] + (cohorts - 1.0) * added, cohorts * added)
    lag, back = np.where(mixed > 0, lag, away), np.where(mixed > 0, back, first_round + away)
    round_ = (lag + all_prompts + (work.output[row] - 1.0) * v["decode"] * v["token"] / v["step"]) * uneven
    rate = inside / (round_ + held / ROUNDS)
    queued = np.maximum(together - inside, 0.0) / rate
    token = np.where(work.output[row] > 1, (round_ - back * uneven) / lives, v["token"] * uneven)
    first = (first_round + away + held + (ROUNDS - 1.0) * back) / ROUNDS + queued
    return Served(inside, token, v["decode"], first, rate, rate, np.full(len(row), -1.0))


ROUNDS = 10.0
"""Requests of a closed loop, over its concurrency."""
