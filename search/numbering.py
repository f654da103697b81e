"""Which of many points were told, and as which: ordinals numbered in the order in which they came.

A hash table of buckets in arrays (Knuth, The Art of Computer Programming, vol. 3, §6.4), asked a batch at a time. What a
point costs hardly grows with how many there are, as it does with a set of Python's integers, which outgrows the caches: a
bucket is one line of the cache, and one look at it nearly always settles it, however full the table.
"""

from __future__ import annotations

from typing import final

import numpy as np
from numpy.typing import NDArray

from spaces.columns import IntArray

_WIDTH = 8  # ordinals of a bucket: a line of the cache
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio: Fibonacci hashing, ibid.
_SMALLEST = 9  # bits of a bucket's number


@final
class Numbering:
    """Distinct ordinals (at least 0), numbered from 0 on as they are added."""

    def __init__(self, ordinals: IntArray | None = None) -> None:
        self._count = 0
        self._made(_SMALLEST)
        if ordinals is not None:
            self.add(ordinals)

    def __len__(self) -> int:
        return self._count

    def find(self, ordinals: IntArray) -> IntArray:
        """The number of each ordinal, −1 where it was not added, shape (n,)."""
        found = np.full(len(ordinals), -1, np.int64)
        left, buckets = np.arange(len(ordinals)), self._buckets(ordinals)
        while len(left):
            lines = self._keys.take(buckets, axis=0)
            rows, place = np.nonzero(lines == ordinals[left, None])
            found[left[rows]] = self._numbers[buckets[rows], place]
            on = lines[:, -1] >= 0  # full: places are taken in order
            on[rows] = False
            left, buckets = left[on], self._next(buckets[on])
        return found

    def known(self, ordinals: IntArray) -> NDArray[np.bool_]:
        """Which ordinals were added, shape (n,)."""
        return self.find(ordinals) >= 0

    def add(self, ordinals: IntArray) -> None:
        """Number ordinals that are distinct and new."""
        first, self._count = self._count, self._count + len(ordinals)
        if 4 * self._count > self._keys.size:  # buckets are seldom full
            held = self._keys >= 0
            keys, numbers = self._keys[held], self._numbers[held]
            self._made((self._count - 1).bit_length())
            self._put(keys, numbers)
        self._put(np.asarray(ordinals, np.int64), np.arange(first, self._count))

    def _made(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._keys = np.full((1 << bits, _WIDTH), -1, np.int64)
        self._numbers = np.empty((1 << bits, _WIDTH), np.int64)

    def _buckets(self, ordinals: IntArray) -> IntArray:
        return np.asarray((ordinals.astype(np.uint64) * _GOLDEN) >> self._shift, np.int64)

    def _next(self, buckets: IntArray) -> IntArray:
        return np.asarray((buckets + 1) & (len(self._keys) - 1), np.int64)

    def _put(self, ordinals: IntArray, numbers: IntArray) -> None:
        """Each in the first bucket from its own on that is not full; of those that meet at one place a single one stays."""
        buckets = self._buckets(ordinals)
        while len(ordinals):
            place = np.count_nonzero(self._keys.take(buckets, axis=0) >= 0, axis=1)
            full = place == _WIDTH
            place[full] = 0
            self._keys[buckets[~full], place[~full]] = ordinals[~full]
            stays = ~full & (self._keys[buckets, place] == ordinals)
            self._numbers[buckets[stays], place[stays]] = numbers[stays]
            ordinals, numbers = ordinals[~stays], numbers[~stays]
            buckets = np.where(full, self._next(buckets), buckets)[~stays]
