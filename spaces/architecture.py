"""Transformer architectures: what a model is made of, with no word on how it is run.

An `Architecture` is a frozen record in the field's own terms (layers, heads, experts, ...); every size is a count, never
bytes. It comes from one of four places, and each says what it could not read:

- `find("Qwen/Qwen3-32B")`: a preset, one file each under `data/models`;
- `configurations.from_config("path/to/config.json")`: a Hugging Face configuration;
- `from_dimensions(...)`: a row of a published table, the rest filled in by a named convention;
- `architecture.with_dimensions(layers=40)`: a variant of any of these.

How many parameters an architecture has is not computed here: that count comes from its dataflow graph, so that there is
one place only where a weight can be forgotten. `parameters` is what somebody else published, to hold the graph against.
"""

import dataclasses
import difflib
import functools
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from spaces.facts import facts_in

PRESETS = Path(__file__).parent / "data" / "models"

ACTIVATIONS = ("silu", "gelu", "relu", "relu2")
NORMS = ("rmsnorm", "layernorm")
POSITIONS = ("rotary", "learned", "alibi", "none")
QK_NORMS = (False, "head", "full")
BIASES = frozenset({"qkv", "attention_output", "mlp", "norm", "lm_head", "router", "experts"})

_POSITIVE = (
    "layers",
    "hidden",
    "heads",
    "kv_heads",
    "head_dim",
    "ffn",
    "vocab",
    "max_sequence",
    "norms_per_layer",
    "moe_every",
)
_NOT_NEGATIVE = (
    "max_positions",
    "sliding_window",
    "full_attention_every",
    "experts",
    "experts_per_token",
    "moe_ffn",
    "shared_experts",
    "shared_ffn",
    "dense_layers",
    "q_lora_rank",
    "kv_lora_rank",
    "qk_nope_head_dim",
    "qk_rope_head_dim",
    "v_head_dim",
)
_FLAGS = (
    "gated",
    "final_norm",
    "embedding_norm",
    "tied_embeddings",
    "attention_sinks",
    "shared_gate",
    "router_correction_bias",
)
_TEXTS = ("name", "activation", "norm", "positions", "parameters_source", "source", "note")

# What is said about a model, as opposed to what it is made of: changing it makes no other model.
_ABOUT = frozenset({"name", "parameters", "parameters_source", "source", "aliases", "note"})


class UnknownModel(ValueError):
    """No preset goes by that name; the message lists the nearest ones."""


class BadConfig(ValueError):
    """A model file that cannot be read as an architecture; the message names the file and the field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """A decoder-only transformer. All sizes are counts; defaults are those of the Llama family.

    Conventions that a reader would otherwise have to guess:

    - Layers are numbered from 0; the k-th of a period is its last: with `full_attention_every=6`, layers 5, 11, 17, ...
      attend to everything and the others to `sliding_window` tokens (`attends_fully`, `has_experts`).
    - `biases` is the whole truth: a layer norm has a bias when "norm" is in it. "mlp" covers dense MLPs and shared
      experts, "experts" the routed ones. The biases of RMS norms and of `qk_norm` do not exist.
    - With multi-head latent attention (`kv_lora_rank` > 0), `head_dim` is the width of a query and a key, that is
      `qk_nope_head_dim + qk_rope_head_dim`; values are `v_head_dim` wide; `kv_heads` equals `heads`. The compressed
      query (if any) and the compressed key/value each pass one RMS norm of their rank's width.
    - `qk_norm="head"` is one weight of `head_dim` for queries and one for keys, shared by all heads; "full" is one
      weight for every query channel and every key channel.
    - `shared_ffn` is the width of all shared experts together.
    - Multi-token-prediction layers and vision or audio towers are left out.

    Raises `ValueError`, with every fault in one message, when the sizes do not fit together.
    """

    name: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    """Width of the dense MLP, also where every layer has experts and no dense MLP exists."""
    vocab: int
    """Rows of the embedding table, padding included."""
    max_sequence: int
    """Longest sequence the model was made for, in tokens."""
    gated: bool = True
    """The MLP has a gate beside its up-projection (three matrices, not two)."""
    activation: str = "silu"
    norm: str = "rmsnorm"
    norms_per_layer: int = 2
    """2 before attention and MLP; 4 where their outputs are normalised as well (Gemma 2 and 3)."""
    qk_norm: bool | str = False
    final_norm: bool = True
    embedding_norm: bool = False
    """A norm right after the embedding (BLOOM)."""
    positions: str = "rotary"
    max_positions: int = 0
    """Rows of the learned position table, padding rows included; 0 when there is none."""
    tied_embeddings: bool = False
    biases: frozenset[str] = frozenset()
    sliding_window: int = 0
    """Tokens a windowed layer attends to; 0 = no windows."""
    full_attention_every: int = 1
    """Which layers attend to everything: 1 = all, 6 = every sixth, 0 = none (all are windowed)."""
    attention_sinks: bool = False
    """One learned logit per head beside the scores (gpt-oss)."""
    experts: int = 0
    """Routed experts per layer; 0 = a dense model."""
    experts_per_token: int = 0
    moe_ffn: int = 0
    """Width of one routed expert."""
    shared_experts: int = 0
    shared_ffn: int = 0
    shared_gate: bool = False
    """A learned scalar gate of `hidden` weights on the shared expert (Qwen2-MoE)."""
    dense_layers: int = 0
    """How many layers at the start have a dense MLP although the model has experts."""
    moe_every: int = 1
    """Of the layers after these, every which one has experts."""
    router_correction_bias: bool = False
    """One learned offset per expert used for the choice only (DeepSeek-V3)."""
    routing_groups: int = 0
    """A token's experts lie in at most this many groups of experts, one group a node (DeepSeek-V2, V3); 0 = anywhere."""
    q_lora_rank: int = 0
    """0 with `kv_lora_rank` > 0 = queries are not compressed (DeepSeek-V2-Lite)."""
    kv_lora_rank: int = 0
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0
    parameters: int | None = None
    """Published parameter count; None where nobody published an exact one."""
    parameters_source: str = ""
    source: str = ""
    aliases: tuple[str, ...] = ()
    note: str = ""

    def __post_init__(self) -> None:
        problems: list[str] = []
        for field in (*_POSITIVE, *_NOT_NEGATIVE):
            self._settle_count(field, least=1 if field in _POSITIVE else 0, problems=problems)
        for field, kind in (*((flag, bool) for flag in _FLAGS), *((text, str) for text in _TEXTS)):
            if not isinstance(getattr(self, field), kind):
                expected = "true or false" if kind is bool else "text"
                problems.append(f"{field} must be {expected}, not {getattr(self, field)!r}")
        if self.parameters is not None:
            self._settle_count("parameters", least=1, problems=problems)
        self._settle_words("biases", frozenset, problems)
        self._settle_words("aliases", tuple, problems)
        # Relations between sizes mean nothing while a size is not a number.
        if not problems:
            problems = self._contradictions()
        if problems:
            raise ValueError(f"architecture {self.name!r}: " + "; ".join(problems))

    def _settle_count(self, field: str, least: int, problems: list[str]) -> None:
        value = getattr(self, field)
        try:
            if isinstance(value, bool):
                raise TypeError
            # Sizes drawn from a search arrive as numpy integers; as plain ones they hash, print and serialise alike.
            count = operator.index(value)
        except TypeError:
            problems.append(f"{field} must be a whole number, not {value!r}")
            return
        if count < least:
            problems.append(f"{field} must be at least {least}, not {count}")
        object.__setattr__(self, field, count)

    def _settle_words(self, field: str, collect: Callable[[Iterable[str]], object], problems: list[str]) -> None:
        value = getattr(self, field)
        if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(word, str) for word in value):
            problems.append(f"{field} must be a list of words, not {value!r}")
        else:
            object.__setattr__(self, field, collect(value))

    def _contradictions(self) -> list[str]:
        mla, moe = self.kv_lora_rank > 0, self.experts > 0
        latent = self.qk_nope_head_dim + self.qk_rope_head_dim
        expert_fields = ("experts_per_token", "moe_ffn", "shared_experts", "shared_ffn", "dense_layers")
        latent_fields = ("q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
        faults = {
            "name must not be empty": not self.name,
            f"activation must be one of {', '.join(ACTIVATIONS)}": self.activation not in ACTIVATIONS,
            f"norm must be one of {', '.join(NORMS)}": self.norm not in NORMS,
            f"positions must be one of {', '.join(POSITIONS)}": self.positions not in POSITIONS,
            # 0 equals False, so that `in` alone would let it pass.
            "qk_norm must be false, 'head' or 'full'": self.qk_norm not in QK_NORMS or not isinstance(self.qk_norm, bool | str),
            f"biases knows {', '.join(sorted(BIASES))}, not {', '.join(sorted(self.biases - BIASES))}": bool(
                self.biases - BIASES
            ),
            "a bias on 'norm' needs layernorm (RMS norms have none)": "norm" in self.biases and self.norm != "layernorm",
            "a bias on 'router' or 'experts' needs experts": not moe and bool(self.biases & {"router", "experts"}),
            f"heads ({self.heads}) must be a multiple of kv_heads ({self.kv_heads})": self.heads % self.kv_heads != 0,
            "learned positions need max_positions, and only they do": (self.positions == "learned") != (self.max_positions > 0),
            f"max_positions ({self.max_positions}) must cover max_sequence ({self.max_sequence})": 0
            < self.max_positions
            < self.max_sequence,
            "full_attention_every other than 1 needs a sliding_window": self.full_attention_every != 1
            and self.sliding_window == 0,
            "a sliding_window that no layer uses: full_attention_every is 1 (0 = every layer is windowed)": (
                self.sliding_window > 0 and self.full_attention_every == 1
            ),
            f"experts_per_token ({self.experts_per_token}) must be between 1 and experts ({self.experts})": moe
            and not 1 <= self.experts_per_token <= self.experts,
            "experts need moe_ffn, the width of one of them": moe and self.moe_ffn == 0,
            f"{', '.join(f for f in expert_fields if getattr(self, f))} given without experts": not moe
            and any(getattr(self, f) for f in expert_fields),
            "moe_every, shared_gate and router_correction_bias need experts": not moe
            and (self.moe_every > 1 or self.shared_gate or self.router_correction_bias),
            "shared_experts and shared_ffn go together": (self.shared_experts > 0) != (self.shared_ffn > 0),
            "shared_gate needs shared_experts": self.shared_gate and self.shared_experts == 0,
            f"dense_layers ({self.dense_layers}) and moe_every ({self.moe_every}) leave no layer of {self.layers} for "
            "experts": moe and self.layers - self.dense_layers < self.moe_every,
            f"{', '.join(f for f in latent_fields if getattr(self, f))} given without kv_lora_rank": not mla
            and any(getattr(self, f) for f in latent_fields),
            "latent attention needs qk_nope_head_dim, qk_rope_head_dim and v_head_dim": mla
            and not (self.qk_nope_head_dim and self.qk_rope_head_dim and self.v_head_dim),
            f"head_dim ({self.head_dim}) must be qk_nope_head_dim + qk_rope_head_dim ({latent})": mla
            and self.head_dim != latent,
            f"latent attention needs kv_heads ({self.kv_heads}) equal to heads ({self.heads})": mla
            and self.kv_heads != self.heads,
        }
        return [fault for fault, found in faults.items() if found]

    def attends_fully(self, layer: int) -> bool:
        """Whether `layer` (from 0) attends to the whole sequence rather than to `sliding_window` tokens."""
        return self.full_attention_every > 0 and (layer + 1) % self.full_attention_every == 0

    def has_experts(self, layer: int) -> bool:
        """Whether `layer` (from 0) routes to experts rather than through a dense MLP."""
        past_dense = layer + 1 - self.dense_layers
        return self.experts > 0 and past_dense > 0 and past_dense % self.moe_every == 0

    @property
    def full_attention_layers(self) -> int:
        """How many layers attend to the whole sequence."""
        return sum(self.attends_fully(layer) for layer in range(self.layers))

    @property
    def expert_layers(self) -> int:
        """How many layers route to experts; the others have a dense MLP."""
        return sum(self.has_experts(layer) for layer in range(self.layers))

    def with_dimensions(self, **given: Any) -> "Architecture":
        """A variant with some fields replaced, validated like any other.

        What was published about the original (parameter count, aliases) does not carry over once a size has changed.
        Raises `ValueError` for an unknown field or for sizes that do not fit together.
        """
        fields = [field.name for field in dataclasses.fields(self)]
        for field in given:
            if field not in fields:
                raise ValueError(f"an architecture has no field {field!r}{_nearest(field, fields)}")
        if any(field not in _ABOUT and getattr(self, field) != value for field, value in given.items()):
            given = {"parameters": None, "parameters_source": "", "aliases": (), **given}
        return dataclasses.replace(self, **given)


# --- from a table ---------------------------------------------------------------------------------------------------


def from_dimensions(
    name: str,
    layers: int,
    hidden: int,
    heads: int,
    kv_heads: int | None,
    ffn: int,
    vocab: int,
    head_dim: int | None = None,
    gated: bool | None = None,
    experts: int | None = None,
    experts_per_token: int | None = None,
    moe_ffn: int | None = None,
    max_sequence: int = 2048,
    **more: Any,
) -> tuple[Architecture, tuple[str, ...]]:
    """An architecture from the few numbers a published table gives, and what had to be assumed, in words.

    Two conventions fill the rest. *GPT*: GELU, layer norm, biases, learned positions and tied embeddings; taken when
    `ffn` is exactly 4 × `hidden`, every head has its own keys and values, nothing says the MLP is gated and there are
    no experts. *Llama*: gated SiLU, RMS norm, rotary positions, untied embeddings, no biases; taken otherwise.
    `more` sets any further field of `Architecture` and overrides the convention. `max_sequence` is in tokens.

    Raises `ValueError` when the sizes do not fit together.
    """
    assumptions: list[str] = []
    if kv_heads is None:
        kv_heads = heads
        assumptions.append(f"kv_heads not given: every one of the {heads} heads has its own keys and values")
    if head_dim is None:
        head_dim, rest = divmod(hidden, heads)
        if rest:
            raise ValueError(f"architecture {name!r}: hidden ({hidden}) is no multiple of heads ({heads}); give head_dim")
        if head_dim * heads == hidden:
            assumptions.append(f"head_dim not given: hidden / heads = {head_dim}")
    if ffn == 4 * hidden and kv_heads == heads and not gated and not experts:
        convention: dict[str, Any] = {
            "gated": False,
            "activation": "gelu",
            "norm": "layernorm",
            "biases": frozenset({"qkv", "attention_output", "mlp", "norm"}),
            "positions": "learned",
            "max_positions": max_sequence,
            "tied_embeddings": True,
        }
        assumptions.append(
            "GPT convention (ffn = 4 × hidden, kv_heads = heads): GELU, layer norm, biases, learned positions, tied embeddings"
        )
    else:
        convention = {"gated": gated is not False}
        assumptions.append(
            f"Llama convention: {'gated' if gated is not False else 'plain'} SiLU, RMS norm, no biases, "
            "rotary positions, untied embeddings"
        )
    if experts:
        convention |= {"experts": experts, "experts_per_token": experts_per_token, "moe_ffn": moe_ffn}
        if experts_per_token is None:
            convention["experts_per_token"] = min(2, experts)
            assumptions.append(f"experts_per_token not given: {min(2, experts)}")
        if moe_ffn is None:
            convention["moe_ffn"] = ffn
            assumptions.append(f"moe_ffn not given: each expert is as wide as ffn ({ffn})")
    sizes: dict[str, Any] = {"layers": layers, "hidden": hidden, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    sizes |= {"ffn": ffn, "vocab": vocab, "max_sequence": max_sequence}
    return Architecture(name=name, **sizes, **{**convention, **more}), tuple(assumptions)


# --- presets ----------------------------------------------------------------------------------------------------------

_SUFFIX = re.compile(r"[-_. ](instruct|chat|it|base|hf|fp8)$")


def names() -> tuple[str, ...]:
    """Names of the presets, sorted. Reads the directory only, no file."""
    return tuple(sorted(path.name.removesuffix(".yaml") for path in PRESETS.glob("*.yaml")))


def find(name: str) -> Architecture:
    """The preset that goes by `name`.

    Compared without case, organisation ("Qwen/") and separators, except that a separator between two digits always
    counts, whichever it is: "opt-1.3b" and "opt-13b" are different models, "llama3 70b" and "Llama-3-70B" are not.
    Then among the presets' aliases; then without the endings of tuned and quantised releases (-instruct, -chat, -it,
    -base, -hf, -fp8), which share the sizes of the model they come from.

    Raises `UnknownModel`, listing the nearest names, when there is none.
    """
    wanted = name.rsplit("/", maxsplit=1)[-1].strip().lower()
    while True:
        preset = _by_key().get(_key(wanted)) or _by_alias().get(_key(wanted))
        if preset is not None:
            return _load(preset)
        shorter = _SUFFIX.sub("", wanted)
        if shorter == wanted:
            break
        wanted = shorter
    raise UnknownModel(f"no model is called {name!r}{_nearest(wanted, [*names(), *_aliases()])}")


def _key(name: str) -> str:
    """What two spellings of one name have in common."""
    dotted = re.sub(r"(?<=\d)[-_. ]+(?=\d)", ".", name.strip().lower())
    return re.sub(r"[-_ ]+|(?<!\d)\.|\.(?!\d)", "", dotted)


def _nearest(wanted: str, known: Iterable[str]) -> str:
    by_lower = {candidate.lower(): candidate for candidate in known}
    start = wanted.lower()
    begun = sorted((n for n in by_lower if n.startswith(start)), key=lambda n: (n[len(start) :][:1].isalnum(), len(n)))
    alike = difflib.get_close_matches(start, by_lower, 5, 0.5)
    close = [*begun, *(name for name in alike if name not in begun)][:5]
    return f"; the nearest are {', '.join(by_lower[match] for match in close)}" if close else ""


@functools.cache
def _by_key() -> Mapping[str, str]:
    return {_key(name): name for name in names()}


@functools.cache
def _aliases() -> Mapping[str, str]:
    """Alias, as written -> preset. Parses every preset: asked for only when a name is not a preset's own."""
    found: dict[str, str] = {}
    for name in names():
        for alias in _load(name).aliases:
            if alias in found:
                raise BadConfig(f"{PRESETS / name}.yaml: alias {alias!r} is taken by {found[alias]}")
            found[alias] = name
    return found


@functools.cache
def _by_alias() -> Mapping[str, str]:
    keys = dict(_by_key())
    for alias, name in _aliases().items():
        if keys.setdefault(_key(alias), name) != name:
            raise BadConfig(f"{PRESETS / name}.yaml: alias {alias!r} is taken by {keys[_key(alias)]}")
    return keys


@functools.cache
def _load(name: str) -> Architecture:
    return read(PRESETS / f"{name}.yaml")


def read(path: str | Path) -> Architecture:
    """The architecture in a YAML file of our own form: one key per field; fields left out take their defaults.

    Raises `BadConfig` for a file that is missing, is no YAML mapping, has an unknown field or wants a necessary one,
    or whose sizes do not fit together.
    """
    path = Path(path)
    try:
        given = facts_in(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadConfig(f"{path}: not YAML: {error}") from error
    if not isinstance(given, dict):
        raise BadConfig(f"{path}: must be a mapping of fields, not {type(given).__name__}")
    fields = {field.name: field for field in dataclasses.fields(Architecture)}
    for key in given:
        if key not in fields:
            raise BadConfig(f"{path}: unknown field {key!r}{_nearest(str(key), fields)}")
    for field in fields.values():
        missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if missing and field.name not in given:
            raise BadConfig(f"{path}: field {field.name!r} is missing")
    try:
        return Architecture(**given)
    except ValueError as error:
        raise BadConfig(f"{path}: {error}") from error
