"""Packed rows of a table larger than memory, made by all processes that come at the work, of one job or of several.

    first look -> survey of every unit -> fit on their sum and on a sample -> every unit encoded to its place

Each arrow is a file in a folder that all of them see. A unit is surveyed and encoded by whoever claims it; the first
look and the fit are pieces of work like any other, done by one. Memory holds a piece of a unit, and the sample.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from nn_train.building import id_values
from nn_train.crew import usable_cores
from nn_train.errors import DataError
from nn_train.packed import features_file, truth_file
from nn_train.preprocessor import FARTHEST
from nn_train.pulse import pulse
from nn_train.row_hash import row_hashes
from nn_train.row_weights import row_weigher
from nn_train.run_folder import read_json, write_file
from nn_train.schema import SPLITS, Split
from nn_train.settings import Config
from nn_train.shard_fit import Fitted, fit_shards, rows_writer
from nn_train.shard_plan import Plan, make_plan
from nn_train.shard_splits import Dealer
from nn_train.shards import UNIT_ROWS, PartReader, ShardError, Unit
from nn_train.survey import SAMPLE_ROWS, Survey, survey_piece
from nn_train.table import rows_named
from nn_train.together import share_out
from nn_train.values import short_columns, typed_frame

JUDGED: tuple[Split, ...] = ("val", "test")
JOINED_ROWS = 1 << 16  # of a row group of the files that are joined: who reads them holds one at a time


def build_shards(config: Config, folder: Path, *, content: str) -> None:
    """Take part in filling `folder` with the packed rows of the run's tables, until all of it is there.

    Raises:
        DataError: a shard cannot be read, or the table cannot be split or encoded as the config says.
    """
    share_out(folder, "look", [0], lambda _: make_plan(config, folder))
    plan = Plan.load(folder)
    with _helpers(config, folder, content, num_units=len(plan.units)):
        build_units(config, folder, content=content)
    for left in (*folder.glob("survey-*.json"), *folder.glob("survey-*.parquet"), *folder.glob("*.lock")):
        left.unlink(missing_ok=True)  # who comes late sees by the notes that all is done


def build_units(config: Config, folder: Path, *, content: str) -> None:
    """All that follows the first look."""
    plan = Plan.load(folder)
    numbers = range(len(plan.units))
    in_order = any(unit.most_rows is not None for unit in plan.units)  # stretches without a span are read forward
    share_out(folder, "survey", numbers, _Surveyor(config, folder, plan).survey, in_order=in_order)
    share_out(folder, "fit", [0], lambda _: fit_shards(config, folder, plan, content=content))
    encoder = _Encoder(config, folder, plan, Fitted.load(folder))
    share_out(folder, "encode", numbers, encoder.encode, in_order=in_order)
    files = [*(truth_file(folder, split) for split in JUDGED), features_file(folder, "test")]
    share_out(folder, "join", range(len(files)), lambda number: _join(files[number]))


@contextmanager
def _helpers(config: Config, folder: Path, content: str, *, num_units: int) -> Iterator[None]:
    """Processes of this machine's other cores that take part, where the launcher started fewer than there are cores."""
    here = max(1, int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    wanted = config.data.workers if isinstance(config.data.workers, int) else usable_cores() // here
    job = {"config": config.model_dump(mode="json"), "folder": str(folder), "content": content, "parent": os.getpid()}
    path = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", ""))))
    command = [sys.executable, "-m", "nn_train.shard_helper"]
    processes: list[subprocess.Popen[str]] = []
    try:
        for _ in range(min(wanted, num_units) - 1):
            own = os.environ | {"PYTHONPATH": path}
            # a session of its own: Ctrl-C goes to who started it, and that one ends it
            helper = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=own, start_new_session=True)
            processes.append(helper)
            assert helper.stdin is not None
            helper.stdin.write(json.dumps(job))
            helper.stdin.close()
        yield
    finally:  # with all done they end by themselves; after an error nobody needs their work
        for helper in processes:
            helper.terminate()
            helper.wait()


@dataclasses.dataclass(frozen=True)
class _Piece:
    """Some rows of a unit: raw, with their hashes and the number of the first one in its file."""

    unit: Unit
    first_row: int
    rows: pa.Table
    hashes: np.ndarray

    def name_row(self, row: int) -> str:
        """A row for a person."""
        return f"row {self.first_row + row + 1} of {self.unit.file.name}"


class _Reader:
    """Reads the pieces of units as the plan says."""

    def __init__(self, config: Config, folder: Path, plan: Plan):
        self.config = config
        self.folder = folder
        self.plan = plan
        self.parts = PartReader(config.data)
        self.dealer = Dealer(config, plan.schema, plan.cuts)

    def pieces(self, unit: Unit, part: int) -> Iterator[_Piece]:
        """The rows of a part, in order."""
        row = unit.row_of(part)
        for rows in self.parts.read(unit, part, columns=self.plan.columns):
            pulse.beat()
            if len(rows):
                seed = self.config.split.seed
                hashes = row_hashes(seed=seed, file_number=unit.file_number, first_row=row, num_rows=len(rows))
                yield _Piece(unit, row, rows, hashes)
            row += len(rows)

    def deal(self, piece: _Piece) -> np.ndarray:
        """The split of each row as its place in SPLITS."""
        with rows_named(piece.name_row):
            return self.dealer.deal(piece.rows, piece.hashes, piece.unit)


class _Surveyor(_Reader):
    def survey(self, number: int) -> None:
        """Survey a unit, and leave what was found out in the folder."""
        unit, found = self.plan.units[number], Survey()
        for part in unit.parts:
            own = Survey()
            try:
                for piece in self.pieces(unit, part):
                    own.add(self._survey_piece(piece))
                    if own.sample is not None and len(own.sample) > 2 * sum(SAMPLE_ROWS):
                        own.thin_sample()
            except ShardError as error:
                if self.config.data.bad_shards == "stop":
                    raise
                found.bad_parts[str(part)] = f"{error.where}: {error.what}"
                continue
            if own.sample is not None:
                found.add(own)
                found.thin_sample()
        found.save(self.folder, f"survey-{number:06d}")

    def _survey_piece(self, piece: _Piece) -> Survey:
        split = self.deal(piece)
        with rows_named(piece.name_row):
            return survey_piece(
                piece.rows,
                self.plan.schema,
                self.config.data,
                split=split,
                hashes=piece.hashes,
                name_row=piece.name_row,
                chance_below=self.plan.chance_below,
            )


class _Encoder(_Reader):
    def __init__(self, config: Config, folder: Path, plan: Plan, fitted: Fitted):
        super().__init__(config, folder, plan)
        self.fitted = fitted
        preprocessor = fitted.preprocessor
        self.writers = {split: rows_writer(folder, split, preprocessor, config, fitted.rows[split]) for split in SPLITS}

    def encode(self, number: int) -> None:
        """Encode the rows of a unit to their places."""
        unit = self.plan.units[number]
        bad = read_json(self.folder / f"survey-{number:06d}.json")["bad_parts"]
        places = dict(zip(SPLITS, self.fitted.places[number], strict=True))
        truths = {name: _Frames(truth_file(self.folder, name), number) for name in JUDGED}
        features = _Frames(features_file(self.folder, "test"), number)
        for part in unit.parts:
            for piece in self.pieces(unit, part) if str(part) not in bad else ():
                split, columns = self._encode_piece(piece)
                for place, name in enumerate(SPLITS):
                    rows = np.flatnonzero(split == place)
                    self.writers[name].write(places[name], {key: values[rows] for key, values in columns.items()})
                    places[name] += len(rows)
                    if name in JUDGED and len(rows):
                        kept = piece.rows.take(pa.array(rows))
                        truths[name].add(self._truth(kept, rows + piece.first_row, unit))
                        if name == "test":
                            features.add(self._features(kept))
        for writer in self.writers.values():
            writer.sync()  # before a note says that the unit is done
        for frames in (*truths.values(), features):
            frames.write()

    def _encode_piece(self, piece: _Piece) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The split of each row, -1 for one without a target, and the packed columns."""
        data, target = self.config.data, self.fitted.schema.target
        columns = short_columns(piece.rows, self.fitted.schema, data)
        has_target = np.logical_and.reduce([~pd.isna(np.asarray(columns[name])) for name in target.names])
        encoded = self.fitted.preprocessor.transform_columns(columns, num_rows=len(piece.rows))
        assert encoded.y is not None
        if target.task == "regression" and (np.abs(encoded.y[has_target]) > FARTHEST).any():
            raise DataError(
                f"the target holds a value in {piece.unit.file.name} that is more than {FARTHEST:g} deviations away "
                "from the train rows",
                where=data.path,
                fix="correct it or leave the row out",
            )
        packed = {"x_num": encoded.x_num, "x_cat": encoded.x_cat, "y": encoded.y}
        weigh = row_weigher(data)
        split = np.where(has_target, self.deal(piece), -1)
        return split, packed if weigh is None else packed | {"weight": weigh(piece.rows)}

    def _truth(self, kept: pa.Table, rows: np.ndarray, unit: Unit) -> pd.DataFrame:
        schema = self.fitted.schema
        truth = pd.DataFrame({name: id_values(kept.column(name)) for name in schema.id_columns})
        truth = truth.rename(columns=schema.id_names())
        truth.insert(0, "row", rows + self.fitted.first_rows[unit.file_number])
        targets = typed_frame(kept, dataclasses.replace(schema, columns=()), self.config.data)
        for column, name in zip(schema.target.truth_names, schema.target.names, strict=True):
            truth[column] = targets[name].to_numpy()
        return truth

    def _features(self, kept: pa.Table) -> pd.DataFrame:
        frame = typed_frame(kept, self.fitted.schema, self.config.data)
        return frame[[spec.name for spec in self.fitted.schema.features]]


def _parts(file: Path) -> Path:
    """Where the units' parts of a file are until they are joined."""
    return file.with_suffix(".parts")


def _join(file: Path) -> None:
    """Make one file of its parts, a row group after the other."""
    parts = sorted(_parts(file).glob("*.parquet"))
    if not parts:
        return
    schemas = [pq.read_schema(part) for part in parts]
    schema = pa.unify_schemas(schemas, promote_options="permissive").remove_metadata()
    temporary = file.with_suffix(".joining")
    with pq.ParquetWriter(temporary, schema) as writer:
        for part in parts:
            pulse.beat()
            writer.write_table(pq.read_table(part).cast(schema), row_group_size=JOINED_ROWS)
    os.replace(temporary, file)
    shutil.rmtree(_parts(file))


class _Frames:
    """The rows of a unit for a file that is joined later, in parts of some UNIT_ROWS."""

    def __init__(self, file: Path, number: int):
        self.folder = _parts(file)
        self.number = number
        self.held: list[pd.DataFrame] = []
        self.num_parts = 0

    def add(self, frame: pd.DataFrame) -> None:
        """Take in the rows that follow."""
        self.held.append(frame)
        if sum(map(len, self.held)) >= UNIT_ROWS:
            self.write()

    def write(self) -> None:
        """Write the rows that are held, if there are any."""
        if self.held:
            self.folder.mkdir(exist_ok=True)
            file = self.folder / f"{self.number:06d}-{self.num_parts:06d}.parquet"
            write_file(file, pd.concat(self.held, ignore_index=True).to_parquet(None, index=False))
            self.held, self.num_parts = [], self.num_parts + 1
