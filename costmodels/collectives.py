"""What a collective costs on two tiers of links: pure functions of arrays that broadcast together, in seconds and bytes.

Every algorithm is α–β: hops · latency + bytes / bandwidth, with a bandwidth that depends on the bytes of one step. A
group has `ranks` members, `ranks_in_domain` of them on each node; the rest is reached over NICs, one for each rank.
Sizes are those of nccl-tests: the full tensor for all_reduce and broadcast, the gathered output for all_gather, the full
input for reduce_scatter, one rank's buffer for all_to_all and send_recv.
"""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from spaces.facts import facts_in
from spaces.units import quantity

FloatArray: TypeAlias = NDArray[np.float64]

# NCCL sends small messages by protocols that carry flags beside the data: slower per byte, without the start-up of the
# large-message protocol. Below this share of the link's bandwidth they win ("LL" and "LL128", NCCL's NCCL_PROTO).
_FLAGGED_SHARE = 0.3
# messages to different peers that NCCL keeps in flight at once in grouped sends and receives
_PEERS_IN_FLIGHT = 8.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One tier as one rank sees it; scalars or arrays of shape (n,).

    `latency` s a hop, `bandwidth` bytes/s one direction for large messages, `half_size` bytes a step at which half of it
    is reached, `setup` s a call.
    """

    latency: ArrayLike
    bandwidth: ArrayLike
    half_size: ArrayLike = 0.0
    setup: ArrayLike = 0.0

    def bandwidth_at(self, step: ArrayLike) -> FloatArray:
        """Bytes/s reached with `step` bytes a step: bandwidth · step / (step + half_size), or the flagged protocols'."""
        bytes_ = np.asarray(step, dtype=np.float64)
        share = bytes_ / np.maximum(bytes_ + np.asarray(self.half_size), np.finfo(np.float64).tiny)
        return np.asarray(np.asarray(self.bandwidth) * np.maximum(share, _FLAGGED_SHARE), dtype=np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkConstants:
    """What a generation's links achieve: `share` of the datasheet's bandwidth; latency and setup in s, half_size in B.

    `summed` is the share at which switches that add up what passes them (NVLink SHARP) do so; 0 where they do not.
    """

    latency: float
    setup: float
    share: float
    half_size: float
    evidence: str
    source: str
    summed: float = 0.0

    def link(self, bandwidth: ArrayLike, latency: ArrayLike | None = None) -> Link:
        """The link of that datasheet bandwidth (bytes/s); `latency` (s) in place of the generation's where given."""
        return Link(
            latency=self.latency if latency is None else latency,
            bandwidth=np.asarray(bandwidth, dtype=np.float64) * self.share,
            half_size=self.half_size,
            setup=self.setup,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """A group on its two tiers: n ranks, g of them in a domain, k = n / g domains, as float64 arrays."""

    n: FloatArray
    g: FloatArray
    k: FloatArray
    inner: Link
    outer: Link

    @property
    def spans(self) -> NDArray[np.bool_]:
        return self.k > 1

    @property
    def setup(self) -> FloatArray:
        return np.where(self.spans, np.asarray(self.outer.setup), np.asarray(self.inner.setup))

    def ring_bandwidth(self, step: FloatArray) -> FloatArray:
        """Bytes/s of a ring through all ranks: its slower tier. Between nodes it runs over the NICs of all g ranks."""
        inside = np.where(self.g > 1, self.inner.bandwidth_at(step), np.inf)
        return np.minimum(inside, np.where(self.spans, self.g * self.outer.bandwidth_at(step / self.g), np.inf))


def collective_time(
    kind: str,
    size: ArrayLike,
    ranks: ArrayLike,
    ranks_in_domain: ArrayLike,
    inner: Link,
    outer: Link,
    *,
    algorithm: str = "best",
) -> FloatArray:
    """Seconds of one collective of `size` bytes; shape of the arguments broadcast together.

    `algorithm` is one of ALGORITHMS[kind], or `best`, the fastest of them for each row (as NCCL's tuner chooses). One
    rank, or no bytes, costs 0. `ranks_in_domain` is clipped to `ranks`; where nodes hold unequal shares give the
    smallest, whose NICs are the neck. Raises ValueError for an unknown kind or algorithm or a count below 1.
    """
    known = _known(kind)
    if algorithm != "best" and algorithm not in known:
        raise ValueError(f"{kind} has no algorithm {algorithm!r}; it has best, {', '.join(known)}")
    bytes_, group = _group(size, ranks, ranks_in_domain, inner, outer)
    chosen = known.values() if algorithm == "best" else (known[algorithm],)
    with np.errstate(divide="ignore", invalid="ignore"):
        times = [time(bytes_, group) for time in chosen]
    fastest = times[0] if len(times) == 1 else np.minimum.reduce(times)
    return np.asarray(np.where((group.n > 1) & (bytes_ > 0), group.setup + fastest, 0.0), dtype=np.float64)


def collective_bytes(kind: str, size: ArrayLike, ranks: ArrayLike, ranks_in_domain: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """(inner_bytes, outer_bytes): what one rank sends over each tier, averaged over the group, for the energy model.

    Rings and hierarchical rings send the same in all: 2(n−1)/n of the tensor for all_reduce, (n−1)/n for all_gather,
    reduce_scatter, broadcast and all_to_all; with g ranks a node (n−g)/(n·g) of the tensor crosses nodes for each pass,
    (n−g)/n of the buffer for all_to_all. Raises ValueError as `collective_time` does.
    """
    _known(kind)
    nothing = Link(latency=0.0, bandwidth=1.0)
    bytes_, group = _group(size, ranks, ranks_in_domain, nothing, nothing)
    n, g = group.n, group.g
    if kind == "send_recv":
        sent = np.where(n > 1, bytes_, 0.0)
        return np.where(group.spans, 0.0, sent), np.where(group.spans, sent, 0.0)
    if kind == "all_to_all":
        return bytes_ * (g - 1) / n, bytes_ * (n - g) / n
    passes = 2.0 if kind == "all_reduce" else 1.0
    return passes * bytes_ * (g - 1) / g, passes * bytes_ * (n - g) / (n * g)


def group_bandwidth(scale_up: ArrayLike, peer: ArrayLike, ranks: ArrayLike) -> FloatArray:
    """Bytes/s one direction that a group of `ranks` within a domain can use of a device's scale-up links.

    Through a switch `peer` equals `scale_up` and any group has all of it; on point-to-point links a group reaches only
    the ports that lead to its own members: min(scale_up, peer · (ranks − 1)).
    """
    others = np.maximum(np.asarray(ranks, dtype=np.float64) - 1.0, 1.0)
    return np.minimum(np.asarray(scale_up, dtype=np.float64), np.asarray(peer, dtype=np.float64) * others)


def links(generation: str) -> tuple[LinkConstants, LinkConstants]:
    """(inner, outer) constants of a device generation. Raises ValueError, naming those known."""
    table = _links()
    if generation not in table:
        near = difflib.get_close_matches(generation, table, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"no link constants for generation {generation!r} (there are {', '.join(table)}){hint}")
    return table[generation]


def _ring(passes: float) -> Callable[[FloatArray, _Group], FloatArray]:
    """`passes` times (n−1) steps of size/n bytes (Patarasuk & Yuan 2009; Thakur et al. 2005, §4).

    Hops as NCCL's tuner counts them (nccl src/graph/tuning.cc): passes · (k−1) of them between nodes, the rest within.
    """

    def time(size: FloatArray, group: _Group) -> FloatArray:
        between = group.k - 1
        hops = (group.n - 1 - between) * np.asarray(group.inner.latency) + between * np.asarray(group.outer.latency)
        step = size / group.n
        return np.asarray(passes * (hops + (group.n - 1) * step / group.ring_bandwidth(step)))

    return time


def _hierarchical(passes: float) -> Callable[[FloatArray, _Group], FloatArray]:
    """A ring within each node and one between nodes, g of them side by side, each over its own rank's NIC.

    All-reduce: reduce-scatter within, ring all-reduce of size/g between, all-gather within (NCCL's NVLSTree and CollNet
    follow the same three phases); all-gather and reduce-scatter are one pass of each.
    """

    def time(size: FloatArray, group: _Group) -> FloatArray:
        within = _steps(size * (group.g - 1) / group.g, group.g - 1, group.inner)
        between = _steps(size * (group.n - group.g) / (group.n * group.g), group.k - 1, group.outer)
        return np.asarray(passes * (within + between))

    return time


def _tree_all_reduce(size: FloatArray, group: _Group) -> FloatArray:
    """Reduce up and broadcast down a chain within nodes and a double binary tree between them (NCCL ≥ 2.4).

    2((g−1)·α_inner + log2(k)·α_outer) as in nccl src/graph/tuning.cc; all of the tensor passes twice.
    """
    depth = np.ceil(np.log2(group.k))
    hops = (group.g - 1) * np.asarray(group.inner.latency) + depth * np.asarray(group.outer.latency)
    step = size / np.maximum(2 * (group.g - 1 + depth), 1)
    return np.asarray(2 * (hops + size / group.ring_bandwidth(step)))


def _ring_broadcast(size: FloatArray, group: _Group) -> FloatArray:
    """A pipelined chain: every link carries the tensor once, behind n−1 hops (NCCL's broadcast)."""
    between = group.k - 1
    hops = (group.n - 1 - between) * np.asarray(group.inner.latency) + between * np.asarray(group.outer.latency)
    return np.asarray(hops + size / group.ring_bandwidth(size / group.n))


def _tree_broadcast(size: FloatArray, group: _Group) -> FloatArray:
    """A binomial tree, over nodes and then within: the whole tensor at each level (Thakur et al. 2005, §4.2)."""
    outer_levels, inner_levels = np.ceil(np.log2(group.k)), np.ceil(np.log2(group.g))
    within = _steps(inner_levels * size, inner_levels, group.inner)
    return within + _steps(outer_levels * size, outer_levels, group.outer)


def _direct_all_to_all(size: FloatArray, group: _Group) -> FloatArray:
    """Each rank sends size/n to every other: (n−g)/(n−1) of it over its own NIC, the rest within, at the same time.

    Pairwise exchange (Thakur et al. 2005, §4.3) with several peers in flight, so latency grows slower than the group.
    """
    near, far = group.g - 1, group.n - group.g
    within = _steps(size * near / group.n, _rounds(near), group.inner)
    return np.maximum(within, _steps(size * far / group.n, _rounds(far), group.outer))


def _direct_send(size: FloatArray, group: _Group) -> FloatArray:
    """One message: between nodes as soon as the group spans them, for its worst pair is what others wait for."""
    one = np.ones_like(group.n)
    return np.where(group.spans, _steps(size, one, group.outer), _steps(size, one, group.inner))


ALGORITHMS: Mapping[str, Mapping[str, Callable[[FloatArray, _Group], FloatArray]]] = MappingProxyType(
    {
        "all_reduce": {"ring": _ring(2.0), "tree": _tree_all_reduce, "hierarchical": _hierarchical(2.0)},
        "all_gather": {"ring": _ring(1.0), "hierarchical": _hierarchical(1.0)},
        "reduce_scatter": {"ring": _ring(1.0), "hierarchical": _hierarchical(1.0)},
        "broadcast": {"ring": _ring_broadcast, "tree": _tree_broadcast},
        "all_to_all": {"direct": _direct_all_to_all},
        "send_recv": {"direct": _direct_send},
    }
)


def _steps(moved: FloatArray, steps: FloatArray, link: Link) -> FloatArray:
    """Seconds for `moved` bytes sent in `steps` equal steps over one tier; no steps take no time."""
    step = moved / np.maximum(steps, np.finfo(np.float64).tiny)
    spent = steps * np.asarray(link.latency) + moved / link.bandwidth_at(step)
    return np.asarray(np.where(steps > 0, spent, 0.0), dtype=np.float64)


def _rounds(peers: FloatArray) -> FloatArray:
    """Rounds in which messages to `peers` others go out, several at once; 0 for none, 1 for one."""
    return np.asarray(np.where(peers > 0, 1 + (peers - 1) / _PEERS_IN_FLIGHT, 0.0), dtype=np.float64)


def _known(kind: str) -> Mapping[str, Callable[[FloatArray, _Group], FloatArray]]:
    """The algorithms of a kind. Raises ValueError naming the nearest kind."""
    if kind not in ALGORITHMS:
        near = difflib.get_close_matches(kind, ALGORITHMS, n=1, cutoff=0.0)
        raise ValueError(f"no collective is called {kind!r}; the nearest is {near[0]!r}")
    return ALGORITHMS[kind]


def _group(
    size: ArrayLike, ranks: ArrayLike, ranks_in_domain: ArrayLike, inner: Link, outer: Link
) -> tuple[FloatArray, _Group]:
    """The arguments as float64 arrays. Raises ValueError for a negative size or a count below 1."""
    bytes_, n, g = (np.asarray(values, dtype=np.float64) for values in (size, ranks, ranks_in_domain))
    if (bytes_ < 0).any():
        raise ValueError("a collective's size is 0 bytes or more")
    if (n < 1).any() or (g < 1).any():
        raise ValueError("a group has at least one rank, and at least one in a domain")
    g = np.minimum(g, n)
    return bytes_, _Group(n=n, g=g, k=np.asarray(n / g), inner=inner, outer=outer)


@lru_cache(maxsize=1)
def _links() -> Mapping[str, tuple[LinkConstants, LinkConstants]]:
    """links.yaml by generation."""
    text = files("costmodels").joinpath("data", "links.yaml").read_text(encoding="utf-8")
    return {name: (_constants(tiers["inner"]), _constants(tiers["outer"])) for name, tiers in facts_in(text).items()}


def _constants(entry: Mapping[str, object]) -> LinkConstants:
    """One tier's entry of links.yaml."""
    return LinkConstants(
        latency=quantity(entry["latency"], "s"),
        setup=quantity(entry["setup"], "s"),
        share=quantity(entry["share"], ""),
        half_size=quantity(entry["half_size"], "B"),
        evidence=str(entry["evidence"]),
        source=str(entry["source"]),
        summed=quantity(entry.get("summed", 0.0), ""),
    )
