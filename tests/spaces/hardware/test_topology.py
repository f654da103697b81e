"""Topologies: closed forms against the graph itself."""

import networkx as nx
import pytest

from spaces.hardware.device import TOPOLOGIES
from spaces.hardware.topology import ImpossibleTopology, check_topology, graph, reach

POINT_TO_POINT = ("ring", "torus", "all-to-all", "hybrid-cube-mesh", "dragonfly", "nvlink-bridge")


def possible(topology: str, devices: int) -> bool:
    try:
        check_topology(topology, devices)
    except ImpossibleTopology:
        return False
    return True


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_whatever_is_possible_connects_every_rank(topology: str) -> None:
    for devices in range(1, 65):
        if possible(topology, devices):
            assert nx.is_connected(graph(topology, devices)), devices


@pytest.mark.parametrize("topology", POINT_TO_POINT)
def test_closed_forms_are_those_of_the_graph(topology: str) -> None:
    sizes = [devices for devices in range(2, 65) if possible(topology, devices)]
    assert sizes
    for devices in sizes:
        links, closed = graph(topology, devices), reach(topology, devices)
        assert closed.hops == pytest.approx(nx.average_shortest_path_length(links)), devices
        assert max(degree for _, degree in links.degree()) <= closed.ports, devices
        assert closed.all_to_all == pytest.approx(1 / closed.hops)


@pytest.mark.parametrize(
    ("topology", "devices", "words"),
    [
        ("none", 2, "there are no links; 1 would do"),
        ("torus", 13, "prime.*12 or 14 would do"),
        ("hybrid-cube-mesh", 16, "two quads; 8 or 4 would do"),
        ("nvlink-bridge", 8, "4 or 3 would do"),
        ("dragonfly", 7, "cannot connect 7 devices"),
        ("tours", 8, "nearest is 'torus'"),
        ("ring", 0, "at least one device"),
        ("torus", 10**9 + 7, "1,000,000 at most"),
    ],
)
def test_links_that_cannot_connect_the_ranks_say_what_would(topology: str, devices: int, words: str) -> None:
    with pytest.raises(ImpossibleTopology, match=words):
        graph(topology, devices)
