"""The training space: every parallel plan of a model on a number of devices, as ordered axes with structural rules.

The axes carry the symbols of `spaces.plan`, so each legal point binds every one of them. Where a choice has no meaning (a
schedule with one stage, a shard group of one rank) only its neutral value is legal, whatever was asked for: no two points
mean the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spaces.architecture import Architecture
from spaces.columns import Value
from spaces.hardware import Device
from spaces.plan import DEFAULTS, NAMES, PLAN_SYMBOLS, Offload, RankOrder, Recompute, Schedule, StageLayout
from spaces.space import Axis, Rule, Space

Chosen = Mapping[str, Value]
Options = Mapping[str, Sequence[int]]

# axes that stay at their default unless opened by name: they change what is trained, or are rarely worth their size
_CLOSED = ("precision", "trainable", "expert_tensor", "shard_degree")


def training_space(
    *,
    architecture: Architecture,
    devices: tuple[Device, ...],
    count: int,
    at_most: bool = False,
    global_batch: int,
    sequence: int,
    options: Options | None = None,
    domains: Sequence[int] | None = None,
    uneven: bool = True,
) -> Space:
    """All legal training plans, in the order of `PLAN_SYMBOLS` as far as their rules allow.

    `count` devices exactly, or with `at_most` any number up to it, so that a larger limit loses no plan. `global_batch` is
    sequences per step, `sequence` tokens. `options[name]` restricts an axis to some values (codes for categorical ones); an
    empty sequence opens all of them; absent means all, except that
    `precision` is bf16, `trainable` all, `expert_tensor` 1 and `shard_degree` every data·context rank, and that ZeRO 2 and 3
    are combined with a pipeline only when `zero_stage` is named. `uneven` lets a pipeline of one chunk per device deal
    layers that divide by no layout as evenly as they go.

    Two or more `devices` make an axis `device` that binds every device symbol; with one, the caller binds them in the
    problem. `domains` (devices per scale-up domain) adds an axis `device.domain` in place of the devices' own. Raises
    ValueError, with every fault in one message, for unknown options, values that are not positive, and no devices.
    """
    asked = dict(options or {})
    _check(devices, count, global_batch, sequence, asked, domains)
    scope = _Scope(
        architecture=architecture,
        nodes=np.array([device.devices_per_node for device in devices]),
        counts=tuple(range(1, count + 1)) if at_most else (count,),
        global_batch=global_batch,
        sequence=sequence,
        options=asked,
        uneven=uneven,
    )
    axes = (*_hardware_axes(devices, domains), *(make(scope) for make in _AXES))
    labels = dict(NAMES) | {"device": tuple(device.name for device in devices)}
    return Space(axes=axes, labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Scope:
    """What the axes are built from. `nodes[code]` is the devices per node of a device kind."""

    architecture: Architecture
    nodes: NDArray[np.int64]
    counts: tuple[int, ...]
    global_batch: int
    sequence: int
    options: Options
    uneven: bool

    def levels(self, name: str, every: Iterable[int]) -> list[int]:
        """Values of an axis: those asked for, else every one there is, ascending."""
        if name not in self.options and name in _CLOSED and name in DEFAULTS:
            return [DEFAULTS[name]]
        return sorted(set(self.options.get(name) or every))

    def node(self, chosen: Chosen) -> Value:
        """Devices per node, (n, 1) or a number."""
        return self.nodes[chosen["device"]] if len(self.nodes) > 1 else int(self.nodes[0])


def _check(
    devices: tuple[Device, ...],
    count: int,
    global_batch: int,
    sequence: int,
    options: Options,
    domains: Sequence[int] | None,
) -> None:
    """Raise ValueError for what no space can be built from, every fault in one message."""
    faults = [] if devices else ["no device was given"]
    if len({device.name for device in devices}) < len(devices):
        faults.append(f"a device is named twice: {', '.join(device.name for device in devices)}")
    for name, value in (("count", count), ("global_batch", global_batch), ("sequence", sequence)):
        if value < 1:
            faults.append(f"{name} must be at least 1, got {value}")
    if domains is not None and (not domains or min(domains) < 1):
        faults.append(f"domains must be positive numbers of devices, got {list(domains)}")
    known = [symbol for symbol in PLAN_SYMBOLS if symbol != "devices"]
    for name, values in options.items():
        if name not in known:
            faults.append(f"there is no training axis '{name}'; the axes are {', '.join(known)}")
            continue
        lowest, highest = _range(name)
        outside = [value for value in values if not lowest <= value <= highest]
        if outside:
            faults.append(f"{name} cannot be {', '.join(map(str, outside))}")
    if faults:
        raise ValueError("; ".join(faults))


def _range(name: str) -> tuple[int, float]:
    """Lowest and highest value of an axis that can have any meaning."""
    if name in NAMES:
        return 0, len(NAMES[name]) - 1
    return {"zero_stage": (0, 3), "sequence_parallel": (0, 1), "recompute_layers": (0, np.inf)}.get(name, (1, np.inf))


def _divisors(number: int) -> list[int]:
    """Positive divisors, ascending."""
    small = [i for i in range(1, int(number**0.5) + 1) if number % i == 0]
    return sorted({*small, *(number // i for i in small)})


def _axis(name: str, levels: Sequence[int], *rules: tuple[str, Rule]) -> Axis:
    """An axis that binds one symbol."""
    return Axis(name=name, symbols={name: np.array(levels, np.int64)}, rules=rules)


def _optional(
    name: str, wanted: Sequence[int], neutral: int, meaning: str, matters: Rule, *rules: tuple[str, Rule]
) -> Axis:
    """An axis that is held at `neutral` where it does not matter, and takes the values wanted where it does.

    `meaning` is the reason given for values removed where the choice does not matter.
    """

    def meaningful(chosen: Chosen, values: Value) -> Value:
        return matters(chosen, values) | (values == neutral)

    def asked(chosen: Chosen, values: Value) -> Value:
        return ~matters(chosen, values) | np.isin(values, np.array(wanted, np.int64))

    levels = sorted({neutral, *wanted})
    both = ((meaning, meaningful), *rules)
    return _axis(name, levels, *both, *(() if neutral in wanted else (("not asked for", asked),)))


def _hardware_axes(devices: tuple[Device, ...], domains: Sequence[int] | None) -> tuple[Axis, ...]:
    """The kind of device when there are several, and the scale-up domain when it is a choice."""
    axes: list[Axis] = []
    if len(devices) > 1:
        figures = [device.symbols() for device in devices]
        keep = [name for name in figures[0] if domains is None or name != "device.domain"]
        symbols = {name: np.array([figure[name] for figure in figures], np.float64) for name in keep}
        axes.append(Axis(name="device", symbols={"device": np.arange(len(devices)), **symbols}))
    if domains is not None:
        values = np.array(sorted(set(domains)), np.float64)
        axes.append(Axis(name="device.domain", symbols={"device.domain": values}))
    return tuple(axes)


def _devices(scope: _Scope) -> Axis:
    """How many devices: exactly as many as asked, or any number up to that."""
    return _axis("devices", scope.counts)


def _tensor(scope: _Scope) -> Axis:
    """Tensor degrees: they divide heads and MLP width, and devices; key/value heads are split or replicated evenly."""
    model = scope.architecture
    dense = not model.experts or model.dense_layers > 0 or model.moe_every > 1
    return _axis(
        "tensor",
        scope.levels("tensor", _divisors(model.heads)),
        ("heads not divisible by tensor", lambda _, t: model.heads % t == 0),
        (
            "key/value heads neither split nor replicated evenly by tensor",
            lambda _, t: (model.kv_heads % t == 0) | (t % model.kv_heads == 0),
        ),
        ("MLP width not divisible by tensor", lambda _, t: np.full(t.shape, not dense) | (model.ffn % t == 0)),
        ("devices not divisible by tensor", lambda x, t: x["devices"] % t == 0),
    )


def _context(scope: _Scope) -> Axis:
    """Context degrees: powers of two, each rank with two equal pieces of the sequence (causal balance)."""
    most = max(scope.counts).bit_length()
    return _axis(
        "context",
        scope.levels("context", [1 << i for i in range(most) if i == 0 or scope.sequence % (2 << i) == 0]),
        ("sequence does not split into 2·context pieces", lambda _, c: (c == 1) | (scope.sequence % (2 * c) == 0)),
        ("devices not divisible by tensor·context", lambda x, c: x["devices"] % (x["tensor"] * c) == 0),
    )


def _pipeline(scope: _Scope) -> Axis:
    """Stages: at most one per layer, dealt by some layout."""
    layers = scope.architecture.layers
    every = sorted({p for count in scope.counts for p in _divisors(count) if p <= layers})
    chunks = np.array(_virtual_levels(scope), np.int64)

    def dealt(_: Chosen, values: Value) -> Value:
        return (values == 1) | _dealt(scope, values[..., None], chunks).any(axis=-1)

    return _axis(
        "pipeline",
        scope.levels("pipeline", every),
        ("more stages than layers", lambda _, p: p <= layers),
        ("layers cannot be dealt to the stages", dealt),
        (
            "devices not divisible by tensor·context·pipeline",
            lambda x, p: x["devices"] % (x["tensor"] * x["context"] * p) == 0,
        ),
    )


def _data(scope: _Scope) -> Axis:
    """Replicas: what is left of the devices, dividing the global batch."""
    every = sorted({d for count in scope.counts for d in _divisors(count)})
    return _axis(
        "data",
        scope.levels("data", every),
        (
            "tensor·context·pipeline·data is not the number of devices",
            lambda x, d: x["tensor"] * x["context"] * x["pipeline"] * d == x["devices"],
        ),
        ("global batch not divisible by data", lambda _, d: scope.global_batch % d == 0),
    )


def _micro_batch(scope: _Scope) -> Axis:
    """Sequences per microbatch: they divide a replica's share of the global batch, which is never changed."""
    return _axis(
        "micro_batch",
        scope.levels("micro_batch", _divisors(scope.global_batch)),
        (
            "global batch not divisible by data·micro_batch",
            lambda x, b: scope.global_batch % (x["data"] * b) == 0,
        ),
    )


def _expert(scope: _Scope) -> Axis:
    """Expert degrees: they divide the experts and re-mesh the ranks of a stage."""
    experts = scope.architecture.experts
    return _optional(
        "expert",
        scope.levels("expert", _divisors(experts) if experts else [1]),
        1,
        "the model has no experts",
        lambda _, e: np.full(e.shape, experts > 0),
        ("experts not divisible by expert degree", lambda _, e: (e == 1) | (experts % e == 0)),
        ("ranks of a stage not divisible by expert degree", lambda x, e: _stage_ranks(x) % e == 0),
    )


def _expert_tensor(scope: _Scope) -> Axis:
    """Degrees that split one expert: 1 unless asked."""
    model = scope.architecture
    return _optional(
        "expert_tensor",
        scope.levels("expert_tensor", _divisors(model.heads) if model.experts else [1]),
        1,
        "the model has no experts",
        lambda _, t: np.full(t.shape, model.experts > 0),
        ("expert width not divisible by expert_tensor", lambda _, t: (t == 1) | (model.moe_ffn % t == 0)),
        (
            "ranks of a stage not divisible by expert_tensor·expert",
            lambda x, t: _stage_ranks(x) % (t * x["expert"]) == 0,
        ),
    )


def _stage_ranks(chosen: Chosen) -> Value:
    """Ranks of one pipeline stage, (n, 1)."""
    return chosen["tensor"] * chosen["context"] * chosen["data"]


def _microbatches(scope: _Scope, chosen: Chosen) -> Value:
    """Microbatches a replica runs per step, (n, 1)."""
    return scope.global_batch // (chosen["data"] * chosen["micro_batch"])


def _layouts(scope: _Scope, pipeline: Value, virtual: Value) -> tuple[Value, Value]:
    """Whether the layers can be dealt to pipeline · virtual chunks evenly, and with lighter ends; shapes broadcast.

    Lighter ends: the first and the last chunk hold one layer less, none at the least (Llama 3 §3.3.2); with two chunks that is
    the even layout. Layers that fit neither are dealt as evenly as they go when each device holds one chunk.
    """
    layers, chunks = scope.architecture.layers, np.asarray(pipeline * virtual)
    divides = layers % chunks == 0
    light = (chunks > 2) & ((layers + 2) % chunks == 0) & (layers + 2 >= chunks)
    ragged = np.asarray(scope.uneven & (virtual == 1) & ~divides & ~light & (chunks <= layers))
    return divides | ragged, light


def _dealt(scope: _Scope, pipeline: Value, virtual: Value) -> Value:
    """Whether a layout that may be chosen deals the layers to pipeline · virtual chunks; shapes broadcast."""
    even, light = _layouts(scope, pipeline, virtual)
    wanted = scope.levels("stage_layout", StageLayout)
    dealt = (even & (StageLayout.EVEN in wanted)) | (light & (StageLayout.LIGHT_ENDS in wanted))
    return np.where(pipeline == 1, virtual == 1, dealt)


def _virtual_levels(scope: _Scope) -> list[int]:
    """Chunks per device worth an axis: one, and with two stages or more what divides the layers, or the layers and two."""
    layers = scope.architecture.layers
    if Schedule.INTERLEAVED not in scope.levels("schedule", Schedule):
        return [1]
    every = {1, *_divisors(layers), *_divisors(layers + 2)}
    return scope.levels("virtual", {v for v in every if v == 1 or 2 * v <= layers})


def _virtual(scope: _Scope) -> Axis:
    """Chunks per device: more than one is the interleaved schedule, which takes microbatches by the pipeline's width."""
    return _optional(
        "virtual",
        _virtual_levels(scope),
        1,
        "one stage has one chunk",
        lambda x, v: (x["pipeline"] > 1) & (v > 0),
        ("layers cannot be dealt to pipeline·virtual chunks", lambda x, v: _dealt(scope, x["pipeline"], v)),
        (
            "interleaving needs microbatches in multiples of the pipeline",
            lambda x, v: (v == 1) | (_microbatches(scope, x) % x["pipeline"] == 0),
        ),
    )


def _stage_layout(scope: _Scope) -> Axis:
    """How layers are dealt: of the two layouts, whichever divides the layers."""

    def legal(chosen: Chosen, values: Value) -> Value:
        even, light = _layouts(scope, chosen["pipeline"], chosen["virtual"])
        return np.where(values == StageLayout.EVEN, even, light)

    return _optional(
        "stage_layout",
        scope.levels("stage_layout", StageLayout),
        StageLayout.EVEN,
        "one stage has one layout",
        lambda x, _: x["pipeline"] > 1,
        ("layers do not divide by this layout", legal),
    )


def _schedule(scope: _Scope) -> Axis:
    """Order of microbatches: interleaved exactly with several chunks per device, the others with one."""

    def chunks(chosen: Chosen, values: Value) -> Value:
        return (values == Schedule.INTERLEAVED) == (chosen["virtual"] > 1)

    def several(chosen: Chosen, values: Value) -> Value:
        return (values != Schedule.GPIPE) | (_microbatches(scope, chosen) > 1)

    def both_ways(chosen: Chosen, values: Value) -> Value:
        count, stages = _microbatches(scope, chosen), chosen["pipeline"]
        return (values != Schedule.DUALPIPE) | ((stages % 2 == 0) & (count % 2 == 0) & (count >= 2 * stages))

    return _optional(
        "schedule",
        scope.levels("schedule", Schedule),
        Schedule.ONE_F_ONE_B,
        "one stage has one schedule",
        lambda x, _: x["pipeline"] > 1,
        ("interleaved means more than one chunk per device, the others one", chunks),
        ("GPipe of one microbatch is 1F1B", several),
        ("DualPipe needs an even pipeline and twice as many microbatches, an even number", both_ways),
    )


def _zero_stage(scope: _Scope) -> Axis:
    """What data·context ranks shard; gradients and weights under a pipeline only when asked."""
    named = "zero_stage" in scope.options

    def piped(chosen: Chosen, values: Value) -> Value:
        return np.full(values.shape, named) | (values < 2) | (chosen["pipeline"] == 1)

    return _optional(
        "zero_stage",
        scope.levels("zero_stage", range(4)),
        0,
        "one data·context rank has nothing to shard over",
        lambda x, _: x["data"] * x["context"] > 1,
        ("ZeRO 2 and 3 under a pipeline only when zero_stage is named", piped),
    )


def _shard_degree(scope: _Scope) -> Axis:
    """Ranks that ZeRO shards over: all, or when opened those that fill whole nodes (HSDP), or those asked for."""
    opened, named = "shard_degree" in scope.options, bool(scope.options.get("shard_degree"))

    def divides(chosen: Chosen, values: Value) -> Value:
        ranks = chosen["data"] * chosen["context"]
        return (chosen["zero_stage"] == 0) | ((ranks % values == 0) & (values > 1) if opened else values == ranks)

    def whole(chosen: Chosen, values: Value) -> Value:
        if not opened or named:  # remainders of so many values take long
            return np.ones((1, 1), np.bool_)
        ranks = chosen["data"] * chosen["context"]
        fills = (values * chosen["tensor"]) % scope.node(chosen) == 0
        return (chosen["zero_stage"] == 0) | (values == ranks) | fills

    return _optional(
        "shard_degree",
        scope.levels("shard_degree", sorted({s for count in scope.counts for s in _divisors(count)})),
        1,
        "nothing is sharded",
        lambda x, _: x["zero_stage"] > 0,
        ("shard group is not a part of the data·context ranks" if opened else "all data·context ranks shard", divides),
        ("shard group does not fill whole nodes", whole),
    )


def _sequence_parallel(scope: _Scope) -> Axis:
    """Norms and dropout split along the sequence (Korthikanti 2022 §4.2); required where experts meet tensor parallelism."""

    def fits(chosen: Chosen, values: Value) -> Value:
        return (values == 0) | ((scope.sequence // chosen["context"]) % chosen["tensor"] == 0)

    def required(chosen: Chosen, values: Value) -> Value:
        return (values == 1) | (chosen["tensor"] == 1) | np.full(values.shape, scope.architecture.experts == 0)

    return _optional(
        "sequence_parallel",
        scope.levels("sequence_parallel", (0, 1)),
        0,
        "one tensor rank has no sequence to split",
        lambda x, _: x["tensor"] > 1,
        ("a rank's sequence not divisible by tensor", fits),
        ("experts with tensor parallelism need sequence parallelism", required),
    )


def _stage_layers(scope: _Scope, chosen: Chosen) -> Value:
    """Layers of the fullest stage, (n, 1)."""
    slots = scope.architecture.layers + 2 * (chosen["stage_layout"] == StageLayout.LIGHT_ENDS)
    return -(-slots // chosen["pipeline"])


def _first_k(scope: _Scope, layers: Value, k: Value) -> Value:
    """Whether recomputing the first k of a stage's layers is a level: a quarter, half, three quarters, or what was asked."""
    inside = (k >= 1) & (k < layers)
    if scope.options.get("recompute_layers"):
        return inside
    return inside & ((k == layers // 4) | (k == layers // 2) | (k == 3 * layers // 4))


def _recompute(scope: _Scope) -> Axis:
    """What the backward pass computes again."""
    levels = np.array(_recompute_levels(scope), np.int64)

    def several(chosen: Chosen, values: Value) -> Value:
        some = _first_k(scope, _stage_layers(scope, chosen), levels[None, :]).any(axis=1, keepdims=True)
        return (values != Recompute.FIRST_K) | some

    return _axis(
        "recompute",
        scope.levels("recompute", Recompute),
        ("no part of a stage's layers between none and all", several),
    )


def _recompute_levels(scope: _Scope) -> list[int]:
    """Numbers of layers that `first_k` may recompute."""
    layers = scope.architecture.layers
    per_stage = {-(-slots // p) for slots in (layers, layers + 2) for p in range(1, layers + 1)}
    quarters = {part * each // 4 for each in per_stage for part in (1, 2, 3)}
    return scope.levels("recompute_layers", {k for k in quarters if 1 <= k < layers})


def _recompute_layers(scope: _Scope) -> Axis:
    """How many layers of a stage `first_k` recomputes."""
    return _axis(
        "recompute_layers",
        sorted({0, *_recompute_levels(scope)}),
        ("only first_k counts layers", lambda x, k: (x["recompute"] == Recompute.FIRST_K) | (k == 0)),
        (
            "not a quarter, half or three quarters of a stage's layers",
            lambda x, k: (x["recompute"] != Recompute.FIRST_K) | _first_k(scope, _stage_layers(scope, x), k),
        ),
    )


def _rank_order(scope: _Scope) -> Axis:
    """Placement of the mesh: two orders where both data and pipeline have neighbours."""
    return _optional(
        "rank_order",
        scope.levels("rank_order", RankOrder),
        RankOrder.TENSOR_CONTEXT_DATA_PIPELINE,
        "data or pipeline of one: both orders are the same",
        lambda x, _: (x["pipeline"] > 1) & (x["data"] > 1),
    )


def _plain(name: str, every: Iterable[int]) -> Callable[[_Scope], Axis]:
    """A choice without structure."""
    return lambda scope: _axis(name, scope.levels(name, every))


_AXES: tuple[Callable[[_Scope], Axis], ...] = (
    _devices,
    _tensor,
    _context,
    _pipeline,
    _data,
    _micro_batch,
    _expert,
    _expert_tensor,
    _virtual,
    _stage_layout,
    _schedule,
    _zero_stage,
    _shard_degree,
    _sequence_parallel,
    _recompute,
    _recompute_layers,
    _plain("offload", Offload),
    _plain("precision", range(len(NAMES["precision"]))),
    _rank_order,
    _plain("trainable", range(len(NAMES["trainable"]))),
)
