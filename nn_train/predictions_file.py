"""A file of predictions, written piece by piece: Parquet, CSV or JSON lines by the ending of its name."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from nn_train.decision import Decision, value_columns
from nn_train.errors import DataError, short
from nn_train.preprocessor import Preprocessor
from nn_train.table_files import reason
from nn_train.whole_file import open_whole

Write = Callable[[pa.Table], object]


def prediction_columns(scores: np.ndarray, preprocessor: Preprocessor, decision: Decision) -> dict[str, pa.Array]:
    """The columns of `Decision.frame` as Arrow has them, of what `Decision.scores` gives."""
    classes = preprocessor.target.classes
    if not classes:
        return {name: pa.array(values) for name, values in value_columns(scores, preprocessor).items()}
    chosen = pa.array(classes, pa.string()).take(pa.array(decision.choose(scores, preprocessor)))
    parts = {f"p_{name}": pa.array(np.ascontiguousarray(scores[:, i])) for i, name in enumerate(classes)}
    return {"prediction": chosen} | parts


@contextmanager
def open_predictions(path: Path) -> Iterator[Write]:
    """Hands out what writes one piece after another; the file appears when the block ends well.

    Raises:
        DataError: rows that the format cannot hold.
    """
    schema: pa.Schema | None = None
    with open_whole(path) as file:
        opened = OPENERS[path.suffix.lower()](file)
        writer: Any = None

        def write(piece: pa.Table) -> None:
            nonlocal schema, writer
            if writer is None:
                schema, writer = piece.schema, opened(piece.schema)
            try:
                writer.write_table(_like_first(piece, schema))
            except pa.ArrowException as error:
                raise DataError(
                    f"the rows cannot be written: {reason(error)}", where=str(path), fix="another format, or keep less"
                ) from None

        try:
            yield write
        except BaseException:
            with suppress(Exception):  # the writer would close itself later, and say that its file is gone
                if writer is not None:
                    writer.close()
            raise
        if writer is not None:
            writer.close()


def check_output(path: Path) -> None:
    """Raise DataError where no predictions can be written to `path`."""
    if path.suffix.lower() not in OPENERS:
        raise DataError(
            f"the format of '{path.name}' is not known from its name",
            where=str(path),
            fix=f"a name that ends in {', '.join(OPENERS)}",
        )
    if not path.parent.is_dir():
        raise DataError("there is no such folder", where=str(path.parent), fix=f"mkdir -p {path.parent}")
    if path.is_dir():
        raise DataError("this is a folder", where=str(path), fix=f"--output {path}/scores.parquet")


class _JsonLines:
    """One JSON object a line, as `read_table` reads it."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def write_table(self, piece: pa.Table) -> None:
        """Write the rows."""
        frame = piece.to_pandas(integer_object_nulls=True)  # a whole number beside a gap stays whole
        text = frame.to_json(
            orient="records", lines=True, force_ascii=False, date_format="iso", date_unit="us", double_precision=15
        )
        self.file.write(text.encode(errors="replace"))

    def close(self) -> None:
        """Nothing is left to write."""


OPENERS: dict[str, Callable[[BinaryIO], Callable[[pa.Schema], Any]]] = {
    ".parquet": lambda file: lambda schema: pq.ParquetWriter(file, schema),
    ".csv": lambda file: lambda schema: pa_csv.CSVWriter(file, schema),
    ".jsonl": lambda file: lambda schema: _JsonLines(file),
}


def _like_first(piece: pa.Table, schema: pa.Schema) -> pa.Table:
    """The piece with the first piece's types: those of JSON lines may differ from block to block."""
    if piece.schema == schema:
        return piece
    if other := sorted({*schema.names} ^ {*piece.schema.names}):
        raise DataError(
            f"column '{short(other[0])}' is in some parts of the table and not in others",
            fix="give every part the same columns",
        )
    try:
        return piece.cast(schema)
    except (pa.ArrowException, ValueError):
        names = [field.name for field in schema if piece.schema.field(field.name).type != field.type]
        raise DataError(
            f"column '{short(names[0])}' holds {piece.schema.field(names[0]).type} in some rows and "
            f"{schema.field(names[0]).type} in others",
            fix="give it one type, or leave it out",
        ) from None
