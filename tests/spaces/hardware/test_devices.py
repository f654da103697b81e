"""The catalogue of devices and the clusters built from them."""

import copy
import dataclasses
import math
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.hardware import (
    FORMATS,
    TOPOLOGIES,
    Device,
    UnknownDevice,
    cluster,
    device_from_mapping,
    device_names,
    find_device,
)

GENERATIONS = {"volta", "pascal", "ampere", "hopper", "blackwell", "ada", "cdna2", "cdna3", "cdna4", "tpu", "gaudi", "ascend"}
CATALOGUE = device_names()


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_device_is_complete_and_plausible(name: str) -> None:
    device = find_device(name)
    assert device.name == name
    assert device.generation in GENERATIONS
    assert device.scale_up_topology in TOPOLOGIES
    assert device.source
    assert device.confidence in ("high", "medium", "low")
    assert 16e9 <= device.memory_capacity <= 400e9
    assert 0.3e12 <= device.memory_bandwidth <= 10e12
    assert 10e12 <= max(device.matrix_flops.values()) <= 2e16
    assert device.price_range[0] <= device.price_per_hour <= device.price_range[1]
    assert set(device.estimated) <= {field.name for field in dataclasses.fields(Device)}


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_alias_finds_its_device(name: str) -> None:
    device = find_device(name)
    for alias in device.aliases:
        for spelling in (alias, alias.upper(), alias.lower(), alias.replace("-", "_"), alias.replace("-", " ")):
            assert find_device(spelling) is device


def test_the_whole_catalogue_is_there() -> None:
    assert len(CATALOGUE) >= 38


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("H100", "H100-80GB-SXM"),
        ("H200", "H200-141GB-SXM"),
        ("H800", "H800-80GB-SXM"),
        ("H20", "H20-96GB"),
        ("B200", "B200-180/192GB-SXM"),
        ("GB200", "GB200-NVL72 (per GPU)"),
        ("A100", "A100-80GB-SXM"),
        ("A100-80GB", "A100-80GB-SXM"),
        ("A100-80GB (paper)", "A100-80GB-SXM"),
        ("A100-40GB", "A100-40GB-SXM"),
        ("V100", "V100-SXM2-16/32GB"),
        ("V100-32GB", "V100-SXM2-16/32GB"),
        ("MI300X", "MI300X"),
        ("MI250X-GCD", "MI250X (per GCD)"),
        ("L40S", "L40S"),
        ("RTX 4090", "RTX4090"),
        ("TPU-v3 core", "TPU-v3-core"),
        ("H100-96GB-HBM2e-2.4TBps-500W", "H100-96GB-HBM2e (Meta Grand Teton)"),
        ("P100 (PCIe, no NVLink)", "P100-PCIe-16GB"),
    ],
)
def test_usual_short_names(short: str, name: str) -> None:
    assert find_device(short).name == name


def test_a_capped_or_halved_chip_is_an_entry_of_its_own() -> None:
    assert find_device("H100-96GB-500W") != find_device("H100")
    assert find_device("H100-96GB-500W").power == 500
    assert find_device("TPU-v3-core").memory_capacity == pytest.approx(find_device("TPU-v3").memory_capacity / 2, rel=0.01)


def test_an_unknown_device_lists_the_nearest() -> None:
    with pytest.raises(UnknownDevice, match="H100-80GB-SXM"):
        find_device("H1OO")


def test_capacity_is_what_the_driver_reports_not_a_gibibyte_nameplate() -> None:
    assert find_device("H100").memory_capacity == pytest.approx(85.0e9, rel=0.002)
    assert find_device("H200").memory_capacity == pytest.approx(150.1e9, rel=0.002)
    assert find_device("A100-40GB").memory_capacity < 40 * 2**30


def test_symbols_are_flat_finite_numbers() -> None:
    symbols = find_device("A100").symbols()
    assert symbols["device.matrix_flops.bf16"] == 312e12
    assert symbols["device.matrix_flops.fp8"] == 0.0
    assert symbols["device.domain"] == symbols["device.per_node"] == 8
    assert {f"device.matrix_flops.{name}" for name in FORMATS} <= set(symbols)
    assert all(isinstance(value, float) and math.isfinite(value) for value in symbols.values())
    assert {frozenset(find_device(name).symbols()) for name in CATALOGUE} == {frozenset(symbols)}


def test_point_to_point_links_reach_one_peer_with_their_share() -> None:
    assert find_device("MI300X").peer_bandwidth == pytest.approx(64e9)
    assert find_device("H100").peer_bandwidth == find_device("H100").scale_up_bandwidth


def test_devices_can_be_sent_copied_and_hashed() -> None:
    device = find_device("H100")
    assert pickle.loads(pickle.dumps(device)) == device == copy.deepcopy(device)
    assert hash(pickle.loads(pickle.dumps(device))) == hash(device)
    with pytest.raises(TypeError):
        device.matrix_flops["bf16"] = 1.0  # type: ignore[index]


def test_a_device_like_another_keeps_what_is_not_said() -> None:
    device = device_from_mapping(
        {"like": "H100", "name": "next", "memory_bandwidth": "8 TB/s", "matrix_flops": {"bf16": "2 PFLOP/s"}}
    )
    base = find_device("H100")
    assert device.memory_bandwidth == 8e12
    assert device.matrix_flops["bf16"] == 2e15
    assert device.matrix_flops["fp8"] == base.matrix_flops["fp8"]
    assert device.memory_capacity == base.memory_capacity
    assert device.aliases == ()


def test_a_device_described_whole_is_the_same_device() -> None:
    base = find_device("MI300X")
    told = {field.name: getattr(base, field.name) for field in dataclasses.fields(Device)}
    assert device_from_mapping(told) == base


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"memory_bandwith": 1.0}, "memory_bandwidth"),
        ({"memory_bandwidth": "900 GB"}, "memory_bandwidth.*B/s"),
        ({"memory_bandwidth": 0.0}, "memory_bandwidth must be finite and positive"),
        ({"memory_capacity": -1}, "memory_capacity must be finite and positive"),
        ({"power": math.nan}, "power must be finite and positive"),
        ({"nic_bandwidth": math.inf}, "nic_bandwidth must be finite and positive"),
        ({"scale_up_domain": 0}, "scale_up_domain must be a whole number"),
        ({"scale_up_topology": "star"}, "scale_up_topology 'star'"),
        ({"matrix_flops": {"bf17": 1e15}}, "bf17"),
        ({"matrix_flops": 3}, "number formats"),
        ({"idle_power": "2 kW"}, "idle_power"),
        ({"price_range": [3, 2]}, "price_range"),
    ],
)
def test_an_impossible_device_is_refused_in_words(change: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        device_from_mapping({"like": "H100"} | change)


def test_a_device_described_in_part_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match=r"lacks .*memory_capacity"):
        device_from_mapping({"name": "sketch"})


def test_tiers_run_from_the_domain_to_the_fabric() -> None:
    built = cluster(find_device("H100"), 1024, oversubscription=2.0)
    assert [(tier.name, tier.size) for tier in built.tiers] == [("nvlink", 8), ("fabric", 1024)]
    assert built.tiers[-1].bandwidth == pytest.approx(25e9)
    assert built.symbols()["device.nic_bandwidth"] == pytest.approx(25e9)


def test_bridged_pairs_meet_over_pcie_and_packages_come_first() -> None:
    assert [tier.size for tier in cluster(find_device("A100-PCIe"), 32).tiers] == [2, 8, 32]
    assert [tier.size for tier in cluster(find_device("MI250X-GCD"), 64).tiers] == [2, 8, 64]


@given(st.sampled_from(CATALOGUE), st.integers(min_value=0, max_value=6))
def test_tiers_grow_in_size_and_end_with_the_cluster(name: str, power: int) -> None:
    device = find_device(name)
    devices = max(device.scale_up_domain, device.devices_per_node) * 2**power
    built = cluster(device, devices)
    sizes = [tier.size for tier in built.tiers]
    assert sizes == sorted(set(sizes))
    assert devices == 1 or sizes[-1] == devices


def test_a_cluster_smaller_than_its_domain_needs_no_fabric() -> None:
    assert [tier.size for tier in cluster(find_device("H100"), 4).tiers] == [4]
    assert cluster(find_device("H100"), 1).tiers == ()


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("H100", {"devices": 0}, "at least one device"),
        ("H100", {"devices": -8}, "at least one device"),
        ("H100", {"devices": True}, "at least one device"),
        ("H100", {"devices": 12}, "12 devices do not fill whole domains of 8"),
        ("H100", {"devices": 64, "domain": 3}, "do not nest"),
        ("H100", {"devices": 64, "domain": 0}, "scale_up_domain must be"),
        ("H100", {"devices": 4096, "devices_per_node": 4096}, "more than any node holds"),
        ("H100", {"devices": 64, "nic_bandwidth": 0.0}, "nic_bandwidth must be"),
        ("H100", {"devices": 64, "oversubscription": 0.5}, "oversubscription"),
        ("GH200", {"devices": 64, "domain": 8}, "no links to other devices"),
    ],
)
def test_an_impossible_cluster_is_refused_in_words(name: str, arguments: dict[str, int], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        cluster(find_device(name), **arguments)  # type: ignore[arg-type]
