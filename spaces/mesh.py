"""Where the ranks of a plan sit: the distance between neighbours of a group, and how its worst-placed group straddles.

n_devices = tensor · context · pipeline · data. Within a pipeline stage the experts re-mesh the tensor · context · data
ranks as expert_tensor · expert · expert_data. Ranks are numbered along a declared order, innermost axis first.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

IntArray: TypeAlias = NDArray[np.int64]

ORDER = ("tensor", "context", "expert", "data", "pipeline")
DENSE_AXES = ("tensor", "context", "data", "pipeline")
EXPERT_AXES = ("expert_tensor", "expert", "expert_data")

# what an axis of the declared order stands for among the experts; context has no part of its own there
_AMONG_EXPERTS = {"tensor": "expert_tensor", "expert": "expert", "data": "expert_data", "pipeline": "pipeline"}


def devices(degrees: Mapping[str, ArrayLike]) -> IntArray:
    """tensor · context · pipeline · data, an axis left out counting 1; shape of the degrees broadcast together."""
    return _product([_ints(degrees.get(axis, 1), axis) for axis in DENSE_AXES])


def strides(order: Sequence[str], degrees: Mapping[str, ArrayLike]) -> dict[str, IntArray]:
    """The distance in ranks between neighbours of a group along each axis, by axis name.

    `order` names the axes of ORDER from the innermost; `expert` is a place among the experts' axes only. `degrees`
    gives each axis's degree (arrays broadcast; a dense axis left out counts 1); with any of EXPERT_AXES the experts'
    strides come too. Raises ValueError when the order is not a permutation, when the experts do not re-mesh exactly
    tensor · context · data, or when the ranks of a stage are not laid out so that they can.
    """
    _check_order(order, degrees)
    dense = {axis: _ints(degrees.get(axis, 1), axis) for axis in DENSE_AXES}
    found = _running_products([(axis, dense[axis]) for axis in order if axis != "expert"])
    if not any(axis in degrees for axis in EXPERT_AXES):
        return found
    experts = {axis: _ints(degrees.get(axis, 1), axis) for axis in EXPERT_AXES} | {"pipeline": dense["pipeline"]}
    within = _product([experts[axis] for axis in EXPERT_AXES])
    if np.any(within != _product([dense["tensor"], dense["context"], dense["data"]])):
        raise ValueError("expert_tensor · expert · expert_data must equal tensor · context · data")
    walk = [(_AMONG_EXPERTS[axis], experts[_AMONG_EXPERTS[axis]]) for axis in order if axis in _AMONG_EXPERTS]
    return _running_products(walk) | found


def worst_group(
    size: ArrayLike, stride: ArrayLike, domain: ArrayLike, total: ArrayLike | None = None
) -> tuple[IntArray, IntArray]:
    """How the worst-placed group of `size` ranks, `stride` apart, lies on domains of `domain` ranks.

    Returns (ranks_in_domain, domains): the fewest ranks of a group that any domain holds, and the most domains a group
    spans, both over all groups of a cluster; int64, shape of the arguments broadcast together. Groups start at
    q·stride·size + o with o < stride, as `strides` lays them out. With `total` devices in all, a cluster that fits one
    domain is never straddled; without it the cluster is taken to be large. Exact; raises ValueError for a number below 1.
    """
    everything = np.iinfo(np.int64).max if total is None else total
    given = [_ints(*one) for one in ((size, "size"), (stride, "stride"), (domain, "domain"), (everything, "total"))]
    if all(array.size == 1 for array in given):  # one group by itself: nearly always met before
        shape = (1,) * max(array.ndim for array in given)
        held, spanning = _lone_group(*(array.item() for array in given))
        return np.full(shape, held), np.full(shape, spanning)
    return _worst_groups(*np.broadcast_arrays(*given))


@lru_cache(maxsize=4096)
def _lone_group(size: int, stride: int, domain: int, total: int) -> tuple[int, int]:
    """`worst_group` of one group."""
    per_domain, spanned = _worst_groups(*(np.array([one]) for one in (size, stride, domain, total)))
    return int(per_domain[0]), int(spanned[0])


def _worst_groups(ranks: IntArray, step: IntArray, nodes: IntArray, devices_: IntArray) -> tuple[IntArray, IntArray]:
    """`worst_group` of checked arrays of one shape."""
    block = ranks * step
    inside = (nodes % block == 0) | (ranks == 1) | (devices_ <= nodes)
    whole = ~inside & (block % nodes == 0) & (nodes % step == 0)
    apart = ~inside & ~whole & (step >= nodes)
    per_domain = np.where(inside, ranks, np.where(whole, nodes // step, 1))
    spanned = np.where(inside, 1, np.where(whole, block // nodes, ranks))
    rest = ~(inside | whole | apart)
    if rest.any():  # a group of 3 or 6 on nodes of 8: few distinct cases, each counted once
        per_domain[rest], spanned[rest] = _straddling(ranks[rest], step[rest], nodes[rest])
    return per_domain, spanned


def share_of_domain(domain: ArrayLike, node: ArrayLike, total: ArrayLike) -> IntArray:
    """Devices that a job of `total` takes of each scale-up domain of `domain`, which is made of nodes of `node`; int64.

    A job gets whole nodes, as many of every domain, so that its groups fit: 256 devices take 64 of each rack of 72 (Slurm's
    block topology, `--segment`). Where that would leave half of a domain empty, and in domains of one node, all of it is
    taken and groups may straddle. Shape of the arguments broadcast together; raises ValueError for a number below 1.
    """
    domains, nodes, totals = np.broadcast_arrays(_ints(domain, "domain"), _ints(node, "node"), _ints(total, "total"))
    spread = (totals > domains) & (domains > nodes)
    found = np.array(domains)
    if spread.any():  # few distinct cases, each counted once
        found[spread] = _even_shares(domains[spread], nodes[spread], totals[spread])
    return found


def _even_shares(domain: IntArray, node: IntArray, total: IntArray) -> IntArray:
    """`share_of_domain` for jobs beyond one domain of several nodes; shape (n,) each."""
    radix_node, radix_total = int(node.max()) + 1, int(total.max()) + 1
    code = (domain * radix_node + node) * radix_total + total
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    return np.array([_even_share(int(domain[i]), int(node[i]), int(total[i])) for i in first], dtype=np.int64)[inverse]


@lru_cache(maxsize=65536)
def _even_share(domain: int, node: int, total: int) -> int:
    if domain % node or total % node:
        return domain
    nodes, wanted = domain // node, total // node
    return next((take * node for take in range(nodes, nodes // 2, -1) if wanted % take == 0), domain)


def _straddling(size: IntArray, stride: IntArray, domain: IntArray) -> tuple[IntArray, IntArray]:
    """`worst_group` for groups that fit no closed form, counted once per distinct triple; shape (n,) each."""
    radix_stride, radix_domain = int(stride.max()) + 1, int(domain.max()) + 1
    code = (size * radix_stride + stride) * radix_domain + domain
    _, first, inverse = np.unique(code, return_index=True, return_inverse=True)
    cases = [_count_straddling(int(size[i]), int(stride[i]), int(domain[i])) for i in first]
    table = np.array(cases, dtype=np.int64)[inverse]
    return table[:, 0], table[:, 1]


@lru_cache(maxsize=65536)
def _count_straddling(size: int, stride: int, domain: int) -> tuple[int, int]:
    """(fewest ranks in a domain, most domains) over every phase a group can start at, for stride < domain.

    Starts q·size·stride + o take the phases k·gcd(size·stride, domain) + o modulo the domain, o < stride. As the stride is
    below the domain's size, a group visits consecutive domains; domain j holds the multiples of the stride in
    [j·domain − phase, (j+1)·domain − phase).
    """
    common = int(np.gcd(size * stride, domain))
    starts = (np.arange(0, domain, common)[:, None] + np.arange(min(stride, common))) % domain
    phases = np.flatnonzero(np.bincount(starts.ravel()))
    spans = (phases + (size - 1) * stride) // domain + 1
    first = np.minimum(size, -(-(domain - phases) // stride))
    last = size - np.maximum(0, -(-((spans - 1) * domain - phases) // stride))
    fewest = int(min(first.min(), last.min()))
    most = int(spans.max())
    # how a middle domain cuts the stride repeats after at most `stride` domains
    middle = np.arange(1, min(most - 1, stride + 1))
    if middle.size:
        offset = (phases[:, None] - middle * domain) % stride
        counts = (domain - 1 - offset) // stride + 1
        counts = counts[middle < (spans - 1)[:, None]]
        fewest = min(fewest, int(counts.min())) if counts.size else fewest
    return fewest, most


def _check_order(order: Sequence[str], degrees: Mapping[str, ArrayLike]) -> None:
    """Raise ValueError for an order that is no permutation of ORDER, or one in which experts cannot re-mesh a stage."""
    strange = sorted(set(degrees) - {*DENSE_AXES, *EXPERT_AXES})
    if strange:
        raise ValueError(f"no such axis: {', '.join(strange)}; the axes are {', '.join((*DENSE_AXES, *EXPERT_AXES))}")
    if sorted(set(order) | {"expert"}) != sorted(ORDER) or len(set(order)) != len(order):
        raise ValueError(f"a rank order names each of {', '.join(ORDER)} once, got {', '.join(order)}")
    if any(axis in degrees for axis in EXPERT_AXES):
        if "expert" not in order:
            raise ValueError("the rank order must say where `expert` goes")
        if "pipeline" not in (order[0], order[-1]):
            raise ValueError("experts re-mesh the ranks of one stage, so `pipeline` must be innermost or outermost")


def _running_products(walk: Sequence[tuple[str, IntArray]]) -> dict[str, IntArray]:
    """Each axis's stride: the product of the degrees before it."""
    found, stride = {}, np.ones((), dtype=np.int64)
    for axis, degree in walk:
        found[axis], stride = stride, stride * degree
    return found


def _product(factors: Sequence[IntArray]) -> IntArray:
    """The product of arrays that broadcast together."""
    total = np.ones((), dtype=np.int64)
    for factor in factors:
        total = total * factor
    return total


def _ints(values: ArrayLike, name: str) -> IntArray:
    """`values` as int64. Raises ValueError when one is below 1 or not whole."""
    array = np.asarray(values)
    whole = array.astype(np.int64)
    if (whole != array).any() or (whole < 1).any():
        raise ValueError(f"{name} must be whole numbers from 1, got {array!r}")
    return whole
