"""Expand Slurm's short form of a list of nodes: `n[1-3,7]` is n1, n2, n3 and n7."""

import itertools
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

from nn_train.errors import UserError

MOST_NODES = 65_536  # Slurm's own limit of one range; a typing error must not fill the memory

_SEPARATOR = re.compile(r"[,\s]+")
_NAME = re.compile(r"(?:[^\[\],\s]|\[[^\[\]]*\])+")
_GROUP = re.compile(r"\[([^\]]*)\]")
_RANGE = re.compile(r"([0-9]{1,18})(?:-([0-9]{1,18}))?")


class _Range(NamedTuple):
    """Numbers that follow each other, written with at least `width` digits."""

    numbers: range
    width: int

    def texts(self) -> Iterator[str]:
        return (f"{number:0{self.width}d}" for number in self.numbers)


def expand(text: str) -> list[str]:
    """Expand a node list to its names, in the order and with the repetitions of `scontrol show hostnames`.

    Names may also go on after the last bracket (`n[1-2]-ib`), which not every version of scontrol reads.

    Raises:
        UserError: if the text is no node list.
    """
    names = list(_split(text))
    if not names:
        raise _error(text, "the node list is empty")
    parsed = [_parse(name, text) for name in names]
    if sum(math.prod(map(_count, groups)) for _, groups in parsed) > MOST_NODES:
        raise _error(text, f"the node list names more than {MOST_NODES} nodes")
    return [host for fixed, groups in parsed for host in _combine(fixed, groups)]


def _split(text: str) -> Iterator[str]:
    """Cut at the commas and blanks that are outside brackets; as in Slurm, nothing between two commas is no name."""
    place = 0
    while place < len(text):
        if separator := _SEPARATOR.match(text, place):
            place = separator.end()
        elif name := _NAME.match(text, place):
            place = name.end()
            yield name[0]
        else:
            problem = "is not closed" if text[place] == "[" else "was not opened"
            raise _error(text, f"the bracket at character {place + 1} of the node list {problem}")


def _parse(name: str, text: str) -> tuple[list[str], list[list[_Range]]]:
    """Cut a name into its fixed parts and the bracket groups between them."""
    parts = _GROUP.split(name)
    return parts[::2], [[_read_range(piece, text) for piece in group.split(",")] for group in parts[1::2]]


def _read_range(piece: str, text: str) -> _Range:
    match = _RANGE.fullmatch(piece)
    if match is None:
        raise _error(text, f"'{piece}' in brackets is no number and no range of numbers")
    first, last = match[1], match[2] or match[1]
    if int(last) < int(first):
        raise _error(text, f"the range '{piece}' runs backwards")
    return _Range(range(int(first), int(last) + 1), width=len(first))  # as in Slurm, the first number sets the width


def _count(group: list[_Range]) -> int:
    return sum(len(piece.numbers) for piece in group)


def _combine(fixed: list[str], groups: list[list[_Range]]) -> Iterator[str]:
    """Put every number of every group into the name.

    The last group is the fastest. Of the others Slurm takes the rightmost as the slowest, and the ranks of a job
    follow its order: a[1-2]b[1-2]c[1] is a1b1c1, a2b1c1, a1b2c1, a2b2c1.
    """
    numbers = [[text for piece in group for text in piece.texts()] for group in groups]
    slowest_first = [*numbers[-2::-1], *numbers[-1:]]
    for chosen in itertools.product(*slowest_first):
        in_name = [*chosen[-2::-1], *chosen[-1:], ""]  # the same swap again undoes it
        yield "".join(part + value for part, value in zip(fixed, in_name, strict=True))


def _error(text: str, what: str) -> UserError:
    return UserError(
        what,
        where=f"node list '{text if len(text) <= 200 else text[:200] + '...'}'",
        fix="write names with commas between them and numbers in brackets, as in n[1-3,7],login1",
    )
