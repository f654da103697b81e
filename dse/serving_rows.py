"""A row of somebody else's serving points, read into what the serving model is asked; errors are for people."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from costmodels.serving.formats import native_precision
from costmodels.serving.stack import ServingStack, find_serving_stack
from dse.prediction_rows import BadRow, Row, architecture_of, cell, count_in, device_of, flag_in, number_in
from spaces.architecture import Architecture
from spaces.hardware import Device
from spaces.serving_plan import SERVING_NAMES, serving_code

DEFAULT_STACK = "vllm"
SPREAD = 0.1
"""Share by which lengths of a closed loop vary where the row does not say: exactly equal ones would return in step for ever."""
ROUNDS = 10
"""Requests of a closed loop, over its concurrency, where the row does not say."""

_UNBOUNDED = ("inf", "infinity")
_FORMAT = re.compile(r"[-_](fp8|nvfp4|fp4|mxfp4|awq|gptq|w4a16|w8a8|int8|int4|bf16)(?:[-_].*)?$", re.IGNORECASE)
_COLUMNS = {
    "max_batch": ("max_batch", "max_num_seqs", "max_batch_size"),
    "token_budget": ("token_budget", "max_num_batched_tokens", "max_num_tokens", "chunk"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingQuestion:
    """One row: model, stack and machine, the symbols of plan and workload, and how it is driven.

    `static`: one batch of `concurrency` requests. `steady` drops the first and last tenth of the requests. `requests` is how
    many there are in all, their lengths even between the shares `lengths` of those asked for, or `exponential` about these.
    """

    architecture: Architecture
    stack: str
    device: Device
    symbols: Mapping[str, float]
    static: bool
    steady: bool
    requests: int
    lengths: tuple[float, float]
    exponential: bool
    assumptions: tuple[str, ...]

    @property
    def group(self) -> tuple[Any, ...]:
        """Rows of one group are evaluated as one batch."""
        return self.architecture, self.stack, self.device, self.static


def read_serving(row: Row) -> ServingQuestion:
    """The row as a question. Raises BadRow."""
    assumed: list[str] = []
    prompt, output = count_in(row, "isl"), count_in(row, "osl")
    name, written = _model_name(row)
    try:
        architecture = architecture_of({**row, "model": name, "seq": str(prompt + output)}, assumed)
        device = device_of(row)
        stack = find_serving_stack(cell(row, "stack") or DEFAULT_STACK)
    except BadRow:
        raise
    except ValueError as error:
        raise BadRow(str(error)) from None
    if not cell(row, "stack"):
        assumed.append(f"stack {stack.name}")
    if prompt + output > architecture.max_sequence > 0:
        assumed.append(f"longer than the context of {architecture.name}, {architecture.max_sequence:,} tokens")
    symbols = _degrees(row, architecture, assumed)
    symbols |= _formats(row, architecture, stack.name, written, assumed)
    symbols |= _limits(row)
    symbols |= {"input_tokens": float(prompt), "output_tokens": float(output)}
    static = bool(flag_in(row, "static_batch"))
    rate, together = _load(row, static, assumed)
    symbols |= {"request_rate": rate, "concurrency": together, "prefix_hit": _share(row, "prefix_hit")}
    rounds = max(int(ROUNDS * together), 1) if together else 1000
    count = count_in(row, "num_requests", rounds)
    symbols |= _front(row, stack, assumed) | _sampling(row) | _seldom(row, architecture, static)
    # groups that step together gain from starting together: servers balance them
    again = not static and 0 < together < count and symbols["attention_data"] == 1
    exponential = _exponential(row)
    return ServingQuestion(
        architecture=architecture,
        stack=stack.name,
        device=device,
        symbols=symbols,
        static=static,
        steady=bool(flag_in(row, "steady")),
        requests=count,
        lengths=(0.0, math.log(2.0 * count)) if exponential else _lengths(row, again, assumed),
        exponential=exponential,
        assumptions=tuple(assumed),
    )


def _model_name(row: Row) -> tuple[str, str]:
    """The model without a number format at its end, and that format."""
    name = cell(row, "model")
    found = _FORMAT.search(name)
    return (name[: found.start()], found.group(1).lower()) if found else (name, "")


def _degrees(row: Row, model: Architecture, assumed: list[str]) -> dict[str, float]:
    """Every degree of the plan; what is blank is 1, replicas fill the devices, and experts fill a stage. Raises BadRow."""
    tensor, pipeline, expert = (count_in(row, name, 1) for name in ("tp", "pp", "ep"))
    groups, expert_tensor = count_in(row, "attention_dp", 1), count_in(row, "expert_tensor", 1)
    if expert > 1 and not model.experts:
        raise BadRow(f"ep = {expert}, but {model.name} has no experts")
    if expert > 1 and model.experts % expert:
        raise BadRow(f"ep = {expert} does not divide the {model.experts} experts of {model.name}")
    if model.heads % tensor:
        raise BadRow(f"tp = {tensor} does not divide the {model.heads} heads of {model.name}")
    if pipeline > model.layers:
        raise BadRow(f"pp = {pipeline} stages, but {model.name} has {model.layers} layers")
    stage = max(tensor * groups, expert_tensor * expert)
    data, devices = _replicas(row, pipeline * stage, assumed)
    if not model.experts:
        expert_tensor = 1
    elif tensor * groups > expert_tensor * expert:
        if tensor * groups % expert:
            raise BadRow(f"ep = {expert} does not divide the tp·attention_dp = {tensor * groups} devices of a stage")
        expert_tensor = tensor * groups // expert
        assumed.append(f"experts over {expert} × {expert_tensor} devices")
    elif expert_tensor * expert > tensor * groups:
        if expert_tensor * expert % tensor:
            raise BadRow(f"tp = {tensor} does not divide the expert_tensor·ep = {expert_tensor * expert} devices of a stage")
        groups = expert_tensor * expert // tensor
        assumed.append(f"attention_dp {groups}")
    return {
        "devices": float(devices),
        "tensor": float(tensor),
        "pipeline": float(pipeline),
        "data": float(data),
        "expert": float(expert),
        "expert_tensor": float(expert_tensor),
        "attention_data": float(groups),
    }


def _replicas(row: Row, replica: int, assumed: list[str]) -> tuple[int, int]:
    """(replicas, devices), either from the other. Raises BadRow where they disagree."""
    rule = "pp·dp·max(tp·attention_dp, expert_tensor·ep)"
    if not cell(row, "n_gpus"):
        data = count_in(row, "dp", 1)
        assumed.append(f"n_gpus {replica * data}")
        return data, replica * data
    devices = count_in(row, "n_gpus")
    if not cell(row, "dp"):
        if devices % replica:
            raise BadRow(f"n_gpus = {devices} is not a multiple of pp·max(tp·attention_dp, expert_tensor·ep) = {replica}")
        if devices > replica:
            assumed.append(f"dp {devices // replica}")
        return devices // replica, devices
    data = count_in(row, "dp")
    if replica * data != devices:
        raise BadRow(f"n_gpus = {devices} is not {rule} = {replica * data}")
    return data, devices


def _formats(row: Row, model: Architecture, stack: str, written: str, assumed: list[str]) -> dict[str, float]:
    """Codes of the weights' and the cache's format. Raises BadRow."""
    precision, cached = cell(row, "precision"), cell(row, "kv_precision")
    if not precision:
        precision = written or native_precision(model.name)
        assumed.append(f"precision {precision}")
    try:
        weights = serving_code("precision", precision)
        if not cached:
            # checkpoints made narrow for TensorRT-LLM bring scales for an fp8 cache, models published in four bits none
            made = SERVING_NAMES["precision"][weights] in ("fp8", "nvfp4") and native_precision(model.name) != "nvfp4"
            cached = "fp8" if stack == "tensorrt-llm" and made else "bf16"
            assumed.append(f"kv_precision {cached}")
        return {"precision": float(weights), "kv_precision": float(serving_code("kv_precision", cached))}
    except ValueError as error:
        raise BadRow(str(error)) from None


def _limits(row: Row) -> dict[str, float]:
    """Limits of the scheduler that the row names; the others are the stack's."""
    found: dict[str, float] = {}
    for symbol, names in _COLUMNS.items():
        for name in names:
            if cell(row, name) and symbol not in found:
                found[symbol] = float(count_in(row, name))
    if cell(row, "kv_fraction"):
        share = _share(row, "kv_fraction")
        if share <= 0:
            raise BadRow("kv_fraction: expected a share of the memory above 0")
        found["kv_fraction"] = share
    found["kv_offload"] = _share(row, "kv_offload")
    return found


def _seldom(row: Row, model: Architecture, static: bool) -> dict[str, float]:
    """What few rows say: drafts, adapters, weights on the host, and whether steps run as CUDA graphs. Raises BadRow."""
    found: dict[str, float] = {}
    for name in ("speculation", "lora_rank"):
        if cell(row, name):
            found[name] = float(count_in(row, name, least=0))
    if cell(row, "adapters"):
        found["adapters"] = float(count_in(row, "adapters"))
    for name in ("acceptance", "draft_share", "weight_offload"):
        if cell(row, name):
            found[name] = _share(row, name)
    for name in ("cuda_graphs", "expert_offload"):
        if cell(row, name):
            found[name] = float(bool(flag_in(row, name)))
    if "draft_share" in found:
        found["draft_held"] = found["draft_share"]
    if static and found.get("speculation"):
        raise BadRow("speculation: a static batch drafts nothing here; leave out static_batch")
    if found.get("expert_offload") and not model.experts:
        raise BadRow(f"expert_offload: {model.name} has no experts")
    return found


def _share(row: Row, name: str) -> float:
    value = number_in(row, name) or 0.0
    if value > 1:
        raise BadRow(f"{name}: expected a share from 0 to 1, got {cell(row, name)}")
    return value


def _exponential(row: Row) -> bool:
    """Whether lengths are those of conversations, of which isl and osl are the means. Raises BadRow."""
    word = cell(row, "lengths").lower()
    if word not in ("", "even", "exponential"):
        raise BadRow(f"lengths: expected even or exponential, got {word!r}")
    return word == "exponential"


def _lengths(row: Row, again: bool, assumed: list[str]) -> tuple[float, float]:
    """(shortest, longest) prompt and answer as shares of those asked for: `length_ratio` to 1, as `--random-range-ratio` of
    servers' own benchmarks; where nothing is said and slots are filled `again`, a little to either side."""
    named = next((name for name in ("length_ratio", "random_range_ratio") if cell(row, name)), "")
    if named:
        return _share(row, named), 1.0
    if not again:
        return 1.0, 1.0
    assumed.append(f"lengths within {100 * SPREAD:.0f} % of isl and osl")
    return 1.0 - SPREAD, 1.0 + SPREAD


def _front(row: Row, stack: ServingStack, assumed: list[str]) -> dict[str, float]:
    """What stands between clients and the scheduler, where it is not a server that streams to them.

    `served` false: a benchmark calls the engine itself. Where nothing is said, all requests at once are that for stacks whose
    own throughput benchmark does so.
    """
    at_once = cell(row, "request_rate").lower() in _UNBOUNDED and not count_in(row, "concurrency", 0, least=0)
    if cell(row, "served"):
        if flag_in(row, "served"):
            return {}
    elif not (at_once and stack.numbers["stack.offline.at_once"] > 0):
        return {}
    else:
        assumed.append("no server in front (served true: with one)")
    way = ("request_overhead", "request_token", "intake.request", "intake.token")
    return {
        "stack.host_per_sequence": stack.numbers["stack.offline.per_sequence"],
        **{f"stack.{part}": 0.0 for part in way},
    }


def _sampling(row: Row) -> dict[str, float]:
    """Whether requests ask for the likeliest tokens alone, up to a share of the probability. Raises BadRow."""
    word = cell(row, "sampling").lower()
    if word not in ("", "plain", "top_p"):
        raise BadRow(f"sampling: expected plain or top_p, got {word!r}")
    return {"stack.top_p.asked": float(word == "top_p")}


def _load(row: Row, static: bool, assumed: list[str]) -> tuple[float, float]:
    """(requests a second, requests in flight), one of them 0; a rate of `inf` is no rate. Raises BadRow."""
    unbounded = cell(row, "request_rate").lower() in _UNBOUNDED
    rate = 0.0 if unbounded else number_in(row, "request_rate") or 0.0
    together = float(count_in(row, "concurrency", 0, least=0))
    if static:
        if not together:
            together = float(count_in(row, "batch", 1))
            assumed.append(f"a batch of {together:g}")
        return 0.0, together
    if rate and together:
        assumed.append(f"a closed loop: request_rate {rate:g} plays no part")
        return 0.0, together
    if unbounded and not together:
        together = float(count_in(row, "num_requests", 1000))
        assumed.append(f"all {together:g} requests at once")
    if not rate and not together:
        assumed.append("concurrency 1")
        return 0.0, 1.0
    return rate, together
