"""Bad input from good: bytes that are flipped, cut, doubled or exchanged, numbers that are none, trees with other keys and values.

Every function takes a `random.Random`, so that an input is known by its seed.
"""

from __future__ import annotations

import copy
import re
import struct
from collections.abc import Callable
from random import Random
from typing import Any

NUMBER = re.compile(rb"(?<![\w.])-?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?(?![\w.])")

WORDS = (b"nan", b"inf", b"-inf", b"0", b"-1", b"1e308", b"-1e308", b"1e-320", b"1e30", b"65535", b"2147483648", b"9" * 40, b"", b"x")
"""What is put in the place of a number in a text."""

STORED = (
    *(struct.pack("<d", value) for value in (float("nan"), float("inf"), -float("inf"), 1e300, -1.0, 0.0)),
    *(struct.pack("<f", value) for value in (float("nan"), float("inf"), 3e38, -1.0)),
    *(struct.pack("<i", value) for value in (-1, 0, 1, 2**31 - 1, 2**24)),
    *(struct.pack("<H", value) for value in (0, 1, 2**15, 2**16 - 1)),
)
"""What is put over stored numbers."""

VALUES = (
    None, True, False, 0, 1, -1, 3, 2**31, 2**63, 10**40, 0.5, -0.5, 1e-300, 1e30, 1e308, -1e308, float("nan"), float("inf"), -float("inf"),
    "", "x", "nan", "auto", "Target", "\x00", "a\nb", "é" * 300, "../../etc/passwd", [], [1], ["x"], [1.0, 2.0, 3.0], [[[]]], {}, {"x": 1},
)  # fmt: skip
"""What is put in the place of a value in a tree."""


def flip(content: bytes, rng: Random) -> bytes:
    """A few bits turned over, all near each other or anywhere."""
    found = bytearray(content)
    start, reach = rng.randrange(len(found)), rng.choice((1, 8, len(found)))
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        found[(start + rng.randrange(reach)) % len(found)] ^= 1 << rng.randrange(8)
    return bytes(found)


def truncate(content: bytes, rng: Random) -> bytes:
    """The file is cut off."""
    return content[: rng.randrange(len(content))]


def insert(content: bytes, rng: Random) -> bytes:
    """Bytes that do not belong there."""
    at, more = (
        rng.randrange(len(content) + 1),
        rng.choice((rng.randbytes(rng.choice((1, 2, 7, 100))), b"\0", b"\n", b",", b"\xff\xfe", b'"')),
    )
    return content[:at] + more + content[at:]


def duplicate(content: bytes, rng: Random) -> bytes:
    """A part that is there twice."""
    first, last = sorted((rng.randrange(len(content) + 1), rng.randrange(len(content) + 1)))
    last = min(last, first + rng.choice((1, 10, 200, 5000)))
    return content[:last] + content[first:]


def splice(content: bytes, rng: Random) -> bytes:
    """A part of the file in the place of another, of its own length."""
    size = min(len(content), rng.choice((2, 8, 50, 500)))
    here, there = (rng.randrange(len(content) - size + 1) for _ in range(2))
    return content[:here] + content[there : there + size] + content[here + size :]


def drop(content: bytes, rng: Random) -> bytes:
    """A part is missing."""
    first = rng.randrange(len(content))
    return content[:first] + content[first + rng.choice((1, 4, 30, 1000)) :]


def number(content: bytes, rng: Random) -> bytes:
    """A number of a text becomes none, or one that is out of all bounds; in a file without any, stored numbers do."""
    found = list(NUMBER.finditer(content))
    if not found:
        return stored(content, rng)
    one = rng.choice(found)
    word = rng.choice((*WORDS, b"-" + one[0], one[0] + b"000", b"0.001" + one[0]))
    return content[: one.start()] + word + content[one.end() :]


def stored(content: bytes, rng: Random) -> bytes:
    """A stored number is put over the bytes somewhere."""
    word, step = rng.choice(STORED), rng.choice((1, 2, 4, 8))
    at = rng.randrange(len(content)) // step * step
    return content[:at] + word + content[at + len(word) :]


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (flip, truncate, insert, duplicate, splice, drop, number, number, stored)


def mutate(content: bytes, rng: Random) -> bytes:
    """One to three of the above, mostly one: what is too broken is found by the first check."""
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if content:
            content = rng.choice(BYTES)(content, rng)
    return content


def mutate_tree(tree: Any, rng: Random) -> Any:
    """A copy of nested dictionaries and lists with one to three changes: a value exchanged, a key renamed or gone, an entry doubled."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        places = list(_places(tree))
        if not places:
            break
        node, key = rng.choice(places)
        what = rng.randrange(6)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[rng.choice((str(key)[:-1], f"{key}x", "x", ""))] = node.pop(key)
        elif what == 2 and isinstance(node, list):
            node.insert(key, copy.deepcopy(rng.choice(node)))
        elif what == 3 and isinstance(node[key], (int, float)) and not isinstance(node[key], bool):
            node[key] = rng.choice((-node[key], 1000 * node[key], 1e-3 * node[key], str(node[key])))
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def _places(node: Any) -> Any:
    """Every dictionary and list with each of its keys."""
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()):
        yield node, key
        yield from _places(value)
