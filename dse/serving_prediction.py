"""Serving rows answered: static batches in closed form, every other run simulated step by step, on the same tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from costmodels.metrics import Evidence
from costmodels.serving.capacity import Capacity, capacity
from costmodels.serving.engine import engines
from costmodels.serving.intake import lone_seconds
from costmodels.serving.intervals import pairs, sides
from costmodels.serving.problem import serving_problem
from costmodels.serving.replay import Replay, TooLong, replay
from costmodels.serving.speculation import accepted_tokens
from costmodels.serving.stack import find_serving_stack, plans_ahead
from costmodels.serving.static_batch import static_batch
from costmodels.step_tables import StepTables
from dse.serving_rows import ServingQuestion
from spaces.columns import Columns
from spaces.serving_plan import SERVING_NAMES

RATE = "tokens_per_s_per_gpu"
PRECISIONS = SERVING_NAMES["precision"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """What one row's run comes to: seconds, and output tokens a second of all replicas."""

    first: float
    token: float
    latency: float
    rate: float
    notes: tuple[str, ...] = ()
    error: str = ""


def answer_serving(questions: Sequence[ServingQuestion]) -> list[dict[str, Any]]:
    """Appended cells of the rows of one group, which share model, stack, machine and way of being driven."""
    first = questions[0]
    problem = serving_problem(first.architecture, first.stack, first.device)
    names = sorted({name for question in questions for name in question.symbols})
    usual = problem.scalars
    columns = Columns.from_values({name: np.array([q.symbols.get(name, usual.get(name)) for q in questions]) for name in names})
    tables, engine = engines(problem, columns)
    at = problem.at(columns)
    held = capacity(first.architecture, find_serving_stack(first.stack), at)
    if first.static:
        together, prompt, output = (
            np.asarray(at[name], np.float64) for name in ("concurrency", "input_tokens", "output_tokens")
        )
        share = np.maximum(np.ceil(together / (at["data"] * at["attention_data"])), 1.0)
        found = static_batch(tables, engine, share, prompt, output)
        served = []
        for i, question in enumerate(questions):
            overhead = float(lone_seconds({**usual, **question.symbols}, prompt[i]))
            latency = float(found.first[i] + (output[i] - 1.0) * found.token[i]) + overhead
            served.append(
                _Served(
                    first=float(found.first[i]) + overhead,
                    token=float(found.token[i]),
                    latency=latency,
                    rate=float(together[i] * output[i]) / latency,
                )
            )
    else:
        served = [
            _run(tables, int(engine[i]), _replay(q, usual, float(held.tokens[i])), float(held.tokens[i]))
            for i, q in enumerate(questions)
        ]
    return [_cells(q, one, held, i) for i, (q, one) in enumerate(zip(questions, served, strict=True))]


def _replay(question: ServingQuestion, usual: Mapping[str, float], tokens: float) -> Replay:
    """The run that a row describes."""
    symbols = {**usual, **question.symbols}
    budget, chunked = _steps(question, symbols)
    shortest, longest = question.lengths
    exponential, pace = question.exponential, symbols["kernel.host.pace"]
    mean = 1.0 if exponential else (shortest + longest) / 2.0
    fp8 = PRECISIONS[int(symbols["precision"])] == "fp8"
    scaled_experts = float(fp8 and symbols["block_scaled"] > 0 and question.architecture.experts > 0)
    return Replay(
        prompt=int(symbols["input_tokens"]),
        output=int(symbols["output_tokens"]),
        rate=symbols["request_rate"],
        concurrency=int(symbols["concurrency"]),
        requests=question.requests,
        replicas=int(symbols["data"]),
        attention_data=int(symbols["attention_data"]),
        patience=int(symbols["stack.groups.patience"]),
        by_load=symbols["stack.groups.by_load"] > 0,
        max_batch=int(symbols["max_batch"]),
        token_budget=budget,
        kv_tokens=tokens,
        block_tokens=int(symbols["stack.block_tokens"]),
        mixed=symbols["stack.mixed_steps"] > 0,
        chunked=chunked,
        whole_answer=symbols["stack.reserve_output"] > 0,
        ahead=bool(plans_ahead(symbols) > 0),
        overhead=float(lone_seconds(symbols, symbols["input_tokens"] * mean)),
        shortest=shortest,
        longest=longest,
        exponential=exponential,
        compiling=symbols["stack.compile_blocks"] * scaled_experts,
        intake=(pace * symbols["stack.intake.request"], pace * symbols["stack.intake.token"]),
        prefix_hit=symbols["prefix_hit"],
        drafted=int(symbols["speculation"]),
        accepted=float(accepted_tokens(symbols["speculation"], symbols["acceptance"])),
        steady=question.steady,
    )


def _steps(question: ServingQuestion, symbols: Mapping[str, float]) -> tuple[int, bool]:
    """(new tokens that a step may take, whether prompts are cut over several).

    A server that cuts none must hold a prompt beside what decodes: where nobody says how many tokens a step takes, it takes
    that many (as `--max_num_tokens` of published runs: prompt and concurrency), and where it cannot it was told to cut.
    """
    budget, prompt = int(symbols["token_budget"]), int(symbols["input_tokens"])
    longest = math.ceil(prompt * question.lengths[1])
    if symbols["stack.chunked"] > 0:
        return budget, True
    each = symbols["concurrency"] / (symbols["data"] * symbols["attention_data"])
    beside = math.ceil(min(each or symbols["max_batch"], symbols["max_batch"]))
    if "token_budget" not in question.symbols and prompt <= budget:
        return max(budget, longest + beside), False
    return budget, longest + beside > budget


def _run(tables: StepTables, engine: int, run: Replay, tokens: float) -> _Served:
    try:
        found = replay(tables, engine, run)
    except TooLong as error:
        return _Served(first=math.nan, token=math.nan, latency=math.nan, rate=math.nan, error=str(error))
    notes = () if tokens > 0 else ("does not fit in memory: predicted as if it did",)
    if found.simulated:
        notes = (*notes, f"{found.simulated:,} of {run.requests:,} requests simulated, the rest like the last of them")
    return _Served(first=found.ttft, token=found.tpot, latency=found.latency, rate=found.tokens_per_second, notes=notes)


def _cells(question: ServingQuestion, served: _Served, held: Capacity, i: int) -> dict[str, Any]:
    """The appended cells of one row."""
    around = pairs(question.stack, question.device.generation)
    value = {
        "ttft_s": served.first,
        "tpot_s": served.token,
        "request_latency_s": served.latency,
        RATE: served.rate / question.symbols["devices"],
    }
    notes = "; ".join([*question.assumptions, *served.notes])
    if not all(math.isfinite(number) for number in value.values()):
        return {"error": served.error or "the run gives no finite prediction for this plan", "assumptions": notes}
    cells: dict[str, Any] = {}
    for name, number in value.items():
        low, high = sides(around, "first_" if name == "ttft_s" else "rate_" if name == RATE else "")
        cells |= {name: f"{number:.9g}", f"{name}_low": f"{number * low:.9g}", f"{name}_high": f"{number * high:.9g}"}
    groups = question.symbols["attention_data"]
    if question.static:
        requests = math.ceil(question.symbols["concurrency"] / (question.symbols["data"] * groups))
        cached = requests * (question.symbols["input_tokens"] + question.symbols["output_tokens"])
    else:
        cached = float(held.tokens[i])
    cells["peak_memory_bytes"] = f"{float(held.fixed[i] + cached * held.token[i]):.9g}"
    cells["kv_capacity_tokens"] = f"{float(held.tokens[i] * groups):.9g}"
    cells["evidence"] = Evidence[str(around["evidence"]).upper()].name.lower().replace("_", "-")
    cells["assumptions"] = notes
    return cells
