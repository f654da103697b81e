"""Transformer architectures: what a model is made of, with no word on how it is run.

An `Architecture` is a frozen record in the field's own terms (layers, heads, experts, ...); every size is a count, never
bytes. It comes from one of four places, and each says what it could not read:

- `find("Qwen/Qwen3-32B")`: a preset, one file each under `data/models`;
- `from_config("path/to/config.json")`: a Hugging Face configuration;
- `from_dimensions(...)`: a row of a published table, the rest filled in by a named convention;
- `architecture.with_dimensions(layers=40)`: a variant of any of these.

How many parameters an architecture has is not computed here: that count comes from its dataflow graph, so that there is
one place only where a weight can be forgotten. `parameters` is what somebody else published, to hold the graph against.
"""

import dataclasses
import difflib
import functools
import json
import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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
    close = difflib.get_close_matches(wanted.lower(), by_lower, n=5, cutoff=0.5)
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
    # The C parser is ten times faster, and absent where PyYAML was built without libyaml.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        given = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
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


# --- Hugging Face configurations --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Config:
    """A parsed config.json that knows its file, so that every complaint can name it."""

    path: Path
    fields: Mapping[str, Any]

    def given(self, *keys: str) -> Any:
        """The first of `keys` that is there and not null; None when none is."""
        return next((self.fields[key] for key in keys if self.fields.get(key) is not None), None)

    def count(self, *keys: str, default: int | None = None) -> int:
        """A size; what may be absent (experts, windows) may also be 0, and its default says so."""
        value = self.given(*keys)
        if value is None:
            if default is None:
                raise BadConfig(f"{self.path}: field {keys[0]!r} is missing (model_type {self.model_type!r})")
            return default
        # Expansion ratios and widths are written as 4 or 4.0; 4.5 would be another architecture.
        if isinstance(value, bool) or not isinstance(value, int | float) or not float(value).is_integer():
            raise BadConfig(f"{self.path}: field {keys[0]!r} must be a whole number, not {value!r}")
        if value < (0 if default == 0 else 1):
            raise BadConfig(f"{self.path}: field {keys[0]!r} must be positive, not {value!r}")
        return int(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.given(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise BadConfig(f"{self.path}: field {key!r} must be true or false, not {value!r}")
        return value

    def activation(self, *keys: str, default: str) -> str:
        value = self.given(*keys)
        spelled = default if value is None else value
        if not isinstance(spelled, str) or spelled not in _ACTIVATION_SPELLINGS:
            raise BadConfig(f"{self.path}: field {keys[0]!r} is {spelled!r}; known are {', '.join(_ACTIVATION_SPELLINGS)}")
        return _ACTIVATION_SPELLINGS[spelled]

    def items(self, key: str) -> list[Any]:
        """The list under `key`; empty when it is absent."""
        value = self.given(key)
        if not isinstance(value, list | None):
            raise BadConfig(f"{self.path}: field {key!r} must be a list, not {value!r}")
        return value or []

    def refuse(self, unsupported: bool, key: str, reason: str) -> None:
        if unsupported:
            raise BadConfig(f"{self.path}: field {key!r} is {self.fields.get(key)!r}: {reason}")

    @property
    def model_type(self) -> str:
        return str(self.fields.get("model_type"))


_ACTIVATION_SPELLINGS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "relu": "relu",
    "relu2": "relu2",
}


def from_config(path: str | Path) -> Architecture:
    """The architecture in a Hugging Face `config.json`, or in the folder that holds one.

    Of a model with several towers the text tower (`text_config`) is read. Fields that the library leaves out when they
    have its default take that default; sizes are never guessed. Multi-token-prediction layers are left out.

    Raises `BadConfig`, naming the file and the field, for a model type that is not supported (the message lists those
    that are), a missing size, or a choice that `Architecture` cannot express.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadConfig(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise BadConfig(f"{path}: not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadConfig(f"{path}: must be a JSON object, not {type(fields).__name__}")
    tower = fields.get("text_config")
    config = _Config(path, fields)
    if isinstance(tower, dict):
        # Whether the embeddings are tied is said of the whole model.
        config = _Config(path, {"tie_word_embeddings": fields.get("tie_word_embeddings"), **tower})
    if config.model_type not in _READERS:
        raise BadConfig(
            f"{path}: field 'model_type' is {config.fields.get('model_type')!r}; supported are {', '.join(_READERS)}"
        )
    published = str(fields.get("_name_or_path") or "").rstrip("/").rsplit("/", maxsplit=1)[-1]
    name = published or path.resolve().parent.name
    try:
        return Architecture(name=name, source=str(path), **_READERS[config.model_type](config))
    except BadConfig:
        raise
    except ValueError as error:
        raise BadConfig(f"{path}: {error}") from error


def _llama(config: _Config) -> dict[str, Any]:
    """The fields that Llama and its many descendants spell alike."""
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    biases = set()
    if config.flag("attention_bias", default=False):
        biases |= {"qkv", "attention_output"}
    if config.flag("mlp_bias", default=False):
        biases |= {"mlp"}
    return {
        "layers": config.count("num_hidden_layers"),
        "hidden": hidden,
        "heads": heads,
        "kv_heads": config.count("num_key_value_heads", default=heads),
        "head_dim": config.count("head_dim", default=hidden // heads),
        "ffn": config.count("intermediate_size"),
        "vocab": config.count("vocab_size"),
        "max_sequence": config.count("max_position_embeddings"),
        "activation": config.activation("hidden_act", "hidden_activation", default="silu"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=False),
        "biases": frozenset(biases),
    }


def _windows(config: _Config, window: str, every: int) -> dict[str, Any]:
    """Sliding windows: full attention in every `every`-th layer (0 = none), unless a list of layer types says otherwise."""
    size = config.count(window, default=0)
    if size == 0 or every == 1:
        return {}
    kinds = config.items("layer_types")
    if not kinds:
        return {"sliding_window": size, "full_attention_every": every}
    full = [kind == "full_attention" for kind in kinds]
    if all(full):
        return {}
    # The first full layer ends the first period.
    every = full.index(True) + 1 if any(full) else 0
    if full != [every > 0 and (layer + 1) % every == 0 for layer in range(len(full))]:
        raise BadConfig(f"{config.path}: field 'layer_types' has no regular period of full and windowed layers")
    return {"sliding_window": size, "full_attention_every": every}


def _mistral(config: _Config) -> dict[str, Any]:
    return _llama(config) | _windows(config, "sliding_window", every=0)


def _mixtral(config: _Config) -> dict[str, Any]:
    return _mistral(config) | {
        "experts": config.count("num_local_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": config.count("intermediate_size"),
    }


def _qwen_windows(config: _Config) -> dict[str, Any]:
    if not config.flag("use_sliding_window", default=False):
        return {}
    last_full = config.count("max_window_layers", default=0)
    if last_full >= config.count("num_hidden_layers"):
        return {}
    config.refuse(last_full > 0, "max_window_layers", "windows in the upper layers only cannot be expressed")
    return _windows(config, "sliding_window", every=0)


def _qwen2(config: _Config) -> dict[str, Any]:
    return _llama(config) | _qwen_windows(config) | {"biases": frozenset({"qkv"})}


def _qwen3(config: _Config) -> dict[str, Any]:
    head_dim = config.count("head_dim", default=128)
    return _llama(config) | _qwen_windows(config) | {"qk_norm": "head", "head_dim": head_dim}


def _qwen_experts(config: _Config) -> dict[str, Any]:
    dense = config.items("mlp_only_layers")
    config.refuse(
        any(layer not in dense for layer in range(len(dense))), "mlp_only_layers", "only the first layers can be dense"
    )
    every = config.count("decoder_sparse_step", default=1)
    config.refuse(bool(dense) and every > 1, "mlp_only_layers", "cannot be combined with decoder_sparse_step")
    return {
        "experts": config.count("num_experts"),
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": config.count("moe_intermediate_size"),
        "dense_layers": len(dense),
        "moe_every": every,
    }


def _qwen2_moe(config: _Config) -> dict[str, Any]:
    shared = {
        "shared_experts": 1,
        "shared_ffn": config.count("shared_expert_intermediate_size"),
        "shared_gate": True,
    }
    return _qwen2(config) | _qwen_experts(config) | shared


def _qwen3_moe(config: _Config) -> dict[str, Any]:
    return _qwen3(config) | _qwen_experts(config)


def _deepseek(config: _Config) -> dict[str, Any]:
    config.refuse(config.flag("attention_bias", default=False), "attention_bias", "biased latent projections are not supported")
    heads = config.count("num_attention_heads")
    nope, rope = config.count("qk_nope_head_dim"), config.count("qk_rope_head_dim")
    latent = {
        "kv_heads": heads,
        "head_dim": nope + rope,
        "q_lora_rank": config.count("q_lora_rank", default=0),
        "kv_lora_rank": config.count("kv_lora_rank"),
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": rope,
        "v_head_dim": config.count("v_head_dim"),
    }
    experts = config.count("n_routed_experts", default=0)
    if experts == 0:
        return _llama(config) | latent
    frequency = config.count("moe_layer_freq", default=1)
    config.refuse(frequency != 1, "moe_layer_freq", "only 1 is supported")
    width, shared = config.count("moe_intermediate_size"), config.count("n_shared_experts", default=0)
    routed = {
        "experts": experts,
        "experts_per_token": config.count("num_experts_per_tok"),
        "moe_ffn": width,
        "shared_experts": shared,
        "shared_ffn": shared * width,
        "dense_layers": config.count("first_k_dense_replace", default=0),
        "router_correction_bias": config.given("topk_method") == "noaux_tc" or config.model_type == "deepseek_v3",
        "routing_groups": config.count("topk_group", default=0) if config.count("n_group", default=1) > 1 else 0,
    }
    return _llama(config) | latent | routed


def _gemma(config: _Config) -> dict[str, Any]:
    return _llama(config) | {
        "head_dim": config.count("head_dim", default=256),
        # Gemma's first files say "gelu" and mean its tanh form, which the library then uses: the same to us.
        "activation": config.activation("hidden_activation", "hidden_act", default="gelu_pytorch_tanh"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
    }


def _gemma2(config: _Config) -> dict[str, Any]:
    return _gemma(config) | _windows(config, "sliding_window", every=2) | {"norms_per_layer": 4}


def _gemma3_text(config: _Config) -> dict[str, Any]:
    # The published files leave out what equals the library's defaults, the vocabulary and the heads of the 4B among it.
    filled = {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "sliding_window": 4096}
    filled["max_position_embeddings"] = 131072
    config = _Config(config.path, {**filled, **{k: v for k, v in config.fields.items() if v is not None}})
    every = config.count("sliding_window_pattern", "_sliding_window_pattern", default=6)
    return _gemma(config) | _windows(config, "sliding_window", every=every) | {"norms_per_layer": 4, "qk_norm": "head"}


def _nemotron(config: _Config) -> dict[str, Any]:
    fields = _llama(config)
    return fields | {
        "gated": False,
        "activation": config.activation("hidden_act", default="relu2"),
        "norm": "layernorm",
        "biases": fields["biases"] | {"norm"},
    }


def _gpt_oss(config: _Config) -> dict[str, Any]:
    return (
        _llama(config)
        | _windows(config, "sliding_window", every=2)
        | {
            "experts": config.count("num_local_experts"),
            "experts_per_token": config.count("num_experts_per_tok", "experts_per_token"),
            "moe_ffn": config.count("intermediate_size"),
            "biases": frozenset({"qkv", "attention_output", "router", "experts"})
            if config.flag("attention_bias", default=True)
            else frozenset({"router", "experts"}),
            "attention_sinks": True,
        }
    )


def _llama4_text(config: _Config) -> dict[str, Any]:
    # The plain name is the experts' width here, and the shared expert's; dense layers have one of their own.
    width, every = config.count("intermediate_size"), config.count("interleave_moe_layer_step", default=1)
    listed = config.items("moe_layers")
    regular = list(range(every - 1, config.count("num_hidden_layers"), every))
    config.refuse(bool(listed) and listed != regular, "moe_layers", "does not follow interleave_moe_layer_step")
    return (
        _llama(config)
        | _windows(config, "attention_chunk_size", every=config.count("no_rope_layer_interval", default=4))
        | {
            "ffn": config.count("intermediate_size_mlp"),
            "experts": config.count("num_local_experts"),
            "experts_per_token": config.count("num_experts_per_tok"),
            "moe_ffn": width,
            "shared_experts": 1,
            "shared_ffn": width,
            "moe_every": every,
        }
    )


def _gpt(config: _Config, hidden: int, heads: int, ffn: int, default_activation: str) -> dict[str, Any]:
    """What the models of GPT-2's line share: plain MLP, layer norm, biases, one key/value head per head."""
    return {
        "hidden": hidden,
        "heads": heads,
        "kv_heads": heads,
        "head_dim": hidden // heads,
        "ffn": ffn,
        "vocab": config.count("vocab_size"),
        "gated": False,
        "activation": config.activation("activation_function", "hidden_act", default=default_activation),
        "norm": "layernorm",
        "tied_embeddings": config.flag("tie_word_embeddings", default=True),
        "biases": frozenset({"qkv", "attention_output", "mlp", "norm"}),
    }


def _gpt2(config: _Config) -> dict[str, Any]:
    hidden, positions = config.count("n_embd"), config.count("n_positions", "n_ctx")
    ffn = config.count("n_inner", default=4 * hidden)
    return _gpt(config, hidden, config.count("n_head"), ffn, "gelu_new") | {
        "layers": config.count("n_layer"),
        "positions": "learned",
        "max_positions": positions,
        "max_sequence": positions,
    }


def _gpt_neox(config: _Config) -> dict[str, Any]:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    fields = _gpt(config, hidden, heads, config.count("intermediate_size"), "gelu") | {
        "layers": config.count("num_hidden_layers"),
        "max_sequence": config.count("max_position_embeddings"),
        "tied_embeddings": config.flag("tie_word_embeddings", default=False),
    }
    if not config.flag("attention_bias", default=True):
        fields["biases"] -= {"qkv", "attention_output"}
    return fields


def _opt(config: _Config) -> dict[str, Any]:
    hidden, heads = config.count("hidden_size"), config.count("num_attention_heads")
    narrow = config.count("word_embed_proj_dim", default=hidden) != hidden
    config.refuse(narrow, "word_embed_proj_dim", "embeddings narrower than hidden_size are not supported")
    after = not config.flag("do_layer_norm_before", default=True)
    config.refuse(after, "do_layer_norm_before", "layer norms after the block are not supported")
    fields = _gpt(config, hidden, heads, config.count("ffn_dim"), "relu")
    sequence = config.count("max_position_embeddings")
    if not config.flag("enable_bias", default=True):
        fields["biases"] -= {"qkv", "attention_output", "mlp"}
    return fields | {
        "layers": config.count("num_hidden_layers"),
        "positions": "learned",
        # The table keeps two rows for the padding offset of its origin, fairseq.
        "max_positions": sequence + 2,
        "max_sequence": sequence,
    }


def _bloom(config: _Config) -> dict[str, Any]:
    hidden = config.count("hidden_size", "n_embed")
    return _gpt(config, hidden, config.count("n_head", "num_attention_heads"), 4 * hidden, "gelu") | {
        "layers": config.count("n_layer", "num_hidden_layers"),
        "positions": "alibi",
        "embedding_norm": True,
        "max_sequence": config.count("seq_length", default=2048),
    }


def _mpt(config: _Config) -> dict[str, Any]:
    hidden, sequence = config.count("d_model"), config.count("max_seq_len")
    ffn = config.count("expansion_ratio", default=4) * hidden
    fields = _gpt(config, hidden, config.count("n_heads"), ffn, "gelu")
    fields |= {"layers": config.count("n_layers"), "max_sequence": sequence}
    attention_fields = config.given("attn_config") or {}
    config.refuse(not isinstance(attention_fields, dict), "attn_config", "must be an object")
    attention = _Config(config.path, attention_fields)
    if attention.flag("alibi", default=False):
        fields["positions"] = "alibi"
    elif config.flag("learned_pos_emb", default=True):
        fields |= {"positions": "learned", "max_positions": sequence}
    else:
        fields["positions"] = "rotary" if attention.flag("rope", default=False) else "none"
    if config.flag("no_bias", default=False):
        fields["biases"] = frozenset()
    return fields


_READERS: Mapping[str, Callable[[_Config], dict[str, Any]]] = {
    "gpt2": _gpt2,
    "gpt_neox": _gpt_neox,
    "opt": _opt,
    "bloom": _bloom,
    "mpt": _mpt,
    "llama": _llama,
    "mistral": _mistral,
    "mixtral": _mixtral,
    "qwen2": _qwen2,
    "qwen2_moe": _qwen2_moe,
    "qwen3": _qwen3,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek,
    "deepseek_v3": _deepseek,
    "kimi_k2": _deepseek,
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3_text": _gemma3_text,
    "phi3": _mistral,
    "nemotron": _nemotron,
    "gpt_oss": _gpt_oss,
    "llama4_text": _llama4_text,
}
