"""The sections of a training experiment."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from pydantic import BeforeValidator, Field, InstanceOf, create_model

from costmodels.constants import stack_names
from costmodels.model_state import state_widths
from dse.measures import nearest
from dse.schema.fields import as_list, one_of, read_calibration, read_count, read_degree, read_device, said
from dse.schema.sections import Count, Hardware, Number, Question, Rate, Seconds, Section
from spaces.hardware import Device
from spaces.plan import NAMES, PLAN_SYMBOLS, Precision

EXAMPLES = {
    ("kind",): "kind: training",
    ("model",): "model: llama-3.1-8b",
    ("hardware",): "hardware: {device: H100, devices: 8}",
    ("hardware", "device"): "device: H100",
    ("hardware", "devices"): "devices: 8",
    ("workload",): "workload: {sequence: 8192, global_batch: 128}",
    ("workload", "sequence"): "sequence: 8192",
    ("workload", "global_batch"): "global_batch: 128",
    ("stack",): "stack: megatron",
}
"""What to write for a key that is missing."""


def coded(symbol: str) -> Callable[[object], int]:
    """A value of a plan's choice: its code for a categorical one, a flag, a ZeRO stage or a degree."""

    def read(value: object) -> int:
        if symbol in NAMES:
            if not isinstance(value, str) or value not in NAMES[symbol]:
                raise ValueError(f"{symbol} {value!r} does not exist{nearest(value, NAMES[symbol])}")
            return NAMES[symbol].index(value)
        if symbol == "sequence_parallel":
            if value not in (0, 1):
                raise ValueError(f"expected true or false, got {said(value)}")
            return 1 if value else 0
        if symbol == "zero_stage" and (isinstance(value, bool) or value not in (0, 1, 2, 3)):
            raise ValueError(f"a ZeRO stage is 0, 1, 2 or 3, got {said(value)}")
        return read_degree(value) if symbol in ("zero_stage", "recompute_layers") else read_count(value)

    return read


Precisions: TypeAlias = Annotated[list[Annotated[int, BeforeValidator(coded("precision"))]], BeforeValidator(as_list)]


class Workload(Section):
    """Tokens a sequence, sequences a step, and tokens of the whole run."""

    sequence: Count
    global_batch: Count
    tokens: Number | None = None


class Reliability(Section):
    """How often devices fail and what a failure costs: 1/h, bytes/s for the whole job, seconds."""

    failures_per_device_hour: Number
    checkpoint_bandwidth: Rate
    restart_time: Seconds


class Finance(Section):
    """Buying in place of renting: years that machines are held for, and USD a device (of its described part, if not given)."""

    years: Number = 1.0
    device_price: Number | None = None


AXES = tuple(symbol for symbol in PLAN_SYMBOLS if symbol not in ("devices", "precision"))
"""What `space` may restrict; `devices` and `precision` have sections of their own."""


def _values_of(symbol: str) -> Any:
    """Annotation of an axis: one value or a list of them."""
    return Annotated[list[Annotated[int, BeforeValidator(coded(symbol))]], BeforeValidator(as_list)]


if TYPE_CHECKING:

    class Space(Section):
        """Axes with the values they are restricted to."""

    class Baseline(Section):
        """A plan that is run today."""
else:
    Space = create_model("Space", __base__=Section, **{name: (_values_of(name) | None, None) for name in AXES})
    Baseline = create_model(
        "Baseline",
        __base__=Section,
        device=(Annotated[InstanceOf[Device] | None, BeforeValidator(read_device)], None),
        **{name: (Annotated[int | None, BeforeValidator(coded(name))], None) for name in PLAN_SYMBOLS},
    )


class File(Question):
    """A training experiment."""

    hardware: Hardware
    workload: Workload
    stack: Annotated[str, BeforeValidator(one_of("stack", stack_names))]
    precision: Precisions = Field(default_factory=lambda: [int(Precision.BF16)])
    optimizer: Annotated[str | None, BeforeValidator(one_of("optimizer", lambda: tuple(state_widths())))] = None
    calibration: Annotated[str, BeforeValidator(read_calibration)] = ""
    space: Space | None = None
    baseline: Baseline | None = None
    reliability: Reliability | None = None
    finance: Finance | None = None
