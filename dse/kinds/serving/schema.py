"""The sections of a serving experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, InstanceOf, create_model, model_validator

from costmodels.serving.stack import find_serving_stack
from costmodels.simulation.limits import ROUTERS
from dse.kinds.machines import capped
from dse.kinds.serving.requests import read_lengths, read_per_second, read_published, read_trace_file
from dse.measures import nearest
from dse.schema.fields import (
    as_list,
    one_of,
    positive,
    read_count,
    read_degree,
    read_device,
    read_device_count,
    read_text,
    said,
)
from dse.schema.sections import Count, Devices, Machines, Model, Number, Question, Rate, Search, Seconds, Section
from spaces.hardware import Device
from spaces.serving_plan import SERVING_NAMES, SERVING_PLAN, WeightFormat, serving_code
from spaces.serving_space import MODES
from spaces.traffic import ARRIVALS, Lengths, Pairs
from spaces.workload import Requests

POOLS = ("prefill", "decode")

EXAMPLES = {
    ("model",): "model: llama-3.1-8b",
    ("hardware",): "hardware: {device: H100, devices: 8}",
    ("workload",): "workload: {input_tokens: 1000, output_tokens: 200, request_rate: 4 /s}",
    ("stack",): "stack: vllm",
    ("hardware", "pools", "prefill"): "prefill: {device: H100, devices: 8}",
    ("hardware", "pools", "decode"): "decode: {device: H100, devices: 8}",
}
"""What to write for a key that is missing."""


# --- fields -----------------------------------------------------------------------------------------------------------------


def coded(symbol: str) -> Callable[[object], float]:
    """A value of a plan's choice: the code of a format or mode, a flag, a share, or a count."""

    def read(value: object) -> float:
        if symbol == "mode":
            if value not in MODES:
                raise ValueError(f"no mode is called {value!r}{nearest(value, MODES)}")
            return MODES.index(str(value))
        if symbol in SERVING_NAMES:
            if not isinstance(value, str):
                raise ValueError(f"expected one of {', '.join(SERVING_NAMES[symbol])}, got {said(value)}")
            return serving_code(symbol, value)
        if symbol in ("cuda_graphs", "expert_offload"):
            if value not in (0, 1):
                raise ValueError(f"expected true or false, got {said(value)}")
            return 1 if value else 0
        if symbol == "kv_fraction":
            return share(value)
        if symbol in ("kv_offload", "weight_offload"):
            return part(value)
        return read_degree(value) if symbol == "speculation" else read_count(value)

    return read


def share(value: object) -> float:
    """A number above 0, at most 1."""
    number = positive("")(value)
    if number > 1:
        raise ValueError(f"expected a share of at most 1, got {value}")
    return number


def part(value: object) -> float:
    """0, or a share of at most 1."""
    return 0.0 if value == 0 and not isinstance(value, bool) else share(value)


def read_stack(value: object) -> str:
    """A serving stack by name or alias."""
    return find_serving_stack(read_text(value)).name


Tokens: TypeAlias = Annotated[InstanceOf[Lengths], BeforeValidator(read_lengths)]
PerSecond: TypeAlias = Annotated[float, BeforeValidator(read_per_second)]
Share: TypeAlias = Annotated[float, BeforeValidator(share)]


def _codes(symbol: str) -> Any:
    """Annotation of an axis: one value or a list of them."""
    return Annotated[list[Annotated[float, BeforeValidator(coded(symbol))]], BeforeValidator(as_list)]


# --- sections ---------------------------------------------------------------------------------------------------------------


class Pool(Section):
    """Machines of one pool; `device` and `power_cap` (W a device) may be lists, and are axes then."""

    device: Devices
    devices: Annotated[tuple[str, int], BeforeValidator(read_device_count)]
    power_cap: Annotated[list[Annotated[float, BeforeValidator(positive("W"))]], BeforeValidator(as_list)] = Field(
        default_factory=list
    )

    @model_validator(mode="after")
    def _room(self) -> Pool:
        capped(self.device, self.power_cap)
        return self


class Pools(Section):
    """Pools that stand apart, each on devices of its own."""

    prefill: Pool
    decode: Pool


class Row(Section):
    """A row of servers behind one feed: W, the share of time it may be overdrawn, how far servers peak together."""

    power_budget: Annotated[float, BeforeValidator(positive("W"))]
    risk: Share = 1e-3
    correlation: Annotated[float, BeforeValidator(part)] = 0.0


class Hardware(Machines):
    """What it runs on: devices that all plans share, or a pool for prefill and one for decode."""

    pools: Pools | None = None
    link: Rate | None = None
    row: Row | None = None


class Turns(Section):
    """Sessions: each turn brings the conversation so far as its prompt's beginning."""

    turns: Count
    think_time: Seconds = 10.0


class SharedPrefix(Section):
    """Prompts that begin alike: so many tokens, in so many groups."""

    tokens: Count
    groups: Count = 1


class Workload(Section):
    """Requests: how long they are and when they come."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    lengths: Annotated[InstanceOf[Pairs], BeforeValidator(read_published)] | None = None
    request_rate: PerSecond | None = None
    concurrency: Count | None = None
    trace: Annotated[InstanceOf[Requests], BeforeValidator(read_trace_file)] | None = None
    arrivals: Annotated[str, BeforeValidator(one_of("kind of arrivals", lambda: ARRIVALS))] = "poisson"
    burstiness: Number | None = None
    requests: Count | None = None
    sessions: Turns | None = None
    shared_prefix: SharedPrefix | None = None
    prefix_hit: Share | None = None
    context: Count | None = None


class Draft(Section):
    """What drafts tokens where `space.speculation` opens them: a model, layers beside the model's own, or a share of a step."""

    acceptance: Annotated[float, BeforeValidator(part)] = 0.7
    model: Model | None = None
    layers: Count | None = None
    share: Share | None = None

    @model_validator(mode="after")
    def _one_way(self) -> Draft:
        said_by = [name for name in ("model", "layers", "share") if getattr(self, name) is not None]
        if len(said_by) > 1:
            raise ValueError(f"a draft is said by one of model, layers and share, not by {' and '.join(said_by)}")
        return self


class Adapters(Section):
    """Low-rank adapters on every linear layer, and how many of them are served."""

    rank: Count
    count: Count = 1


class Slo(Section):
    """What a request must keep to count: seconds."""

    ttft: Seconds | None = None
    tpot: Seconds | None = None
    request_latency: Seconds | None = None


AXES = ("mode", *(symbol for symbol in SERVING_PLAN if symbol not in ("devices", "precision", "kv_precision")))
"""What `space` may restrict; formats have keys of their own."""
POOL_AXES = tuple(symbol for symbol in AXES if symbol != "mode")

if TYPE_CHECKING:

    class PoolSpace(Section):
        """Axes of one pool."""

    class Space(Section):
        """Axes with the values they are restricted to."""

    class Baseline(Section):
        """A plan that is run today."""
else:
    PoolSpace = create_model("PoolSpace", __base__=Section, **{name: (_codes(name) | None, None) for name in POOL_AXES})
    Space = create_model(
        "Space",
        __base__=Section,
        **{name: (_codes(name) | None, None) for name in AXES},
        **dict.fromkeys(POOLS, (PoolSpace | None, None)),
    )
    _one = {name: (Annotated[float | None, BeforeValidator(coded(name))], None) for name in SERVING_PLAN}
    _PoolPlan = create_model("PoolPlan", __base__=Section, **_one)
    Baseline = create_model(
        "Baseline",
        __base__=Section,
        device=(Annotated[InstanceOf[Device] | None, BeforeValidator(read_device)], None),
        mode=(Annotated[float | None, BeforeValidator(coded("mode"))], None),
        **_one,
        **dict.fromkeys(POOLS, (_PoolPlan | None, None)),
    )


class ServingSearch(Search):
    """How to look, and how many plans may be simulated."""

    simulate: Count = 48


class File(Question):
    """A serving experiment."""

    hardware: Hardware
    workload: Workload
    slo: Slo | None = None
    stack: Annotated[str, BeforeValidator(read_stack)]
    precision: _codes("precision") = Field(default_factory=lambda: [int(WeightFormat.BF16)])  # type: ignore[valid-type]
    kv_precision: _codes("kv_precision") = Field(default_factory=lambda: [0])  # type: ignore[valid-type]
    router: Annotated[str, BeforeValidator(one_of("router", lambda: ROUTERS))] = "least-loaded"
    draft: Draft | None = None
    adapters: Adapters | None = None
    space: Space | None = None
    baseline: Baseline | None = None
    search: ServingSearch = ServingSearch()
