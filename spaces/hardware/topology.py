"""Topologies of links: how devices are joined, what one of them reaches, and whether all can be reached at all.

A topology is a name and a number of devices. `graph` builds it (networkx) to be looked at and tested; `reach` gives the
closed forms that cost models use: ports, mean hops, and what of a device's bandwidth an all-to-all gets.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Any

from spaces.hardware.device import TOPOLOGIES

if TYPE_CHECKING:
    import networkx as nx


class ImpossibleTopology(ValueError):
    """Links that cannot connect the ranks asked for; the message says what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reach:
    """What a topology of n devices gives each of them.

    `ports`: parts that a device's bandwidth is split over. `hops`: links that a message to another device passes, in the
    mean. `all_to_all`: share of a device's bandwidth at which it sends to all others at once: 1 / hops where devices forward
    for each other, 1 where a switch does.
    """

    ports: int
    hops: float
    all_to_all: float


def reach(topology: str, devices: int) -> Reach:
    """The closed forms for `devices` under a topology. Raises ImpossibleTopology as `check_topology`."""
    check_topology(topology, devices)
    if devices == 1:
        return Reach(ports=1, hops=0.0, all_to_all=1.0)
    if topology in _SWITCHED:
        return Reach(ports=1, hops=1.0, all_to_all=1.0)
    if topology in ("all-to-all", "nvlink-bridge"):
        return Reach(ports=devices - 1, hops=1.0, all_to_all=1.0)
    if topology == "hybrid-cube-mesh":
        hops = (4 * 1 + 3 * 2) / 7 if devices == 8 else 1.0
        return Reach(ports=6, hops=hops, all_to_all=1 / hops)
    if topology == "dragonfly":
        routers, groups = _dragonfly(devices)
        near, far = routers - 1, devices - routers
        hops = (near + far * (3 - 2 / routers)) / (devices - 1) if groups > 1 else 1.0
        return Reach(ports=max(routers - 1, 1) + max(math.ceil((groups - 1) / routers), 0), hops=hops, all_to_all=1 / hops)
    sides = (devices,) if topology == "ring" else _torus(devices)
    hops = sum(_ring_hops(side) for side in sides) * devices / (devices - 1)
    ports = sum(min(side - 1, 2) for side in sides)
    return Reach(ports=ports, hops=hops, all_to_all=1 / hops)


def check_topology(topology: str, devices: int) -> None:
    """Raise ImpossibleTopology where these links cannot connect that many devices, with the nearest number that they can."""
    if topology not in TOPOLOGIES:
        near = difflib.get_close_matches(topology, TOPOLOGIES, n=1, cutoff=0.0)[0]
        raise ImpossibleTopology(f"there is no topology {topology!r}; the nearest is {near!r}")
    if devices < 1:
        raise ImpossibleTopology(f"a topology joins at least one device, got {devices}")
    if devices > _MOST:
        raise ImpossibleTopology(f"{devices:,} devices are more than any links join directly; {_MOST:,} at most")
    rule = _RULES.get(topology)
    if rule is None or devices == 1 or rule[0](devices):
        return
    away = (n for step in range(1, devices + 64) for n in (devices - step, devices + step) if n > 1 and rule[0](n))
    told = " or ".join(str(n) for n in islice(away, 2)) if topology != "none" else "1"
    raise ImpossibleTopology(f"{topology} cannot connect {devices} devices: {rule[1]}; {told} would do")


def graph(topology: str, devices: int) -> nx.Graph[Any]:
    """The devices (0 … n−1) and switches ("switch", i) as nodes, links as edges. Raises ImpossibleTopology."""
    import networkx as nx  # slow to import; runs do without

    check_topology(topology, devices)
    links: nx.Graph[Any] = nx.Graph()
    links.add_nodes_from(range(devices))
    links.add_edges_from(_EDGES.get(topology, _star)(devices))
    return links


def _ring_hops(side: int) -> float:
    """Mean links between two places of a ring, a place to itself included: ⌊k²/4⌋ / k."""
    return (side * side // 4) / side


def _torus(devices: int) -> tuple[int, ...]:
    """The sides of the most cubic torus with at most three dimensions, largest first; sides of 1 are left out."""
    best = (devices, 1, 1)
    for a in range(1, round(devices ** (1 / 3)) + 1):
        if devices % a == 0:
            for b in range(a, math.isqrt(devices // a) + 1):
                if (devices // a) % b == 0:
                    sides = (devices // a // b, b, a)
                    best = min(best, sides, key=lambda s: (sum(s), s))
    return tuple(side for side in best if side > 1) or (1,)


def _dragonfly(devices: int) -> tuple[int, int]:
    """(routers a group, groups) of a dragonfly with one device a router and one link between any two groups.

    Balanced: as many routers in a group as groups less one, or fewer (Kim et al. 2008, a·h + 1 groups with h = 1).
    """
    routers = next(a for a in range(max(math.isqrt(devices), 1), devices + 1) if devices % a == 0 and devices // a <= a + 1)
    return routers, devices // routers


def _ring_edges(devices: int) -> list[tuple[int, int]]:
    return [(i, (i + 1) % devices) for i in range(devices)] if devices > 1 else []


def _torus_edges(devices: int) -> list[tuple[int, int]]:
    sides = _torus(devices)
    places = {place: i for i, place in enumerate(product(*(range(side) for side in sides)))}
    edges = []
    for place, i in places.items():
        for axis, side in enumerate(sides):
            other = tuple((x + 1) % side if at == axis else x for at, x in enumerate(place))
            if side > 1:
                edges.append((i, places[other]))
    return edges


def _cube_edges(devices: int) -> list[tuple[int, int]]:
    """Two fully joined quads, and each device joined to its twin (DGX-1)."""
    if devices <= 4:
        return list(combinations(range(devices), 2))
    quads = [*combinations(range(4), 2), *combinations(range(4, 8), 2)]
    return [*quads, *((i, i + 4) for i in range(4))]


def _dragonfly_edges(devices: int) -> list[tuple[int, int]]:
    routers, groups = _dragonfly(devices)
    within = [(g * routers + a, g * routers + b) for g in range(groups) for a, b in combinations(range(routers), 2)]
    between = [(g * routers + h - 1, h * routers + g) for g, h in combinations(range(groups), 2)]
    return within + between


def _rail_edges(devices: int) -> list[tuple[object, object]]:
    """Eight rails: device i of every node on switch i mod 8, the rails' switches joined by a spine (Wang et al. 2023)."""
    rails = min(8, devices)
    return [
        *((i, ("switch", i % rails)) for i in range(devices)),
        *((("switch", rail), ("switch", "spine")) for rail in range(rails)),
    ]


def _star(devices: int) -> list[tuple[object, object]]:
    return [(i, ("switch", 0)) for i in range(devices)] if devices > 1 else []


_MOST = 1_000_000

_SWITCHED = frozenset({"nvswitch", "switch", "pcie", "rail-optimised", "package-mesh", "none"})
_EDGES: Mapping[str, Callable[[int], Sequence[Any]]] = {
    "ring": _ring_edges,
    "torus": _torus_edges,
    "all-to-all": lambda n: list(combinations(range(n), 2)),
    "nvlink-bridge": lambda n: list(combinations(range(n), 2)),
    "hybrid-cube-mesh": _cube_edges,
    "dragonfly": _dragonfly_edges,
    "rail-optimised": _rail_edges,
    "none": lambda _: [],
}
_RULES: Mapping[str, tuple[Callable[[int], bool], str]] = {
    "none": (lambda n: n == 1, "there are no links"),
    "nvlink-bridge": (lambda n: n <= 4, "bridges join two to four"),
    "hybrid-cube-mesh": (lambda n: n in (2, 3, 4, 8), "it is two quads"),
    "torus": (lambda n: n <= 3 or len(_torus(n)) > 1, "the number is prime, so there are no sides to fold it to"),
    "all-to-all": (lambda n: n <= 64, "a device has at most 63 ports"),
    "dragonfly": (
        lambda n: n <= 3 or _dragonfly(n)[1] > 1,
        "it does not divide into groups of equal size with a link between any two",
    ),
}
