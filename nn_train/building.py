"""Packed rows of a table that is not found packed: read, infer, split, fit, encode.

Imported where there is work to do alone: a start that finds its rows packed pays for none of these libraries.
"""

from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa

from nn_train.doubts import find_doubts
from nn_train.errors import DataError, short
from nn_train.inference import infer_schema
from nn_train.packed import features_file, save_rows, truth_file
from nn_train.preprocessing import fit_preprocessor
from nn_train.preprocessor import FARTHEST, Encoded, NumericInput, Preprocessor
from nn_train.pulse import pulse
from nn_train.row_weights import refuse_all_zero, row_weigher
from nn_train.run_folder import write_file, write_json
from nn_train.schema import SPLITS, TableSchema
from nn_train.settings import Config, DataConfig
from nn_train.splits import Splits, save_splits
from nn_train.splitting import make_splits
from nn_train.table import name_row, read_table
from nn_train.table_files import input_paths, reason
from nn_train.values import plain, read_dates, typed_frame


def build_rows(config: Config, folder: Path, *, content: str) -> None:
    """Fill `folder` with the packed rows of the run's tables and with all that was found out on the way.

    Raises:
        DataError: the table cannot be read, split or encoded as the config says.
    """
    datasets.disable_progress_bars()
    tables = [_read_input(config, key_name, path) for key_name, path in input_paths(config)]
    table = tables[0] if len(tables) == 1 else _join(tables, config)
    pulse.beat()
    schema = _infer(config, table, parts=tables)
    pulse.beat()
    frame = typed_frame(table, schema, config.data)
    pulse.beat()
    weigh = row_weigher(config.data)
    weight = None
    if weigh is not None:
        weight = weigh(table.with_format("arrow").select_columns([config.data.weight or ""])[:])
        has_target = frame[list(schema.target.names)].notna().all(axis=1).to_numpy()
        refuse_all_zero(weight[has_target], config.data, rows="every row")
    splits = _split(config, table, frame, schema, sizes=[len(part) for part in tables])
    if weight is not None:
        refuse_all_zero(weight[splits.train], config.data, rows="every train row")
    pulse.beat()
    preprocessor = fit_preprocessor(
        frame.iloc[splits.train],
        schema,
        config.preprocess,
        has_tree_bins=config.has_tree_bins,
        where=config.data.path,
        later=frame.iloc[splits.val] if config.split.method == "time" else None,
    )
    pulse.beat()
    encoded = preprocessor.transform(frame)
    _refuse_far_target(encoded, schema.target.take(frame), config.data)
    columns = {"x_num": encoded.x_num, "x_cat": encoded.x_cat, "y": encoded.y, "weight": weight}
    for split in SPLITS:
        rows = getattr(splits, split)
        pulse.beat()
        save_rows(folder, split, {name: values[rows] for name, values in columns.items() if values is not None})
    pulse.beat()
    found = describe(frame, encoded, splits, schema, preprocessor=preprocessor, config=config)
    write_findings(folder, schema, preprocessor, found | {"fingerprint": content})
    save_splits(splits, folder / "splits.npz")
    ids = table.with_format("arrow").select_columns(list(schema.id_columns))[:] if schema.id_columns else pa.table({})
    truth = pd.DataFrame({name: id_values(ids.column(name)) for name in ids.column_names}, index=frame.index)
    truth = truth.rename(columns=schema.id_names())
    truth.insert(0, "row", np.arange(len(frame)))
    for column, name in zip(schema.target.truth_names, schema.target.names, strict=True):
        truth[column] = frame[name].to_numpy()
    for split in SPLITS:
        write_file(truth_file(folder, split), truth.iloc[getattr(splits, split)].to_parquet(None, index=False))
    features = frame[[column.name for column in schema.features]]
    write_file(features_file(folder, "test"), features.iloc[splits.test].to_parquet(None, index=False))


def _infer(config: Config, table: datasets.Dataset, *, parts: list[datasets.Dataset]) -> TableSchema:
    split_column = config.split.column if config.split.method != "random" else None
    is_feature = config.split.method == "time"

    def infer(rows: datasets.Dataset, data: DataConfig) -> TableSchema:
        return infer_schema(rows, data, split_column=split_column, split_column_is_feature=is_feature)

    try:
        return infer(table, config.data)
    except DataError as error:
        # of several tables, the one that raises the same complaint alone can name its own file and line
        for part, (_, path) in zip(parts, input_paths(config), strict=True) if len(parts) > 1 else ():
            try:
                infer(part, config.data.model_copy(update={"path": path}))
            except DataError as other:
                if other.what.partition(" in ")[0] == error.what.partition(" in ")[0]:
                    raise other from None
        raise


def _refuse_far_target(encoded: Encoded, target: np.ndarray, data: DataConfig) -> None:
    """A validation or test value whose square would leave float32, seen from the train rows; `target` as it is."""
    assert encoded.y is not None
    is_far = np.abs(encoded.y.reshape(len(target), -1)) > FARTHEST
    if is_far.any():
        row, place = divmod(int(np.argmax(is_far)), is_far.shape[1])
        value = target.reshape(is_far.shape)[row, place]
        raise DataError(
            f"the target '{short(data.targets[place])}' holds {value} in {name_row(data, row)}, which is more than "
            f"{FARTHEST:g} deviations away from the train rows",
            where=data.path,
            fix="correct it or leave the row out",
        )


def id_values(column: pa.ChunkedArray) -> pd.Series:
    """Values of an id column as pandas and Parquet take them: as they are, or else as text."""
    if pa.types.is_nested(column.type):
        return pd.Series([None if value is None else str(value) for value in column.to_pylist()], dtype=object)
    try:
        return column.to_pandas()
    except (pa.ArrowException, ValueError, OverflowError):
        return column.cast(pa.string()).to_pandas()


def _read_input(config: Config, key: str, path: str) -> datasets.Dataset:
    table = read_table(config.data, path)
    if not len(table):
        raise DataError("the table holds no rows", where=path, fix=f"{key}=FILE")
    return table


def _join(tables: list[datasets.Dataset], config: Config) -> datasets.Dataset:
    names = tables[0].column_names
    for table, (key, path) in zip(tables[1:], input_paths(config)[1:], strict=True):
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DataError(
                f"column '{short(missing[0])}' of the train table is missing", where=path, fix=f"{key}=FILE"
            )
    try:
        return datasets.concatenate_datasets([table.select_columns(names) for table in tables])
    except ValueError as error:
        raise DataError(
            f"the tables hold columns of different types: {reason(error)}",
            where=config.data.path,
            fix="give the column one type in every table",
        ) from None


def _split(
    config: Config, table: datasets.Dataset, frame: pd.DataFrame, schema: TableSchema, *, sizes: list[int]
) -> Splits:
    present = np.flatnonzero(frame[list(schema.target.names)].notna().all(axis=1).to_numpy())
    edges = np.cumsum([0, *sizes])
    values = schema.target.take(frame)[present]
    column = None
    if config.split.column is not None and config.split.method != "random":
        column = _split_values(table, config.split.column, config.data).iloc[present]
    splits = make_splits(
        config.split,
        target=values.astype(np.float64) if schema.target.task == "regression" else values.astype(str),
        task=schema.target.task,
        column=column,
        sizes=tuple(int(n) for n in np.diff(np.searchsorted(present, edges)))
        if config.split.method == "files"
        else None,
        keeps_rare=config.data.rare_classes == "keep",
        where=config.data.path,
    )
    return Splits(**{split: present[getattr(splits, split)] for split in SPLITS})


def _split_values(table: datasets.Dataset, name: str, data: DataConfig) -> pd.Series:
    column = plain(table.with_format("arrow").select_columns([name])[:].column(name))
    if pa.types.is_nested(column.type):
        raise DataError(
            f"split.column='{short(name)}' holds {short(str(column.type))}, which tells no split",
            where=data.path,
            fix="another split.column, or split.method=random",
        )
    is_date = pa.types.is_temporal(column.type)
    return pd.Series(read_dates(column, data, day_first=False)) if is_date else column.to_pandas()


def write_findings(folder: Path, schema: TableSchema, preprocessor: Preprocessor, found: dict[str, Any]) -> None:
    """Write what was inferred, fitted and found out of a table."""
    write_json(folder / "schema.json", schema.to_json())
    write_json(folder / "data.json", found)
    for name, data in preprocessor.to_bytes().items():
        write_file(folder / name, data)


def describe(
    frame: pd.DataFrame,
    encoded: Encoded,
    splits: Splits,
    schema: TableSchema,
    *,
    preprocessor: Preprocessor,
    config: Config,
) -> dict[str, Any]:
    """What the report says of the data: class counts, drift between the splits, warnings."""
    names = schema.target.names
    rows = {split: getattr(splits, split) for split in SPLITS}
    warnings = [
        f"column '{short(c.name)}' was dropped: {c.dropped}"
        for c in schema.columns
        if c.dropped and not c.dropped.startswith(("data.", "split"))
    ]
    # a date without a time of day has no hour: that is no news to anybody
    hours = {NumericInput(column=column.name, part="hour").name for column in schema.features if column.kind == "date"}
    told = {name: reason for name, reason in preprocessor.dropped.items() if name not in hours}
    warnings += [f"column '{short(name)}' was dropped: {reason}" for name, reason in told.items()]
    pulse.beat()
    warnings += find_doubts(frame, encoded, splits, schema, preprocessor=preprocessor, config=config)
    classes, stats = None, None
    if schema.target.task == "regression":
        stats = {
            name: {split: _mean_and_deviation(frame[name].iloc[rows[split]]) for split in SPLITS} for name in names
        }
        stats = stats if schema.target.columns else stats[schema.target.name]
    else:
        counts = {split: frame[names[0]].iloc[rows[split]].value_counts() for split in SPLITS}
        classes = {split: {c: int(counts[split].get(c, 0)) for c in schema.target.classes} for split in SPLITS}
    return {
        "rows": {split: len(part) for split, part in rows.items()},
        "class_counts": classes,
        "target_stats": stats,
        "drift": _drift(encoded, splits, preprocessor),
        "warnings": warnings,
    }


def _mean_and_deviation(values: pd.Series) -> dict[str, float] | None:
    return {"mean": float(values.mean()), "std": float(values.std(ddof=0))} if len(values) else None


def _drift(encoded: Encoded, splits: Splits, preprocessor: Preprocessor) -> dict[str, dict[str, float]]:
    """Per column: shift of the scaled mean in train deviations, or the share of rows that moved level."""
    drift: dict[str, dict[str, float]] = {}
    for split in ("val", "test"):
        rows = getattr(splits, split)
        if not len(rows):
            continue
        for index, column in enumerate(preprocessor.numeric):
            train = encoded.x_num[splits.train, index].astype(np.float64)
            shift = abs(encoded.x_num[rows, index].astype(np.float64).mean() - train.mean()) / (train.std() or 1.0)
            drift.setdefault(column.column, {})[split] = max(float(shift), drift.get(column.column, {}).get(split, 0.0))
        for index, category in enumerate(preprocessor.categorical):
            shares = [
                np.bincount(encoded.x_cat[part, index], minlength=category.cardinality) / len(part)
                for part in (splits.train, rows)
            ]
            drift.setdefault(category.column, {})[split] = float(abs(shares[0] - shares[1]).sum() / 2)
    return drift
