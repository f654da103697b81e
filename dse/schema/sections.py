"""Sections and field types that every kind of experiment shares. Nothing here looks across sections."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, InstanceOf, model_validator

from dse.schema.fields import (
    Limit,
    ObjectiveChoice,
    as_list,
    as_objectives,
    one_of,
    positive,
    read_address,
    read_constraints,
    read_count,
    read_degree,
    read_device,
    read_device_count,
    read_method,
    read_model,
    read_objective,
    read_text,
)
from spaces.architecture import Architecture
from spaces.hardware import Device

EXECUTORS = ("serial", "local", "ray")

Count: TypeAlias = Annotated[int, BeforeValidator(read_count)]
Counts: TypeAlias = Annotated[list[Count], BeforeValidator(as_list)]
Natural: TypeAlias = Annotated[int, BeforeValidator(read_degree)]
Devices: TypeAlias = Annotated[list[Annotated[InstanceOf[Device], BeforeValidator(read_device)]], BeforeValidator(as_list)]
Number: TypeAlias = Annotated[float, BeforeValidator(positive(""))]
Rate: TypeAlias = Annotated[float, BeforeValidator(positive("B/s"))]
Rates: TypeAlias = Annotated[list[Rate], BeforeValidator(as_list)]
Seconds: TypeAlias = Annotated[float, BeforeValidator(positive("s"))]
Price: TypeAlias = Annotated[float, BeforeValidator(positive("USD/h"))]
Text: TypeAlias = Annotated[str, BeforeValidator(read_text)]
Model: TypeAlias = Annotated[InstanceOf[Architecture], BeforeValidator(read_model)]
Objective: TypeAlias = Annotated[InstanceOf[ObjectiveChoice], BeforeValidator(read_objective)]
Objectives: TypeAlias = Annotated[list[Objective], BeforeValidator(as_objectives)]
Limits: TypeAlias = Annotated[tuple[InstanceOf[Limit], ...], BeforeValidator(read_constraints)]


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


class Section(BaseModel):
    """A mapping whose keys are all known."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)

    def given(self) -> dict[str, Any]:
        """The keys that were given, with what became of them."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}


class Machines(Section):
    """What it runs on; `device`, `domain` and `nic` may be lists, and are axes then; so many `nodes` stand for `devices`."""

    device: Devices | None = None
    nodes: Count | None = None
    devices: Annotated[tuple[str, int], BeforeValidator(read_device_count)] | None = None
    domain: Counts | None = None
    devices_per_node: Count | None = None
    nic: Rates | None = None
    price_per_hour: Price | None = None

    @model_validator(mode="before")
    @classmethod
    def _devices_of_nodes(cls, data: Any) -> Any:
        """The devices of so many nodes; what is wrong with a field by itself is told by the field."""
        if not isinstance(data, Mapping) or data.get("nodes") is None:
            return data
        if data.get("devices") is not None:
            raise ValueError("nodes and devices say the same twice: leave one out")
        try:
            nodes, own = read_count(data["nodes"]), data.get("devices_per_node")
            sizes = {own or read_device(name).devices_per_node for name in _listed(data.get("device"))}
        except ValueError:
            return {**data, "devices": 1}
        if len(sizes) != 1:
            raise ValueError("nodes of these devices are not alike: say devices, or devices_per_node")
        return {**data, "devices": nodes * sizes.pop()}


class Hardware(Machines):
    """Machines that have to be said."""

    device: Devices
    devices: Annotated[tuple[str, int], BeforeValidator(read_device_count)]


class Spending(Section):
    """How much a search may spend: points evaluated, a share of the space, seconds."""

    points: Count | None = None
    share: Number | None = None
    seconds: Seconds | None = None

    @model_validator(mode="after")
    def _something(self) -> Spending:
        if self.points is None and self.share is None and self.seconds is None:
            raise ValueError("a budget says points, share or seconds; leave it out for no limit")
        if self.share is not None and self.share > 1:
            raise ValueError(f"share is at most 1 (0.02 is 2 % of the points), got {self.share:g}")
        return self


class Search(Section):
    """How to look, and who does the work: this process, processes of this machine, or a Ray cluster."""

    method: Annotated[str, BeforeValidator(read_method)] = "auto"
    budget: Spending | None = None
    mirror: Text | None = None
    outer: Annotated[list[Text], BeforeValidator(as_list)] | None = None
    top: Count = 10
    seed: Natural = 0
    sample: Natural = 100_000
    executor: Annotated[str, BeforeValidator(one_of("executor", lambda: EXECUTORS))] = "serial"
    workers: Count | None = None
    address: Annotated[str, BeforeValidator(read_address)] | None = None

    @model_validator(mode="after")
    def _somebody_to_work(self) -> Search:
        if self.budget is not None and self.method == "exact":
            raise ValueError("method: exact looks at every point; a budget needs method: auto or one that samples")
        if self.mirror is not None and self.method in ("exact", "nested"):
            raise ValueError(f"method: {self.method} keeps no trials to mirror; write its run with dse export RUN --to optuna")
        if self.outer is not None and self.method != "nested":
            raise ValueError(f"outer axes belong to method: nested, not {self.method}")
        if self.executor == "serial" and self.workers not in (None, 1):
            raise ValueError(f"{self.workers} workers need executor: local or ray; serial is this process alone")
        if self.address is not None and self.executor != "ray":
            raise ValueError(f"an address needs executor: ray, not {self.executor}")
        return self


class Question(Section):
    """What every experiment file may say, whatever its kind."""

    kind: Text
    name: Text | None = None
    description: Text | None = None
    model: Model
    objectives: Objectives | None = None
    constraints: Limits = ()
    search: Search = Search()
