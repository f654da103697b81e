"""Conversations: several turns, each prompt holding all that was said before, each sent once the last answer has been read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from spaces.columns import FloatArray, IntArray
from spaces.lengths import Lengths
from spaces.workload import Requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """`turns` turns a session; each adds `message` new prompt tokens and `answer` tokens, `think` seconds apart on average.

    `system` tokens begin every first prompt. Think times are exponential.
    """

    turns: Lengths
    message: Lengths
    answer: Lengths
    think: float = 0.0
    system: int = 0


def sessions(generator: np.random.Generator, starts: FloatArray, what: Conversation, *, concurrency: int = 0) -> Requests:
    """Requests of one session a start, (Σ turns,): session by session, turn by turn.

    A turn's prompt is the whole context so far and the new message; what the last turn left is shared and may be found cached.
    `starts` are seconds, ascending; zeros with a `concurrency` make a closed loop of sessions.
    """
    count = len(starts)
    turns = what.turns.draw(generator, count)
    n = int(np.sum(turns))
    first = np.cumsum(turns) - turns
    session = np.repeat(np.arange(count), turns)
    begins = np.zeros(n, np.bool_)
    begins[first] = True
    message, answer = what.message.draw(generator, n), what.answer.draw(generator, n)
    said = message + answer
    before = np.cumsum(said) - said
    context = before - before[first][session] + np.where(begins, 0, what.system)
    prompt: IntArray = context + message + np.where(begins, what.system, 0)
    return Requests(
        arrival=starts[session],
        prompt=prompt,
        output=answer,
        prefix=session,
        shared=np.where(begins, 0, context - 1),  # the last token of an answer was never computed on
        keeps=np.ones(n, np.bool_),
        follows=np.where(begins, -1, np.arange(n) - 1),
        think=generator.exponential(what.think, n) if what.think > 0 else np.zeros(n),
        concurrency=concurrency,
    )


def shared_prefix(generator: np.random.Generator, requests: Requests, hit_rate: float, *, groups: int = 1) -> Requests:
    """The same requests, of which a share `hit_rate` of all prompt tokens is common to one of `groups` prefixes.

    Each prompt shares its first `hit_rate` part; the first request of a group to reach an engine computes it.
    """
    if not 0 <= hit_rate < 1:
        raise ValueError(f"the prefix hit rate is {hit_rate}: a share of the prompt tokens, 0 to below 1")
    arrays = {name: getattr(requests, name) for name in ("arrival", "prompt", "output", "priority", "follows", "think")}
    return Requests(
        **arrays,
        prefix=generator.integers(0, groups, len(requests)),
        shared=np.floor(requests.prompt * hit_rate).astype(np.int64),
        concurrency=requests.concurrency,
    )
