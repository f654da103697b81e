"""What bounds one serving engine's scheduler, and how engines stand together: pools, a router, a link between pools."""

from __future__ import annotations

import difflib
import math
from dataclasses import dataclass

from costmodels.step_tables import StepTables

POLICIES = ("mixed", "prefill-first", "static")
RESERVES = ("prompt", "whole")
PREEMPTIONS = ("recompute", "swap")
ROUTERS = ("round-robin", "least-loaded", "prefix-aware")

UNBOUNDED_BLOCKS = 1 << 30
"""KV blocks of an engine whose memory is not modelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """A scheduler's limits and policy; counts are those of ONE attention-data-parallel rank. The defaults are vLLM v1's.

    - `max_batch` requests run at once; a step processes at most `max_tokens` new tokens; one request at most `chunk` prompt
      tokens a step (0: no such limit). `chunked` False: a prompt goes through in one step, alone if it exceeds `max_tokens`.
    - `policy`: `mixed` adds prompt chunks to every decode step; `prefill-first` runs steps of prompts alone while there are
      any (and memory); `static` fills a batch, then decodes it until all its requests end.
    - KV cache: `kv_blocks` blocks of `block_size` tokens; a prompt is admitted when `watermark` of them stay free.
      `reserve`: a request takes blocks for its `prompt` and then one by one, or for the `whole` answer at once (and is then
      never preempted). `preemption`: the last request admitted is recomputed, or swapped to `host_blocks` of host memory at
      `swap_time_per_token` seconds a token and way (recomputed when they are full).
    - `context` is the longest prompt plus answer (0: no limit); longer requests are rejected and counted.
    - `ahead`: a step is planned while the one before it runs, so that it takes in only what had come when that one began.
    - `attention_dp` ranks step together, as slow as the slowest. With `patience` they hold their prompts until each has one to
      process, up to so many steps, and only while all of them decode.
    - Under speculation each request verifies `verified_tokens` a step, of which `accepted_tokens` (≥ 1) are new on average;
      requests of a batch advance alike.
    """

    max_batch: int = 256
    max_tokens: int = 8192
    chunk: int = 0
    chunked: bool = True
    policy: str = "mixed"
    kv_blocks: int = UNBOUNDED_BLOCKS
    block_size: int = 16
    watermark: float = 0.0
    reserve: str = "prompt"
    preemption: str = "recompute"
    host_blocks: int = UNBOUNDED_BLOCKS
    swap_time_per_token: float = 0.0
    context: int = 0
    attention_dp: int = 1
    patience: int = 0
    ahead: bool = False
    verified_tokens: int = 1
    accepted_tokens: float = 1.0

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_tokens", "kv_blocks", "block_size", "attention_dp", "verified_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}: a scheduler needs at least 1")
        for name in ("chunk", "host_blocks", "context", "swap_time_per_token", "patience"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}: it cannot be negative")
        if not 0 <= self.watermark < 1:
            raise ValueError(f"watermark is {self.watermark}: it is a share of the KV blocks, 0 to 1")
        if self.max_tokens < self.max_batch * self.verified_tokens:
            raise ValueError(
                f"max_tokens is {self.max_tokens}, but {self.max_batch} requests decode {self.verified_tokens} token(s) each a "
                f"step: raise max_tokens to {self.max_batch * self.verified_tokens} or lower max_batch to "
                f"{self.max_tokens // self.verified_tokens}"
            )
        if not 1 <= self.accepted_tokens <= self.verified_tokens:
            raise ValueError(
                f"accepted_tokens is {self.accepted_tokens}: a step that verifies {self.verified_tokens} token(s) yields 1 to "
                f"{self.verified_tokens}"
            )
        _known("policy", self.policy, POLICIES)
        _known("reserve", self.reserve, RESERVES)
        _known("preemption", self.preemption, PREEMPTIONS)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pool:
    """`replicas` engines alike, each row `engine` of the tables, under the same limits."""

    tables: StepTables
    engine: int = 0
    limits: Limits
    replicas: int = 1

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ValueError(f"replicas is {self.replicas}: a pool has at least 1 engine")
        if not 0 <= self.engine < len(self.tables):
            raise ValueError(f"engine is {self.engine}: the tables hold rows 0 to {len(self.tables) - 1}")

    @property
    def ranks(self) -> int:
        """Attention-data-parallel ranks of all engines: the places a router can send a request to."""
        return self.replicas * self.limits.attention_dp


@dataclass(frozen=True, slots=True, kw_only=True)
class KvLink:
    """The link KV cache crosses from a prefill engine to the decode pool, one request after another per prefill engine.

    `latency` seconds, then `time_per_token` seconds a token (bytes a token over the engine's bandwidth).
    """

    latency: float = 0.0
    time_per_token: float = 0.0

    def __post_init__(self) -> None:
        for name in ("latency", "time_per_token"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}: seconds, finite and not negative")


def _known(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        near = difflib.get_close_matches(value, known, 1)
        raise ValueError(f"{name} {value!r} is unknown{f': did you mean {near[0]!r}?' if near else ''} ({', '.join(known)})")
