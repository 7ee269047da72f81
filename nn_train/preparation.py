"""From the config to packed rows: read, infer, split, fit, encode; done once and found again."""

import dataclasses
import hashlib
import json
import logging
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import sklearn
import torch

from nn_train.errors import DataError
from nn_train.inference import infer_schema
from nn_train.packed import ResidentRows, build_once, load_rows, pack_rows
from nn_train.preprocessing import Encoded, Preprocessor, fit_preprocessor
from nn_train.run_folder import read_json, write_file, write_json
from nn_train.schema import SPLITS, Split, TableSchema
from nn_train.settings import Config, DataConfig
from nn_train.splits import Splits, load_splits, make_splits, save_splits
from nn_train.table import read_table
from nn_train.table_files import cache_dir, find_files, fingerprint
from nn_train.values import typed_frame

logger = logging.getLogger("nn_train")
# what a packed folder holds depends on these files of the project: where one changes, old folders are not found
CODE = ("table_files", "table_text", "table", "values", "inference_target", "inference", "splits", "preprocessing",
        "packed", "preparation")  # fmt: skip
ROWS_TABLE = "truth.parquet"
KEPT_FILES = ("schema.json", "data.json", "splits.npz", "preprocessor.json", "preprocessor.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What the first half of a run hands to the second."""

    folder: Path
    schema: TableSchema
    splits: Splits
    preprocessor: Preprocessor
    info: dict[str, Any]
    was_cached: bool

    def rows(self, split: Split, *, device: torch.device) -> ResidentRows:
        """The packed rows of a split, on the device."""
        return load_rows(self.folder, getattr(self.splits, split), device=device)

    def truth(self, split: Split) -> pd.DataFrame:
        """Row number in the table, id columns and target of a split's rows."""
        return pd.read_parquet(self.folder / ROWS_TABLE).iloc[getattr(self.splits, split)]

    def files(self) -> list[tuple[str, bytes]]:
        """What the run folder keeps of the preparation."""
        return [(name, (self.folder / name).read_bytes()) for name in KEPT_FILES]


def prepare_data(config: Config) -> PreparedData:
    """Prepare the table, or find it prepared: every process may call this at once.

    Raises:
        DataError: the table cannot be read, split or encoded as the config says.
    """
    content = "-".join(fingerprint(find_files(path, key=key)) for key, path in _inputs(config))
    key = _cache_key(config, content)
    folder = cache_dir(config.data) / "packed" / key
    built = build_once(folder, lambda target: _build(config, target, content=content, key=key))
    return PreparedData(
        folder=folder,
        schema=TableSchema.from_json(read_json(folder / "schema.json")),
        splits=load_splits(folder / "splits.npz"),
        preprocessor=Preprocessor.load(folder),
        info=read_json(folder / "data.json"),
        was_cached=not built,
    )


def _inputs(config: Config) -> list[tuple[str, str]]:
    paths = [("data.path", config.data.path)]
    if config.split.method == "files":
        paths += [("split.val_path", config.split.val_path or ""), ("split.test_path", config.split.test_path or "")]
    return paths


def _cache_key(config: Config, content: str) -> str:
    settings = {
        "data": config.data.model_dump(mode="json", exclude={"path", "cache_dir"}),
        "split": config.split.model_dump(mode="json", exclude={"val_path", "test_path"}),
        "preprocess": config.preprocess.model_dump(mode="json"),
        "versions": [sklearn.__version__, np.__version__, pd.__version__, pa.__version__],
        "code": hashlib.blake2b(b"".join(_source(name) for name in CODE), digest_size=12).hexdigest(),
    }
    text = json.dumps([content, settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _source(module: str) -> bytes:
    return Path(__file__).with_name(f"{module}.py").read_bytes()


def _build(config: Config, folder: Path, *, content: str, key: str) -> None:
    datasets.disable_progress_bars()
    tables = [_read_input(config, key_name, path) for key_name, path in _inputs(config)]
    table = tables[0] if len(tables) == 1 else _join(tables, config)
    schema = _infer(config, table, parts=tables)
    frame = typed_frame(table, schema, config.data)
    splits = _split(config, table, frame, schema, sizes=[len(part) for part in tables])
    preprocessor = fit_preprocessor(frame.iloc[splits.train], schema, config.preprocess)

    def encode(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        encoded = preprocessor.transform(typed_frame(rows, schema, config.data))
        assert encoded.y is not None
        return encoded.x_num, encoded.x_cat, encoded.y

    pack_rows(table, encode, folder, fingerprint=key)
    encoded = preprocessor.transform(frame)
    write_json(folder / "schema.json", schema.to_json())
    write_json(folder / "data.json", describe(frame, encoded, splits, schema, preprocessor) | {"fingerprint": content})
    save_splits(splits, folder / "splits.npz")
    for name, data in preprocessor.to_bytes().items():
        write_file(folder / name, data)
    ids = table.with_format("arrow").select_columns(list(schema.id_columns))[:] if schema.id_columns else pa.table({})
    truth = ids.to_pandas().rename(columns=_id_names(schema))
    truth.insert(0, "row", np.arange(len(frame)))
    truth["target"] = frame[schema.target.name].to_numpy()
    write_file(folder / ROWS_TABLE, truth.to_parquet(None, index=False))


def _infer(config: Config, table: datasets.Dataset, *, parts: list[datasets.Dataset]) -> TableSchema:
    split_column = config.split.column if config.split.method != "random" else None
    is_feature = config.split.method == "time"

    def infer(rows: datasets.Dataset, data: DataConfig) -> TableSchema:
        return infer_schema(rows, data, split_column=split_column, split_column_is_feature=is_feature)

    try:
        return infer(table, config.data)
    except DataError as error:
        # of several tables, the one that raises the same complaint alone can name its own file and line
        for part, (_, path) in zip(parts, _inputs(config), strict=True) if len(parts) > 1 else ():
            try:
                infer(part, config.data.model_copy(update={"path": path}))
            except DataError as other:
                if other.what.partition(" in ")[0] == error.what.partition(" in ")[0]:
                    raise other from None
        raise


def _id_names(schema: TableSchema) -> dict[str, str]:
    """Id columns under other names where predictions.parquet has a column of that name itself: `row` -> `id_row`."""
    taken = {"row", "target", "prediction", *(f"p_{name}" for name in schema.target.classes)}
    names = {}
    for column in schema.id_columns:
        name = column
        while name in taken:
            name = f"id_{name}"
        taken.add(name)
        names[column] = name
    return names


def _read_input(config: Config, key: str, path: str) -> datasets.Dataset:
    table = read_table(config.data, path)
    if not len(table):
        raise DataError("the table holds no rows", where=path, fix=f"{key}=FILE")
    return table


def _join(tables: list[datasets.Dataset], config: Config) -> datasets.Dataset:
    names = tables[0].column_names
    for table, (key, path) in zip(tables[1:], _inputs(config)[1:], strict=True):
        missing = [name for name in names if name not in table.column_names]
        if missing:
            raise DataError(f"column '{missing[0]}' of the train table is missing", where=path, fix=f"{key}=FILE")
    try:
        return datasets.concatenate_datasets([table.select_columns(names) for table in tables])
    except ValueError as error:
        raise DataError(f"the tables hold columns of different types: {error}", where=config.data.path) from None


def _split(
    config: Config, table: datasets.Dataset, frame: pd.DataFrame, schema: TableSchema, *, sizes: list[int]
) -> Splits:
    target = frame[schema.target.name]
    present = np.flatnonzero(target.notna().to_numpy())
    edges = np.cumsum([0, *sizes])
    values = target.to_numpy()[present]
    column = None
    if config.split.column is not None and config.split.method != "random":
        column = _split_values(table, config.split.column, method=config.split.method).iloc[present]
    splits = make_splits(
        config.split,
        target=values.astype(np.float64) if schema.target.task == "regression" else values.astype(str),
        task=schema.target.task,
        column=column,
        sizes=tuple(int(n) for n in np.diff(np.searchsorted(present, edges)))
        if config.split.method == "files"
        else None,
        where=config.data.path,
    )
    return Splits(**{split: present[getattr(splits, split)] for split in SPLITS})


def _split_values(table: datasets.Dataset, name: str, *, method: str) -> pd.Series:
    values = table.with_format("arrow").select_columns([name])[:].column(name).to_pandas()
    if method == "time" and values.dtype == object:
        numbers = pd.to_numeric(values, errors="coerce")
        values = numbers if numbers.notna().all() else pd.to_datetime(values, errors="coerce", format="mixed")
    return values


def describe(
    frame: pd.DataFrame, encoded: Encoded, splits: Splits, schema: TableSchema, preprocessor: Preprocessor
) -> dict[str, Any]:
    """What the report says of the data: class counts, drift between the splits, warnings."""
    target = frame[schema.target.name]
    parts = {split: target.iloc[getattr(splits, split)] for split in SPLITS}
    warnings = [
        f"column '{c.name}' was dropped: {c.dropped}"
        for c in schema.columns
        if c.dropped and not c.dropped.startswith(("data.", "split"))
    ]
    warnings += [f"column '{name}' was dropped: {reason}" for name, reason in preprocessor.dropped.items()]
    classes, stats = None, None
    if schema.target.task == "regression":
        stats = {split: {"mean": float(part.mean()), "std": float(part.std(ddof=0))} for split, part in parts.items()}
    else:
        counts = {split: part.value_counts() for split, part in parts.items()}
        classes = {split: {c: int(counts[split].get(c, 0)) for c in schema.target.classes} for split in SPLITS}
    return {
        "rows": {split: len(part) for split, part in parts.items()},
        "class_counts": classes,
        "target_stats": stats,
        "drift": _drift(encoded, splits, preprocessor),
        "warnings": warnings,
    }


def _drift(encoded: Encoded, splits: Splits, preprocessor: Preprocessor) -> dict[str, dict[str, float]]:
    """Per column: shift of the scaled mean in train deviations, or the share of rows that moved level."""
    drift: dict[str, dict[str, float]] = {}
    for split in ("val", "test"):
        rows = getattr(splits, split)
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
