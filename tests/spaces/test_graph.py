"""The dataflow graph on blocks small enough to reason about by hand."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.expressions import Expression, product
from spaces.graph import Collective, Graph, Kind, Operator, Placement, Tensor, exchange

TOKENS, WIDE = ("tokens", "hidden"), ("tokens", "ffn")
UP = Operator(
    "up", Kind.GEMM, (("x", TOKENS),), (Tensor("a", WIDE),), ("hidden",), (("hidden", "ffn"), ("ffn",)), keeps=("x",)
)
ACT = Operator("act", Kind.ACTIVATION, (("a", WIDE),), (Tensor("b", WIDE),), keeps=("a",), region="core")
DOWN = Operator("down", Kind.GEMM, (("b", WIDE),), (Tensor("c", TOKENS),), ("ffn",), (("ffn", "hidden"),), keeps=("b",))
ADD = Operator("add", Kind.ADD, (("x", TOKENS), ("c", TOKENS)), (Tensor("y", TOKENS),))
MLP = Graph((UP, ACT, DOWN, ADD), (Tensor("x", TOKENS),))
SPLIT = Placement({"ffn": ("tensor",)})


def moved(found: tuple[Collective, ...]) -> Counter[tuple[str, str, str]]:
    return Counter((c.kind, c.axis, c.tensor) for c in found)


def test_megatron_f_and_g_follow_from_a_split_width() -> None:
    """Column- then row-parallel: one all-reduce forward after the second product, one backward before the first."""
    assert moved(MLP.forward_collectives(SPLIT)) == {("all_reduce", "tensor", "c"): 1}
    assert moved(MLP.backward_collectives(SPLIT)) == {("all_reduce", "tensor", "d_x"): 1}


def test_a_split_stream_turns_them_into_scatters_and_gathers() -> None:
    stream = ("stream", "hidden")
    x, y = Tensor("x", stream), Tensor("y", stream)
    add = replace(ADD, reads=(("x", stream), ("c", stream)), writes=(y,))
    graph = Graph((UP, ACT, DOWN, add), (x,))
    where = Placement({"ffn": ("tensor",), "stream": ("tensor",)})
    forward, backward = graph.forward_collectives(where), graph.backward_collectives(where)
    assert moved(forward) == {("all_gather", "tensor", "x"): 1, ("reduce_scatter", "tensor", "c"): 1}
    # the gradient mirrors the forward pass, and the weight gradient of `up` needs its input whole once more
    assert moved(backward) == {
        ("all_gather", "tensor", "d_c"): 1,
        ("reduce_scatter", "tensor", "d_x"): 1,
        ("all_gather", "tensor", "saved_x"): 1,
    }


def test_nothing_moves_where_nothing_is_split() -> None:
    assert MLP.forward_collectives(Placement({})) == ()
    assert MLP.backward_collectives(Placement({})) == ()


@pytest.mark.parametrize(
    ("held", "partial", "wanted", "found"),
    [
        ({}, set(), {}, []),
        ({}, set(), {"t": "ffn"}, []),
        ({"t": "ffn"}, set(), {"t": "ffn"}, []),
        ({"t": "ffn"}, set(), {}, [("all_gather", "t")]),
        ({"t": "ffn"}, set(), {"t": "heads"}, [("all_to_all", "t")]),
        ({"t": "stream"}, set(), {"t": "tokens"}, []),
        ({}, {"t"}, {}, [("all_reduce", "t")]),
        ({}, {"t"}, {"t": "tokens"}, [("reduce_scatter", "t")]),
        ({"c": "tokens"}, {"t"}, {"c": "tokens"}, [("all_reduce", "t")]),
        ({"c": "tokens"}, {"t"}, {}, [("all_gather", "c"), ("all_reduce", "t")]),
    ],
)
def test_a_change_of_placement_implies_its_collective(
    held: dict[str, str], partial: set[str], wanted: dict[str, str], found: list[tuple[str, str]]
) -> None:
    assert list(exchange(held, frozenset(partial), wanted)) == found


def test_several_readers_share_one_exchange() -> None:
    again = replace(ADD, name="again", writes=(Tensor("z", TOKENS),))
    twice = Graph((*MLP.operators, again), MLP.inputs)
    assert moved(twice.forward_collectives(SPLIT)) == moved(MLP.forward_collectives(SPLIT))


def test_parameters_are_counted_once_each() -> None:
    assert MLP.parameters().evaluate({"hidden": 10, "ffn": 40}) == 10 * 40 + 40 + 40 * 10


@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 9), st.integers(1, 9))
def test_local_shares_cover_the_global_size(hidden: int, ffn: int, tensor: int, context: int) -> None:
    where = Placement({"ffn": ("tensor", "context"), "hidden": ("context",)})
    at = {"hidden": hidden, "ffn": ffn, "tensor": tensor, "context": context}
    for dim, size, degree in (("ffn", ffn, tensor * context), ("hidden", hidden, context)):
        local = MLP.local(dim, where).evaluate(at)
        assert size <= local * degree < size + degree
        assert MLP.local(dim, where, gathered=("tensor", "context")).evaluate(at) == size
    assert MLP.elements(("hidden", "ffn"), where).evaluate(at) * context * tensor * context >= hidden * ffn


def test_bytes_are_elements_times_their_width() -> None:
    tensor = Tensor("a", WIDE, 4)
    at = {"tokens": 3, "ffn": 10, "tensor": 2, "activation_bytes": 2}
    assert MLP.bytes(tensor, SPLIT).evaluate(at) == 3 * 5 * 4
    assert MLP.bytes(replace(tensor, element="activation_bytes"), SPLIT).evaluate(at) == 3 * 5 * 2
    assert MLP.bytes(tensor, SPLIT, gathered=("tensor",)).evaluate(at) == 3 * 10 * 4


def test_a_dimension_that_is_a_number_is_its_own_size() -> None:
    assert MLP.size("3") == Expression("constant", (3,))
    assert Graph((), (), {"wide": product("hidden", 4)}).size("wide").evaluate({"hidden": 2}) == 8


# ---- what is kept, and what is computed again ---------------------------------------------------------------------------


def names(tensors: tuple[Tensor, ...]) -> list[str]:
    return [tensor.name for tensor in tensors]


def test_policies_keep_less_and_compute_more() -> None:
    assert names(MLP.kept("none")) == ["x", "a", "b"]
    assert names(MLP.kept("core")) == ["x", "a"]
    assert names(MLP.kept("full")) == ["x"]
    assert MLP.recomputed("none") == ()
    assert [op.name for op in MLP.recomputed("core")] == ["act"]
    # the last saved tensor is `b`: what follows it is not computed again
    assert [op.name for op in MLP.recomputed("full")] == ["up", "act"]


@pytest.mark.parametrize("policy", ["none", "core", "alternate", "full"])
def test_after_recomputation_everything_the_backward_pass_needs_exists(policy: str) -> None:
    exists = {*names(MLP.kept(policy)), *names(MLP.inputs)}
    for op in MLP.operators:
        if op in MLP.recomputed(policy):
            assert {name for name, _ in op.reads} <= exists, "recomputed operators run in order"
            exists |= {tensor.name for tensor in op.writes}
    assert {name for op in MLP.operators for name in op.keeps} <= exists


# ---- graphs that cannot be ----------------------------------------------------------------------------------------------


def test_a_tensor_nobody_writes_is_named() -> None:
    with pytest.raises(ValueError, match="'up' reads 'x', which nothing writes"):
        _ = Graph(MLP.operators, ()).network


def test_a_tensor_written_twice_is_named() -> None:
    with pytest.raises(ValueError, match=r"'a' is written by 'up' and by 'again'"):
        _ = Graph((*MLP.operators, replace(UP, name="again")), MLP.inputs).network


def test_a_cycle_is_refused() -> None:
    back = Operator("back", Kind.ADD, (("y", TOKENS),), (Tensor("x", TOKENS),))
    with pytest.raises(ValueError, match="cycle"):
        _ = Graph((*MLP.operators, back), ()).network


def test_the_network_joins_writers_and_readers() -> None:
    edges = {(a, b): d["tensor"] for a, b, d in MLP.network.edges(data=True)}
    assert edges == {("up", "act"): "a", ("act", "down"): "b", ("down", "add"): "c"}
    assert set(MLP.tensors) == set("xabcy")
