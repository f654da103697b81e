"""From an architecture to the dataflow graphs of its blocks: embedding, the kinds of layers, and the head.

What a software stack decides about the graph (attention kept whole or not, projections fused or not, dropout) comes in as
`GraphTraits`; what the plan decides (degrees) comes later, as a placement.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from spaces.architecture import Architecture
from spaces.expressions import Expression, divide, minimum, product, symbol
from spaces.graph import Graph, Kind, Operator, Placement, Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphTraits:
    """How a software stack writes the same mathematics.

    `unfused_attention`: scores of size s² exist. `fused_qkv`, `fused_gate_up`: one product instead of two or three.
    `dropout`: hidden and attention dropout with stored masks. `eager_activation`: silu and the product by `up` are separate
    operators that each store their input.
    """

    unfused_attention: bool = False
    fused_qkv: bool = True
    fused_gate_up: bool = True
    dropout: bool = False
    eager_activation: bool = False


@dataclass(frozen=True, slots=True)
class Model:
    """Block graphs by kind, and the kind of every layer in order."""

    architecture: Architecture
    embedding: Graph
    layers: dict[str, Graph]
    head: Graph
    order: tuple[str, ...]

    def parameters(self) -> int:
        """Exact number of parameters, from the graph alone."""
        at = scalars(self.architecture)
        total = self.embedding.parameters().evaluate(at) + self.head.parameters().evaluate(at)
        per_kind = {kind: graph.parameters().evaluate(at) for kind, graph in self.layers.items()}
        return int(total + sum(per_kind[kind] for kind in self.order))


def scalars(architecture: Architecture) -> dict[str, int]:
    """The symbols an architecture binds: every count of its table, by field name."""
    names = (
        "layers hidden heads kv_heads head_dim ffn vocab max_positions experts experts_per_token routing_groups moe_ffn "
        "shared_ffn q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim sliding_window"
    )
    return {name: int(getattr(architecture, name)) for name in names.split()}


@cache
def placement(*, sequence_parallel: bool, vocab_parallel: bool) -> Placement:
    """Megatron's placement: token dimensions over context (and tensor in the residual stream), widths over tensor."""
    return Placement(
        {
            "stream": ("context", "tensor") if sequence_parallel else ("context",),
            "tokens": ("context",),
            "heads": ("tensor",),
            "kv_heads": ("tensor",),
            "ffn": ("tensor",),
            "shared_ffn": ("tensor",),
            "vocab": ("tensor",) if vocab_parallel else (),
            "experts": ("expert",),
            "moe_ffn": ("expert_tensor",),
            "routed": ("expert", "expert_tensor"),
        }
    )


def build(architecture: Architecture, traits: GraphTraits) -> Model:
    """Graphs of an architecture as one software stack runs them. Raises ValueError for a graph that does not close."""
    order = layer_kinds(architecture)
    layers = {kind: _layer(architecture, traits, kind) for kind in dict.fromkeys(order)}
    model = Model(architecture, _embedding(architecture, traits), layers, _head(architecture), order)
    for graph in (model.embedding, model.head, *layers.values()):
        graph.check()
    return model


def layer_kinds(architecture: Architecture) -> tuple[str, ...]:
    """Kind of every layer: 'dense' or 'moe', with '-window' where attention looks at a sliding window."""
    a = architecture
    kinds = []
    for layer in range(a.layers):
        kinds.append(("moe" if a.has_experts(layer) else "dense") + ("" if a.attends_fully(layer) else "-window"))
    return tuple(kinds)


STREAM = ("stream", "hidden")
TOKENS = ("tokens", "hidden")


def _sizes(a: Architecture, window: bool) -> dict[str, Expression]:
    """Sizes of the logical dimensions that are not plain symbols."""
    tokens = product("micro_batch", "sequence")
    shards = product("context", "stream_shards")
    here = divide(tokens, shards)  # tokens of the residual stream on one device
    routed = product(here, "experts_per_token", "expert", "expert_tensor")
    sizes = {
        "experts_total": symbol("experts"),
        "key_length": minimum("sequence", "sliding_window") if window else symbol("sequence"),
        "stream": tokens,
        "tokens": tokens,
        "keys": product("micro_batch", minimum("sequence", "sliding_window")) if window else tokens,
        "qk_dim": symbol("qk_nope_head_dim") + symbol("qk_rope_head_dim") if a.kv_lora_rank else symbol("head_dim"),
        "value_dim": symbol("v_head_dim") if a.kv_lora_rank else symbol("head_dim"),
        "latent": symbol("kv_lora_rank") + symbol("qk_rope_head_dim"),
        "up_dim": symbol("qk_nope_head_dim") + symbol("v_head_dim"),
    }
    if a.experts:
        sizes["routed"] = routed
        sizes["per_expert"] = divide(routed, "experts")
    return sizes


def _norm(
    a: Architecture, name: str, source: str, dims: tuple[str, ...], width: tuple[str, ...], bias: bool = False
) -> Operator:
    weights = [width] * (1 + bias)
    statistics = [Tensor(f"{name}_rstd", dims[:-1], 4)]
    if a.norm == "layernorm":
        statistics.append(Tensor(f"{name}_mean", dims[:-1], 4))
    return Operator(
        name,
        Kind.NORM,
        ((source, dims),),
        (Tensor(f"{name}_out", dims), *statistics),
        weights=tuple(weights),
        keeps=(source, *(s.name for s in statistics)),
    )


def _linear(
    name: str,
    source: str,
    reads: tuple[str, ...],
    out: tuple[Tensor, ...],
    contracted: tuple[str, ...],
    bias: bool,
    **more: bool,
) -> Operator:
    """One matrix product from `source`, read under `reads`, to one or more outputs."""
    weights = []
    for tensor in out:
        width = tuple(dim for dim in tensor.dims if dim not in reads)
        weights.append((*contracted, *width))
        if bias:
            weights.append(width)
    return Operator(
        name,
        Kind.GEMM,
        ((source, reads),),
        out,
        contracted,
        tuple(weights),
        keeps=(source,),
        quantised=more.get("quantised", True),
    )


def _layer(a: Architecture, traits: GraphTraits, kind: str) -> Graph:
    ops = [_norm(a, "attention_norm", "layer_in", STREAM, ("hidden",), "norm" in a.biases)]
    ops += _attention_inputs_mla(a) if a.kv_lora_rank else _attention_inputs(a, traits)
    ops += _attention(a, traits)
    ops += _residual(a, traits, "attention", "attention_proj", "layer_in", "attention_sum")
    ops.append(_norm(a, "mlp_norm", "attention_sum", STREAM, ("hidden",), "norm" in a.biases))
    if kind.startswith("moe"):
        ops += _experts(a, traits)
        ops += _residual(a, traits, "mlp", "moe_out", "attention_sum", "layer_out")
    else:
        ops += _mlp(a, traits, "", "mlp_norm_out", "ffn")
        ops += _residual(a, traits, "mlp", "down", "attention_sum", "layer_out")
    return Graph(tuple(ops), (Tensor("layer_in", STREAM),), _sizes(a, kind.endswith("-window")))


def _attention_inputs(a: Architecture, traits: GraphTraits) -> list[Operator]:
    bias = "qkv" in a.biases
    q = Tensor("q", ("tokens", "heads", "qk_dim"))
    k = Tensor("k", ("tokens", "kv_heads", "qk_dim"))
    v = Tensor("v", ("tokens", "kv_heads", "value_dim"))
    if traits.fused_qkv:
        ops = [_linear("qkv", "attention_norm_out", TOKENS, (q, k, v), ("hidden",), bias)]
    else:
        ops = [_linear(f"{t.name}_proj", "attention_norm_out", TOKENS, (t,), ("hidden",), bias) for t in (q, k, v)]
    q_name, k_name = "q", "k"
    if a.qk_norm:
        for name, tensor in (("q", q), ("k", k)):
            ops.append(_norm(a, f"{name}_norm", name, tensor.dims, ("qk_dim",) if a.qk_norm == "head" else tensor.dims[1:]))
        q_name, k_name = "q_norm_out", "k_norm_out"
    if a.positions == "rotary":
        ops.append(
            Operator(
                "rotary",
                Kind.ROTARY,
                ((q_name, q.dims), (k_name, k.dims)),
                (Tensor("q_rotated", q.dims), Tensor("k_rotated", k.dims)),
            )
        )
    return ops


def _attention_inputs_mla(a: Architecture) -> list[Operator]:
    """Multi-head latent attention, expanded: low-rank queries and keys/values (DeepSeek-V2 §2.1)."""
    q = Tensor("q", ("tokens", "heads", "qk_dim"))
    ops = []
    if a.q_lora_rank:
        ops.append(
            _linear(
                "q_down", "attention_norm_out", STREAM, (Tensor("q_latent", ("stream", "q_lora_rank")),), ("hidden",), False
            )
        )
        ops.append(_norm(a, "q_norm", "q_latent", ("stream", "q_lora_rank"), ("q_lora_rank",)))
        ops.append(_linear("q_up", "q_norm_out", ("tokens", "q_lora_rank"), (q,), ("q_lora_rank",), False))
    else:
        ops.append(_linear("q_proj", "attention_norm_out", TOKENS, (q,), ("hidden",), False))
    ops.append(
        _linear("kv_down", "attention_norm_out", STREAM, (Tensor("kv_latent", ("stream", "latent")),), ("hidden",), False)
    )
    ops.append(_norm(a, "kv_norm", "kv_latent", ("stream", "kv_lora_rank"), ("kv_lora_rank",)))
    up = Tensor("kv_up_out", ("tokens", "heads", "up_dim"))
    ops.append(_linear("kv_up", "kv_norm_out", ("tokens", "kv_lora_rank"), (up,), ("kv_lora_rank",), False))
    ops.append(
        Operator(
            "rotary",
            Kind.ROTARY,
            (("q", q.dims), ("kv_up_out", up.dims)),
            (
                Tensor("q_rotated", q.dims),
                Tensor("k_rotated", ("tokens", "heads", "qk_dim")),
                Tensor("v", ("tokens", "heads", "value_dim")),
            ),
        )
    )
    return ops


def _attention(a: Architecture, traits: GraphTraits) -> list[Operator]:
    rotated = a.positions == "rotary" or a.kv_lora_rank
    q, k = ("q_rotated", "k_rotated") if rotated else (("q_norm_out", "k_norm_out") if a.qk_norm else ("q", "k"))
    kv_heads = "heads" if a.kv_lora_rank else "kv_heads"
    out = Tensor("attention_out", ("tokens", "heads", "value_dim"))
    reads = (
        (q, ("tokens", "heads", "qk_dim")),
        (k, ("keys", kv_heads, "qk_dim")),
        ("v", ("keys", kv_heads, "value_dim")),
    )
    sinks = (("heads",),) if a.attention_sinks else ()
    if traits.unfused_attention:
        scores = ("heads", "tokens", "key_length")
        made = [Tensor("scores_softmax", scores, 2)]
        if traits.dropout:
            made += [Tensor("scores_mask", scores, 1), Tensor("scores_dropped", scores, 2)]
        core = [
            Operator(
                "scores",
                Kind.ATTENTION,
                reads,
                tuple(made),
                weights=sinks,
                keeps=(q, k, *(t.name for t in made)),
                region="core",
            ),
            Operator(
                "attend",
                Kind.ATTENTION,
                ((made[-1].name, scores), reads[2]),
                (out,),
                keeps=("v",),
            ),
        ]
    else:
        lse = Tensor("attention_lse", ("tokens", "heads"), 4)
        core = [Operator("attention", Kind.ATTENTION, reads, (out, lse), weights=sinks, keeps=(q, k, "v", out.name, lse.name))]
    proj = Tensor("attention_proj", TOKENS)
    project = _linear(
        "attention_output", "attention_out", out.dims, (proj,), ("heads", "value_dim"), bias="attention_output" in a.biases
    )
    return [*core, project]


def _residual(a: Architecture, traits: GraphTraits, part: str, source: str, stream: str, out: str) -> list[Operator]:
    """What joins a branch to the residual stream: a norm of its own where the model has one, dropout, the addition."""
    ops = []
    if a.norms_per_layer == 4:
        ops.append(_norm(a, f"{part}_post_norm", source, STREAM, ("hidden",), "norm" in a.biases))
        source = f"{part}_post_norm_out"
    if traits.dropout:
        mask = Tensor(f"{part}_mask", STREAM, 1)
        dropped = Tensor(f"{part}_dropped", STREAM)
        ops.append(Operator(f"{part}_dropout", Kind.DROPOUT, ((source, STREAM),), (dropped, mask), keeps=(mask.name,)))
        source = dropped.name
    ops.append(Operator(f"{part}_add", Kind.ADD, ((stream, STREAM), (source, STREAM)), (Tensor(out, STREAM),)))
    return ops


def _mlp(a: Architecture, traits: GraphTraits, prefix: str, source: str, width: str) -> list[Operator]:
    """A dense MLP, gated or not; the shared expert is the same with a prefix."""
    dims = ("tokens", width)
    up, gate, act = (Tensor(prefix + name, dims) for name in ("up_out", "gate_out", "act_out"))
    bias = "mlp" in a.biases
    ops = []
    if a.gated:
        if traits.fused_gate_up:
            ops.append(_linear(prefix + "gate_up", source, TOKENS, (gate, up), ("hidden",), bias))
        else:
            ops += [_linear(prefix + name, source, TOKENS, (t,), ("hidden",), bias) for name, t in (("gate", gate), ("up", up))]
        ops += _gate(prefix, gate, up, act, traits)
    else:
        ops.append(_linear(prefix + "up", source, TOKENS, (up,), ("hidden",), bias))
        ops.append(Operator(prefix + "activation", Kind.ACTIVATION, ((up.name, dims),), (act,), keeps=(up.name,)))
    down = Tensor(prefix + "down", TOKENS)
    ops.append(_linear(prefix + "down_proj", act.name, dims, (down,), (width,), bias))
    return ops


def _gate(prefix: str, gate: Tensor, up: Tensor, act: Tensor, traits: GraphTraits) -> list[Operator]:
    """act = silu(gate) · up, as one operator or as the two that an eager framework runs."""
    if not traits.eager_activation:
        reads = ((gate.name, gate.dims), (up.name, up.dims))
        return [Operator(prefix + "activation", Kind.MULTIPLY, reads, (act,), keeps=(gate.name, up.name))]
    silu = Tensor(prefix + "silu_out", gate.dims)
    return [
        Operator(prefix + "activation", Kind.ACTIVATION, ((gate.name, gate.dims),), (silu,), keeps=(gate.name,)),
        Operator(
            prefix + "multiply",
            Kind.MULTIPLY,
            ((silu.name, silu.dims), (up.name, up.dims)),
            (act,),
            keeps=(silu.name, up.name),
        ),
    ]


def _experts(a: Architecture, traits: GraphTraits) -> list[Operator]:
    """Router, dispatch, grouped products of the routed experts, combine, and the shared expert beside them."""
    routed, grouped = ("routed", "hidden"), ("experts", "per_expert", "hidden")
    wide = ("experts", "per_expert", "moe_ffn")
    router_weights: list[tuple[str, ...]] = [("hidden", "experts_total")]
    if "router" in a.biases or a.router_correction_bias:
        router_weights.append(("experts_total",))
    probabilities = Tensor("router_out", ("stream", "experts_total"), 4)
    sent, received = Tensor("sent", routed, "dispatch_bytes"), Tensor("received", grouped)
    up, gate, act = Tensor("expert_up_out", wide), Tensor("expert_gate_out", wide), Tensor("expert_act_out", wide)
    returned = Tensor("expert_out", grouped)
    bias = "experts" in a.biases
    inner = [gate, up] if a.gated else [up]

    def expert_weights(count: int, dims: tuple[str, str]) -> tuple[tuple[str, ...], ...]:
        matrices: list[tuple[str, ...]] = [("experts", *dims)] * count
        return tuple(matrices + ([("experts", dims[1])] * count if bias else []))

    ops = [
        Operator(
            "router",
            Kind.GEMM,
            (("mlp_norm_out", STREAM),),
            (probabilities,),
            ("hidden",),
            tuple(router_weights),
            keeps=("mlp_norm_out",),
        ),
        Operator(
            "route",
            Kind.ROUTE,
            (("router_out", probabilities.dims),),
            (Tensor("choices", ("stream", "experts_per_token"), 4),),
            keeps=("router_out",),
        ),
        Operator("permute", Kind.PERMUTE, (("mlp_norm_out", STREAM), ("choices", ("stream", "experts_per_token"))), (sent,)),
        Operator("receive", Kind.PERMUTE, (("sent", grouped),), (received,)),
        Operator(
            "expert_up",
            Kind.GROUPED_GEMM,
            (("received", grouped),),
            tuple(inner),
            ("hidden",),
            expert_weights(len(inner), ("hidden", "moe_ffn")),
            keeps=("received",),
            quantised=True,
        ),
    ]
    if a.gated:
        ops += _gate("expert_", gate, up, act, traits)
    else:
        ops.append(Operator("expert_activation", Kind.ACTIVATION, ((up.name, wide),), (act,), keeps=(up.name,)))
    ops.append(
        Operator(
            "expert_down",
            Kind.GROUPED_GEMM,
            ((act.name, wide),),
            (returned,),
            ("moe_ffn",),
            expert_weights(1, ("moe_ffn", "hidden")),
            keeps=(act.name,),
            quantised=True,
        )
    )
    combined = Tensor("moe_combined" if a.shared_ffn else "moe_out", STREAM)
    ops.append(Operator("combine", Kind.PERMUTE, (("expert_out", routed),), (combined,)))
    if a.shared_ffn:
        ops += _mlp(a, traits, "shared_", "mlp_norm_out", "shared_ffn")
        gate_weights = (("hidden",),) if a.shared_gate else ()
        ops.append(
            Operator(
                "shared_add",
                Kind.ADD,
                ((combined.name, STREAM), ("shared_down", STREAM)),
                (Tensor("moe_out", STREAM),),
                weights=gate_weights,
            )
        )
    return ops


def _embedding(a: Architecture, traits: GraphTraits) -> Graph:
    """Token (and position) embedding up to the residual stream."""
    weights: list[tuple[str, ...]] = [("vocab", "hidden")]
    ops = [
        Operator(
            "embedding",
            Kind.EMBEDDING,
            (("token_ids", ("tokens",)),),
            (Tensor("embedded", TOKENS),),
            ("vocab",),
            tuple(weights),
            keeps=("token_ids",),
        )
    ]
    source = "embedded"
    if a.positions == "learned":
        ops.append(
            Operator(
                "position_add",
                Kind.ADD,
                ((source, STREAM),),
                (Tensor("positioned", STREAM),),
                weights=(("max_positions", "hidden"),),
            )
        )
        source = "positioned"
    if a.embedding_norm:
        ops.append(_norm(a, "embedding_norm", source, STREAM, ("hidden",), "norm" in a.biases))
        source = "embedding_norm_out"
    if traits.dropout:
        mask = Tensor("embedding_mask", STREAM, 1)
        ops.append(
            Operator(
                "embedding_dropout", Kind.DROPOUT, ((source, STREAM),), (Tensor("stream_in", STREAM), mask), keeps=(mask.name,)
            )
        )
        source = "stream_in"
    return Graph(tuple(ops), (Tensor("token_ids", ("tokens",), 8),), _sizes(a, False), ((source, STREAM),))


def _head(a: Architecture) -> Graph:
    """Final norm, language-model head and loss."""
    logits = Tensor("logits", ("tokens", "vocab"), "logits_bytes")
    ops = [
        _norm(a, "final_norm", "layers_out", STREAM, ("hidden",), "norm" in a.biases),
        Operator(
            "lm_head",
            Kind.GEMM,
            (("final_norm_out", TOKENS),),
            (logits,),
            ("hidden",),
            ()
            if a.tied_embeddings
            else ((("hidden", "vocab"), ("vocab",)) if "lm_head" in a.biases else (("hidden", "vocab"),)),
            keeps=("final_norm_out",),
        ),
        Operator(
            "loss", Kind.LOSS, (("logits", logits.dims),), (Tensor("loss_out", ("tokens",), 4),), ("vocab",), keeps=("logits",)
        ),
    ]
    return Graph(tuple(ops), (Tensor("layers_out", STREAM),), _sizes(a, False))
