"""Where the rows of a long text table stand in its file, told by its quotes and line breaks alone in one fast look.

So that each process reads its own part of the file, and not all that lies before it.
"""

from pathlib import Path

import numpy as np

from nn_train.pulse import pulse
from nn_train.settings import DataConfig
from nn_train.table_files import compression_of
from nn_train.table_text import Span, codec_of, read_header

LOOK_BYTES = 1 << 24  # of the file that are looked at together
LINE_FEED, RETURN, QUOTE = b'\n\r"'
BYTE_CODECS = ("utf-8-sig", "ascii", "iso8859-1", "cp1252")  # in which these signs are what their bytes say


def find_spans(file: Path, data: DataConfig, kind: str, *, num_rows: int) -> list[Span]:
    """The rows of a text file in spans of `num_rows`, the last of which has what is left.

    A row ends at a line feed with an even number of quotes before it, and an empty line is none. That holds as long as
    quotes open at the beginning of a value alone and lines end in a line feed: no span where they do not, where the
    file is compressed or its encoding has signs of several bytes that hold these, and where there is no row.

    Raises:
        DataError: the line of column names cannot be read.
    """
    header = read_header(file, data, kind)
    delimiter = header.delimiter.encode()
    if compression_of(file) or codec_of(data) not in BYTE_CODECS or len(delimiter) != 1:
        return []
    with file.open("rb") as stream:
        head = b"".join(stream.readline() for _ in range(header.num_lines))
        look = _Look(len(head), delimiter=delimiter[0], num_rows=num_rows)
        is_regular = b"\r" not in head.replace(b"\r\n", b"")
        while is_regular and (block := stream.read(LOOK_BYTES)):
            pulse.beat()
            is_regular = look.at(np.frombuffer(block, np.uint8))
    return look.spans() if is_regular else []


class _Look:
    """What is known of a file up to some place in it."""

    def __init__(self, start: int, *, delimiter: int, num_rows: int):
        self.num_rows = num_rows
        self.opens_after = (delimiter, LINE_FEED, QUOTE)  # the last: of a quote within quotes, which is written twice
        self.place = self.row_start = start
        self.last_byte = LINE_FEED
        self.is_open = False  # is a quote open?
        self.count = 0  # rows that have ended
        self.starts = [start]  # of the spans

    def at(self, block: np.ndarray) -> bool:
        """Look at the bytes (B,) that follow; is everything regular?"""
        before = np.empty_like(block)  # the byte in front of each
        before[0], before[1:] = self.last_byte, block[:-1]
        if (block[before == RETURN] != LINE_FEED).any():
            return False
        quotes, ends = np.flatnonzero(block == QUOTE), np.flatnonzero(block == LINE_FEED)
        if not np.isin(before[quotes[int(self.is_open) :: 2]], self.opens_after).all():
            return False
        if len(quotes) or self.is_open:
            ends = ends[(np.searchsorted(quotes, ends) + self.is_open) % 2 == 0]
        if len(ends):
            behind = self.place + ends + 1
            lengths = np.diff(behind, prepend=self.row_start) - 1 - (before[ends] == RETURN)
            self.row_start = int(behind[-1])
            rows = behind[lengths > 0]
            self.starts += rows[self.num_rows - 1 - self.count % self.num_rows :: self.num_rows].tolist()
            self.count += len(rows)
        self.is_open ^= bool(len(quotes) % 2)
        self.last_byte = int(block[-1])
        self.place += len(block)
        return True

    def spans(self) -> list[Span]:
        """Those of the whole file, which has been looked at to its end."""
        if self.is_open or self.last_byte == RETURN:
            return []
        count = self.count + (self.place > self.row_start)  # a last row without a line feed
        firsts = range(0, count, self.num_rows)
        stops = [*self.starts[1:], self.place]
        return [
            Span(start, stop, first, min(self.num_rows, count - first))
            for start, stop, first in zip(self.starts, stops, firsts, strict=False)
        ]
