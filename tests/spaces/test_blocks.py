"""Graphs of real architectures: parameters, implied collectives and kept bytes against the papers' counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spaces.architecture import Architecture, find, names
from spaces.blocks import GraphTraits, Model, build, layer_kinds, placement, scalars
from spaces.graph import MATRIX_KINDS, Collective, Graph, Kind, Placement

GPT = replace(find("gpt-22b"), layers=2)
LLAMA = replace(find("llama-3.1-8b"), layers=2)
EXPERTS = replace(find("mixtral-8x7b"), layers=2)
KORTHIKANTI = GraphTraits(unfused_attention=True, dropout=True)
FLASH = GraphTraits()
EAGER = GraphTraits(eager_activation=True)
PUBLISHED = [name for name in names() if find(name).parameters is not None]


@cache
def model(architecture: Architecture, traits: GraphTraits) -> Model:
    return build(architecture, traits)


def at(architecture: Architecture, **given: int) -> dict[str, int]:
    """Symbols of a layer on one device; degrees are 1 unless given."""
    degrees = dict.fromkeys(("tensor", "context", "expert", "expert_tensor", "stream_shards"), 1)
    widths = {"activation_bytes": 2, "dispatch_bytes": 2, "logits_bytes": 4}
    return {**scalars(architecture), **degrees, **widths, "micro_batch": 1, "sequence": 2048, **given}


def kept(graph: Graph, where: Placement, symbols: Mapping[str, int], policy: str = "none") -> float:
    return float(sum(graph.bytes(tensor, where).evaluate(symbols) for tensor in graph.kept(policy)))


def statistics(graph: Graph, where: Placement, symbols: Mapping[str, int]) -> float:
    """Means and reciprocal deviations of the norms: two or one number a token, which the papers leave out."""
    small = [t for op in graph.operators if op.kind is Kind.NORM for t in op.writes[1:]]
    return float(sum(graph.bytes(tensor, where).evaluate(symbols) for tensor in small))


def moved(found: tuple[Collective, ...], axis: str) -> Counter[str]:
    return Counter(c.kind for c in found if c.axis == axis)


# ---- parameters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_graph_owns_exactly_the_published_parameters(name: str) -> None:
    architecture = find(name)
    assert model(architecture, FLASH).parameters() == architecture.parameters


@given(st.sampled_from(names()), st.booleans(), st.booleans(), st.booleans(), st.booleans())
def test_how_a_stack_writes_the_model_changes_no_parameter(
    name: str, unfused: bool, qkv: bool, gate: bool, eager: bool
) -> None:
    architecture = replace(find(name), parameters=None)
    traits = GraphTraits(unfused_attention=unfused, fused_qkv=qkv, fused_gate_up=gate, dropout=eager, eager_activation=eager)
    assert build(architecture, traits).parameters() == model(architecture, FLASH).parameters()


def test_there_are_enough_published_counts_to_mean_something() -> None:
    assert len(PUBLISHED) >= 40


def test_embedding_and_head_are_counted_and_shared_when_tied() -> None:
    """128,256 rows of 4,096 twice: 1.05 of Llama-3.1-8B's 8.03 billion parameters."""
    tied = replace(LLAMA, tied_embeddings=True, parameters=None)
    table = LLAMA.vocab * LLAMA.hidden
    assert model(LLAMA, FLASH).parameters() - model(tied, FLASH).parameters() == table
    layers = sum(model(LLAMA, FLASH).layers[kind].parameters().evaluate(scalars(LLAMA)) for kind in layer_kinds(LLAMA))
    assert model(LLAMA, FLASH).parameters() == layers + 2 * table + LLAMA.hidden


@pytest.mark.parametrize("name", ["deepseek-v3", "llama-4-maverick", "gemma-3-27b", "mixtral-8x22b", "gpt-oss-120b"])
def test_every_layer_has_the_kind_its_architecture_says(name: str) -> None:
    architecture = find(name)
    kinds = layer_kinds(architecture)
    assert len(kinds) == architecture.layers
    assert sum(kind.startswith("moe") for kind in kinds) == architecture.expert_layers
    assert sum(not kind.endswith("-window") for kind in kinds) == architecture.full_attention_layers


def test_matrix_products_touch_the_active_parameters_of_a_token() -> None:
    """Forward FLOPs of a token are twice the weights it meets: all of a dense layer, k of E experts of a sparse one."""
    for architecture, active in ((GPT, 1.0), (LLAMA, 1.0), (EXPERTS, 2 / 8)):
        for graph in model(architecture, FLASH).layers.values():
            symbols = at(architecture, sequence=64)
            where = placement(sequence_parallel=False, vocab_parallel=True)
            flops = owned = 0.0
            for op in graph.operators:
                if op.kind in MATRIX_KINDS:
                    reads = op.reads[0][1]
                    rows = graph.elements([d for d in reads if d not in op.contracted], where).evaluate(symbols)
                    inner = graph.elements(op.contracted, where).evaluate(symbols)
                    outer = sum(
                        graph.elements([d for d in t.dims if d not in reads], where).evaluate(symbols) for t in op.writes
                    )
                    flops += 2 * rows * inner * outer
                    matrices = [dims for dims in op.weights if set(op.contracted) <= set(dims)]
                    size = sum(graph.elements(dims, Placement({})).evaluate(symbols) for dims in matrices)
                    owned += size * (active if op.kind is Kind.GROUPED_GEMM else 1.0)
            assert flops == pytest.approx(2 * owned * 64, rel=1e-12)


# ---- collectives --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("architecture", "traits"), [(GPT, KORTHIKANTI), (LLAMA, FLASH), (LLAMA, EAGER)])
def test_tensor_parallel_layers_reduce_twice_each_way(architecture: Architecture, traits: GraphTraits) -> None:
    """Megatron's f and g (Shoeybi 2019 §3): two all-reduces of a layer forward, two backward."""
    (graph,) = model(architecture, traits).layers.values()
    where = placement(sequence_parallel=False, vocab_parallel=True)
    assert moved(graph.forward_collectives(where), "tensor") == {"all_reduce": 2}
    assert moved(graph.backward_collectives(where), "tensor") == {"all_reduce": 2}


@pytest.mark.parametrize(("architecture", "traits"), [(GPT, KORTHIKANTI), (LLAMA, FLASH)])
def test_sequence_parallel_layers_gather_and_scatter(architecture: Architecture, traits: GraphTraits) -> None:
    """Each all-reduce becomes a gather and a scatter; the saved shard of each product's input is gathered once more
    (Korthikanti 2022 §4.2.2)."""
    (graph,) = model(architecture, traits).layers.values()
    where = placement(sequence_parallel=True, vocab_parallel=True)
    assert moved(graph.forward_collectives(where), "tensor") == {"all_gather": 2, "reduce_scatter": 2}
    backward = graph.backward_collectives(where)
    saved = tuple(c for c in backward if c.tensor.startswith("saved_"))
    rest = tuple(c for c in backward if not c.tensor.startswith("saved_"))
    assert moved(rest, "tensor") == {"all_gather": 2, "reduce_scatter": 2}
    assert moved(saved, "tensor") == {"all_gather": 2}


def test_sequence_parallelism_moves_the_bytes_of_the_all_reduces() -> None:
    """A gather and a scatter move what one all-reduce moves; only the saved gathers come on top."""
    symbols = at(LLAMA, tensor=8)
    (graph,) = model(LLAMA, FLASH).layers.values()

    def volume(sequence_parallel: bool) -> float:
        where = placement(sequence_parallel=sequence_parallel, vocab_parallel=True)
        here = {**symbols, "stream_shards": 8 if sequence_parallel else 1}
        found = (*graph.forward_collectives(where), *graph.backward_collectives(where))
        passes = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}
        return float(
            sum(
                passes[c.kind] * graph.elements(c.dims, where, c.gathered).evaluate(here) * 2
                for c in found
                if c.axis == "tensor" and not c.tensor.startswith("saved_")
            )
        )

    assert volume(True) == volume(False) == 2 * 4 * 2 * 2048 * LLAMA.hidden


@pytest.mark.parametrize(("architecture", "traits"), [(GPT, KORTHIKANTI), (LLAMA, FLASH), (EXPERTS, FLASH)])
def test_context_parallel_attention_gathers_keys_and_values(architecture: Architecture, traits: GraphTraits) -> None:
    """Keys and values of the true key/value heads reach every rank, and their gradients go back (Llama 3 §3.3.2)."""
    where = placement(sequence_parallel=False, vocab_parallel=True)
    for graph in model(architecture, traits).layers.values():
        forward, backward = graph.forward_collectives(where), graph.backward_collectives(where)
        assert moved(forward, "context") == {"all_gather": 2}
        assert moved(backward, "context") == {"reduce_scatter": 2}
        for found in (forward, backward):
            assert all("kv_heads" in c.dims for c in found if c.axis == "context")


def test_experts_dispatch_and_combine_each_way() -> None:
    where = placement(sequence_parallel=True, vocab_parallel=True)
    (graph,) = model(EXPERTS, FLASH).layers.values()
    symbols = at(EXPERTS, expert=8, sequence=4096)
    sizes = []
    for found in (graph.forward_collectives(where), graph.backward_collectives(where)):
        exchanges = [c for c in found if c.axis == "expert"]
        assert Counter(c.kind for c in exchanges) == {"all_to_all": 2}
        sizes += [graph.elements(c.dims, where, c.gathered).evaluate(symbols) for c in exchanges]
    # every token goes to two experts, whole
    assert set(sizes) == {4096 * 2 * EXPERTS.hidden}


def test_a_dense_model_exchanges_nothing_with_experts() -> None:
    where = placement(sequence_parallel=True, vocab_parallel=True)
    for graph in (*model(LLAMA, FLASH).layers.values(), model(LLAMA, FLASH).head, model(LLAMA, FLASH).embedding):
        axes = {c.axis for c in (*graph.forward_collectives(where), *graph.backward_collectives(where))}
        assert axes <= {"tensor", "context"}



def test_a_split_embedding_table_is_reduced_where_nothing_follows_it() -> None:
    """Each rank looks up its own rows: the embeddings are partial sums until they are reduced (Shoeybi 2019 §3)."""
    for parallel, kind in ((False, "all_reduce"), (True, "reduce_scatter")):
        where = placement(sequence_parallel=parallel, vocab_parallel=True)
        for made in (model(GPT, KORTHIKANTI), model(LLAMA, FLASH)):
            assert moved(made.embedding.forward_collectives(where), "tensor") == {kind: 1}


@pytest.mark.parametrize("architecture", [GPT, LLAMA, EXPERTS], ids=lambda a: a.name)
def test_nothing_moves_under_no_placement(architecture: Architecture) -> None:
    made = model(architecture, FLASH)
    for graph in (made.embedding, made.head, *made.layers.values()):
        assert graph.forward_collectives(Placement({})) == graph.backward_collectives(Placement({})) == ()


# ---- conservation -------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([GPT, LLAMA, EXPERTS]),
    st.sampled_from([1, 2, 3, 4, 8]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2, 4, 8]),
    st.booleans(),
)
def test_what_devices_hold_together_covers_every_tensor(
    architecture: Architecture, tensor: int, context: int, expert: int, parallel: bool
) -> None:
    """Local size times the degrees that split it is the global size, or more where a share is rounded up."""
    where = placement(sequence_parallel=parallel, vocab_parallel=True)
    degrees = {"tensor": tensor, "context": context, "expert": expert, "expert_tensor": 1}
    symbols = at(architecture, **degrees, stream_shards=tensor if parallel else 1)
    alone = at(architecture)
    made = model(architecture, FLASH)
    for graph in (made.embedding, made.head, *made.layers.values()):
        for value in graph.tensors.values():
            if "experts" in value.dims or "routed" in value.dims:
                continue  # `routed` counts the tokens of a device; the weights below cover the experts
            split = 1
            for dim in value.dims:
                for axis in where.axes.get(dim, ()):
                    split *= degrees[axis]
            assert graph.bytes(value, where).evaluate(symbols) * split >= graph.bytes(value, Placement({})).evaluate(alone)
        for op in graph.operators:
            for dims in op.weights:
                split = 1
                for dim in dims:
                    for axis in where.axes.get(dim, ()):
                        split *= degrees[axis]
                owned = graph.elements(dims, Placement({})).evaluate(alone)
                assert graph.elements(dims, where).evaluate(symbols) * split >= owned


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4]), st.sampled_from([512, 2048, 8192]))
def test_every_routed_token_is_computed_by_some_expert(expert: int, context: int, sequence: int) -> None:
    """Balanced routing: over the expert ranks, products run on the tokens that their ranks sent, k times each."""
    (graph,) = model(EXPERTS, FLASH).layers.values()
    where = placement(sequence_parallel=False, vocab_parallel=True)
    symbols = at(EXPERTS, expert=expert, context=context, sequence=sequence)
    computed = graph.elements(("experts", "per_expert"), where).evaluate(symbols)
    assert computed == pytest.approx(sequence / context * EXPERTS.experts_per_token)


# ---- kept bytes ---------------------------------------------------------------------------------------------------------

SHAPES = [("gpt-22b", 2048, 4), ("gpt-175b", 2048, 1), ("gpt-530b", 2048, 1), ("gpt-1t", 2048, 1)]


@pytest.mark.parametrize(("name", "s", "b"), SHAPES)
@pytest.mark.parametrize("t", [1, 2, 8])
def test_korthikanti_activation_memory(name: str, s: int, b: int, t: int) -> None:
    """Table 2 of Korthikanti 2022: sbh(34 + 5as/h), sbh(10 + 24/t + 5as/(ht)), sbh/t(34 + 5as/h), 34sbh/t, 2sbh."""
    architecture = replace(find(name), layers=1, parameters=None)
    (graph,) = model(architecture, KORTHIKANTI).layers.values()
    h, scores = architecture.hidden, 5 * architecture.heads * s / architecture.hidden
    whole = at(architecture, sequence=s, micro_batch=b, tensor=t)
    split = {**whole, "stream_shards": t}
    plain = placement(sequence_parallel=False, vocab_parallel=True)
    parallel = placement(sequence_parallel=True, vocab_parallel=True)

    def counted(where: Placement, symbols: Mapping[str, int], policy: str) -> float:
        return kept(graph, where, symbols, policy) - (0 if policy == "full" else statistics(graph, where, symbols))

    sbh = s * b * h
    assert counted(plain, whole, "none") == pytest.approx(sbh * (10 + 24 / t + scores / t), rel=1e-12)
    assert counted(parallel, split, "none") == pytest.approx(sbh / t * (34 + scores), rel=1e-12)
    assert counted(plain, whole, "core") == pytest.approx(sbh * (10 + 24 / t), rel=1e-12)
    assert counted(parallel, split, "core") == pytest.approx(34 * sbh / t, rel=1e-12)
    assert counted(plain, whole, "full") == pytest.approx(2 * sbh, rel=1e-12)


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-7b", "qwen2.5-7b", "mistral-7b-v0.3", "llama-3.1-405b"])
@pytest.mark.parametrize("tokens", [512, 8192])
def test_eager_gated_layers_keep_what_was_measured(name: str, tokens: int) -> None:
    """2(4Th + Tad + Tq + 4Tf) + 8T + 4Ta: inputs and outputs of both norms, q, k, v, attention's output, four values of the
    MLP's width, two reciprocal deviations and the log-sum-exp."""
    a = replace(find(name), layers=1, parameters=None)
    (graph,) = model(a, EAGER).layers.values()
    q = (a.heads + 2 * a.kv_heads) * a.head_dim
    expected = tokens * (2 * (4 * a.hidden + a.heads * a.head_dim + q + 4 * a.ffn) + 8 + 4 * a.heads)
    where = placement(sequence_parallel=False, vocab_parallel=False)
    assert kept(graph, where, at(a, sequence=tokens)) == expected
    assert kept(graph, where, at(a, sequence=tokens), "full") == 2 * tokens * a.hidden


@pytest.mark.parametrize("name", ["gpt-22b", "llama-3.1-8b", "mixtral-8x7b", "deepseek-v3", "gemma-3-4b", "qwen3-8b"])
@pytest.mark.parametrize("traits", [KORTHIKANTI, FLASH, EAGER], ids=["unfused", "flash", "eager"])
def test_policies_trade_kept_bytes_for_operators(name: str, traits: GraphTraits) -> None:
    architecture = replace(find(name), parameters=None)
    where = placement(sequence_parallel=False, vocab_parallel=True)
    for graph in model(architecture, traits).layers.values():
        size = {policy: kept(graph, where, at(architecture), policy) for policy in ("none", "core", "alternate", "full")}
        again = {policy: {op.name for op in graph.recomputed(policy)} for policy in size}
        assert size["full"] < size["alternate"] < size["none"]
        assert size["full"] < size["core"] <= size["none"]
        assert (size["core"] < size["none"]) == traits.unfused_attention, "selective is free under flash attention"
        assert again["none"] == set()
        assert again["core"] <= again["full"]
        assert again["alternate"] <= again["full"]


@pytest.mark.parametrize("name", names())
def test_every_preset_closes_and_recomputes(name: str) -> None:
    """After each policy's recomputation everything that the backward pass needs exists."""
    for graph in model(find(name), EAGER).layers.values():
        for policy in ("none", "core", "alternate", "full"):
            exists = {t.name for t in (*graph.kept(policy), *graph.inputs)}
            for op in graph.recomputed(policy):
                assert {read for read, _ in op.reads} <= exists, f"{op.name} runs before its inputs exist"
                exists |= {t.name for t in op.writes}
            assert {wanted for op in graph.operators for wanted in op.keeps} <= exists


def test_windowed_attention_keeps_fewer_scores() -> None:
    windowed = replace(LLAMA, sliding_window=256, full_attention_every=2, parameters=None)
    graphs = model(windowed, KORTHIKANTI).layers
    assert set(graphs) == {"dense-window", "dense"}
    where = placement(sequence_parallel=False, vocab_parallel=True)
    scores = [g.bytes(g.tensors["scores_softmax"], where).evaluate(at(windowed)) for g in graphs.values()]
    assert scores == [2 * 32 * 2048 * 256, 2 * 32 * 2048 * 2048]
