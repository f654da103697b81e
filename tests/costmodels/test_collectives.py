"""Collectives: relations any α–β model must hold, and the mistakes nearby tools make."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from costmodels.collectives import ALGORITHMS, Link, collective_bytes, collective_time, group_bandwidth, links
from spaces.hardware import device_names, find_device

NVLINK = Link(latency=1e-6, bandwidth=240e9, half_size=0.5e6, setup=6e-6)
NIC = Link(latency=6e-6, bandwidth=24e9, half_size=0.25e6, setup=8e-6)
KINDS = tuple(ALGORITHMS)
NAMED = [(kind, algorithm) for kind, known in ALGORITHMS.items() for algorithm in (*known, "best")]

sizes = st.floats(min_value=1.0, max_value=1e11)
powers = st.integers(min_value=0, max_value=10).map(lambda exponent: 2**exponent)
links_drawn = st.builds(
    Link,
    latency=st.floats(1e-7, 1e-4),
    bandwidth=st.floats(1e9, 1e12),
    half_size=st.floats(0.0, 1e7),
    setup=st.floats(0.0, 1e-4),
)


def _without_setup(link: Link) -> Link:
    return dataclasses.replace(link, setup=0.0)


@pytest.mark.parametrize(("kind", "algorithm"), NAMED)
@given(small=sizes, large=sizes, ranks=powers, held=powers, inner=links_drawn, outer=links_drawn)
def test_more_bytes_never_take_less_time(
    kind: str, algorithm: str, small: float, large: float, ranks: int, held: int, inner: Link, outer: Link
) -> None:
    low, high = sorted((small, large))
    times = collective_time(kind, [0.0, low, high], ranks, held, inner, outer, algorithm=algorithm)
    assert times[0] == 0.0
    assert np.all(np.isfinite(times))
    assert times[1] <= times[2] * (1 + 1e-12)


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes, ranks=powers, held=powers)
def test_best_is_the_fastest_algorithm(kind: str, size: float, ranks: int, held: int) -> None:
    named = [collective_time(kind, size, ranks, held, NVLINK, NIC, algorithm=name) for name in ALGORITHMS[kind]]
    assert collective_time(kind, size, ranks, held, NVLINK, NIC) == min(named)


@pytest.mark.parametrize("kind", KINDS)
def test_one_rank_costs_nothing(kind: str) -> None:
    assert collective_time(kind, 1e9, 1, 1, NVLINK, NIC) == 0.0
    assert collective_bytes(kind, 1e9, 1, 1) == (0.0, 0.0)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "send_recv"])
@pytest.mark.parametrize("held", [1, 8])
def test_latency_grows_with_the_group(kind: str, held: int) -> None:
    """One constant latency for any group size is a mistake seen in the tools nearby.

    Each doubling costs at least a hop within the node; the bytes of eight bytes are no part of that.
    """
    ranks = held * 2 ** np.arange(1, 10)
    times = collective_time(kind, 8.0, ranks, held, NVLINK, NIC)
    assert np.all(np.diff(times) > float(np.asarray(NVLINK.latency)))


def test_ring_latency_grows_by_two_hops_a_rank() -> None:
    ranks = np.arange(2, 73)
    times = collective_time("all_reduce", 1e-6, ranks, 72, NVLINK, NIC, algorithm="ring")
    assert np.diff(times) == pytest.approx(2 * float(np.asarray(NVLINK.latency)), rel=1e-6)


@given(size=st.floats(min_value=1e6, max_value=1e11), held=st.sampled_from([1, 2, 4, 8]))
def test_tensor_parallel_across_nodes_is_not_charged_as_nvlink(size: float, held: int) -> None:
    """A group that spans nodes pays NIC rate for the share that crosses, whatever NVLink could do."""
    within = collective_time("all_reduce", size, 16, 16, NVLINK, NIC)
    across = collective_time("all_reduce", size, 16, held, NVLINK, NIC)
    assert across > within
    crossing = 2 * size * (16 - held) / (16 * held)
    assert across >= crossing / float(np.asarray(NIC.bandwidth))


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes, ranks=powers, slow=st.floats(1.0, 1e9))
def test_a_group_within_a_domain_never_touches_the_nics(kind: str, size: float, ranks: int, slow: float) -> None:
    slower = Link(latency=1.0, bandwidth=slow)
    assert collective_time(kind, size, ranks, 2048, NVLINK, slower) == collective_time(kind, size, ranks, ranks, NVLINK, NIC)
    assert collective_bytes(kind, size, ranks, 2048)[1] == 0.0


@given(size=sizes, ranks=powers, held=powers, inner=links_drawn, outer=links_drawn)
def test_a_ring_all_reduce_is_a_reduce_scatter_and_an_all_gather(
    size: float, ranks: int, held: int, inner: Link, outer: Link
) -> None:
    arguments = (size, ranks, held, _without_setup(inner), _without_setup(outer))
    for algorithm in ("ring", "hierarchical"):
        halves = [collective_time(kind, *arguments, algorithm=algorithm) for kind in ("reduce_scatter", "all_gather")]
        assert sum(halves) == pytest.approx(collective_time("all_reduce", *arguments, algorithm=algorithm), rel=1e-9)


@given(size=sizes, held=powers, nodes=powers)
def test_hierarchical_is_no_slower_than_its_rings_spelled_out(size: float, held: int, nodes: int) -> None:
    spelled = (
        collective_time("reduce_scatter", size, held, held, NVLINK, NIC, algorithm="ring")
        + collective_time("all_reduce", size / held, nodes, 1, NVLINK, NIC, algorithm="ring")
        + collective_time("all_gather", size, held, held, NVLINK, NIC, algorithm="ring")
    )
    together = collective_time("all_reduce", size, held * nodes, held, NVLINK, NIC, algorithm="hierarchical")
    assert together <= spelled * (1 + 1e-9)


@pytest.mark.parametrize("kind", KINDS)
@given(size=sizes, ranks=powers, held=powers)
def test_the_bytes_of_the_tiers_add_up(kind: str, size: float, ranks: int, held: int) -> None:
    inner, outer = collective_bytes(kind, size, ranks, held)
    passes = {"all_reduce": 2.0}.get(kind, 1.0)
    expected = passes * size * (ranks - 1) / ranks if kind != "send_recv" else size * (ranks > 1)
    assert inner >= 0
    assert outer >= 0
    assert inner + outer == pytest.approx(expected, rel=1e-9)


def test_all_to_all_crosses_nodes_with_the_share_of_its_peers_there() -> None:
    fast = Link(latency=0.0, bandwidth=1e15)
    nic = Link(latency=0.0, bandwidth=50e9)
    time = collective_time("all_to_all", 64e6, 64, 8, fast, nic)
    moved = 64e6 * 63 / 64
    assert time == pytest.approx(moved * (64 - 8) / (64 - 1) / 50e9)


def test_more_nics_a_node_carry_more() -> None:
    times = collective_time("all_reduce", 1e9, 64, np.array([1, 2, 4, 8]), NVLINK, NIC)
    assert np.all(np.diff(times) < 0)


def test_small_messages_reach_less_bandwidth() -> None:
    link = Link(latency=0.0, bandwidth=100e9, half_size=1e6)
    assert link.bandwidth_at(1e6) == pytest.approx(50e9)
    reached = link.bandwidth_at(np.array([0.0, 1e3, 1e6, 1e9]))
    assert np.all(np.diff(reached) >= 0)
    assert reached[0] > 0


def test_arguments_broadcast_and_a_batch_is_its_rows() -> None:
    size, ranks = np.array([1e3, 1e6, 1e9])[:, None], np.array([2, 8, 64])
    link = dataclasses.replace(NVLINK, bandwidth=np.array([240e9, 240e9, 370e9]))
    times = collective_time("all_reduce", size, ranks, 8, link, NIC)
    assert times.shape == (3, 3)
    one = dataclasses.replace(NVLINK, bandwidth=370e9)
    assert times[1, 2] == collective_time("all_reduce", 1e6, 64, 8, one, NIC)
    assert collective_time("all_reduce", np.empty(0), 8, 8, NVLINK, NIC).shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("all_redcue", 1.0, 8, 8), "nearest is 'all_reduce'"),
        (("all_reduce", -1.0, 8, 8), "0 bytes or more"),
        (("all_reduce", 1.0, 0, 8), "at least one rank"),
        (("all_reduce", 1.0, 8, 0), "at least one rank"),
    ],
)
def test_a_mistaken_call_is_refused_in_words(arguments: tuple[str, float, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        collective_time(*arguments, NVLINK, NIC)


def test_an_algorithm_a_collective_lacks_is_refused() -> None:
    with pytest.raises(ValueError, match="all_gather has no algorithm 'tree'"):
        collective_time("all_gather", 1e6, 8, 8, NVLINK, NIC, algorithm="tree")


def test_point_to_point_links_give_a_small_group_only_its_own_ports() -> None:
    mi300x = find_device("MI300X")
    reached = group_bandwidth(mi300x.scale_up_bandwidth, mi300x.peer_bandwidth, [2, 4, 8, 16])
    assert reached == pytest.approx([64e9, 192e9, 448e9, 448e9])


@pytest.mark.parametrize(
    ("generation", "bandwidth", "low", "high"), [("ampere", 300e9, 225e9, 245e9), ("hopper", 450e9, 350e9, 375e9)]
)
def test_large_all_reduces_reach_the_bus_bandwidth_people_report(
    generation: str, bandwidth: float, low: float, high: float
) -> None:
    inner, outer = links(generation)
    time = collective_time("all_reduce", 4e9, 8, 8, inner.link(bandwidth), outer.link(25e9))
    assert low <= 2 * 7 / 8 * 4e9 / float(time) <= high


@pytest.mark.parametrize("name", device_names())
def test_every_device_has_links_and_their_latency(name: str) -> None:
    device = find_device(name)
    inner, outer = links(device.generation)
    assert 0 < inner.share <= 1
    assert 0 < outer.share <= 1
    assert (device.scale_up_latency, device.nic_latency) == (inner.latency, outer.latency)
    assert inner.evidence in ("measured", "estimated")
    assert inner.source


def test_an_unknown_generation_names_those_there_are() -> None:
    with pytest.raises(ValueError, match="hopper"):
        links("hoper")
