"""From the surveys of all units to what every row is encoded by, and to the files that the encoded rows go into."""

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from nn_train.building import describe, write_findings
from nn_train.errors import DataError, short
from nn_train.inference_target import infer_target
from nn_train.packed import RowsWriter
from nn_train.preprocessing import TrainFacts, fit_preprocessor
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.row_weights import refuse_all_zero
from nn_train.run_folder import read_json, write_json
from nn_train.schema import SPLITS, ColumnSpec, Split, TableSchema, TargetSpec
from nn_train.settings import Config
from nn_train.shard_plan import Plan
from nn_train.splits import Splits
from nn_train.survey import CHANCE_COLUMN, SPLIT_COLUMN, Survey
from nn_train.table import rows_named
from nn_train.values import column_word, typed_frame


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What the fit leaves to those who encode: `places` are by unit and split the rows in front of it."""

    schema: TableSchema
    preprocessor: Preprocessor
    rows: dict[str, int]
    places: list[list[int]]
    first_rows: list[int]

    @classmethod
    def load(cls, folder: Path) -> "Fitted":
        """Read what `fit_shards` wrote."""
        layout = read_json(folder / "layout.json")
        schema = TableSchema.from_json(read_json(folder / "schema.json"))
        return cls(schema=schema, preprocessor=Preprocessor.load(folder), **layout)


def rows_writer(folder: Path, split: Split, fitted: Preprocessor, config: Config, num_rows: int) -> RowsWriter:
    """The files of a split's packed rows."""
    num_targets = len(fitted.target.columns)
    shapes: dict[str, tuple[int, ...]] = {
        "x_num": (num_rows, len(fitted.numeric)),
        "x_cat": (num_rows, len(fitted.cardinalities)),
        "y": (num_rows, num_targets) if num_targets else (num_rows,),
    }
    dtypes = {"x_num": "<f4", "x_cat": "<i4", "y": "<f4" if fitted.target.task == "regression" else "<i8"}
    if config.data.weight is not None:
        shapes["weight"], dtypes["weight"] = (num_rows,), "<f4"
    return RowsWriter(folder, split, shapes, dtypes)


def fit_shards(config: Config, folder: Path, plan: Plan, *, content: str) -> None:
    """Fit on the sum of all surveys; then make the files that the encoded rows go into."""
    whole, places, rows_of_files, bad_parts = Survey(), [], {}, []
    for unit in plan.units:
        pulse.beat()
        survey = Survey.load(folder, f"survey-{unit.number:06d}")
        places.append(list(whole.rows))
        rows_of_files[unit.file_number] = rows_of_files.get(unit.file_number, 0) + (
            sum(unit.part_rows) if unit.part_rows is not None else survey.num_rows
        )
        bad_parts += survey.bad_parts.values()
        if survey.sample is not None:
            whole.add(survey)
            whole.thin_sample()
    if whole.sample is None:
        raise DataError("no row of the table can be read", where=config.data.path, fix="write the files again")
    schema = settle_schema(plan.schema, whole, config)
    _refuse_empty_splits(whole, schema, config)
    if config.data.weight is not None:
        refuse_all_zero(np.array([whole.train_weight]), config.data, rows="every train row")
    split = whole.sample.column(SPLIT_COLUMN).to_numpy()
    raw = whole.sample.drop_columns([SPLIT_COLUMN, CHANCE_COLUMN]).rename_columns(plan.columns)
    frame = typed_frame(raw, schema, config.data)
    splits = Splits(**{name: np.flatnonzero(split == place) for place, name in enumerate(SPLITS)})
    preprocessor = fit_preprocessor(
        frame.iloc[splits.train],
        schema,
        config.preprocess,
        has_tree_bins=config.has_tree_bins,
        where=config.data.path,
        facts=_train_facts(whole, schema),
        later=frame.iloc[splits.val] if config.split.method == "time" else None,
    )
    encoded = preprocessor.transform(frame)
    found = describe(frame, encoded, splits, schema, preprocessor=preprocessor, config=config)
    # what follows a damaged line of a long text file is left out for the same reason
    found["warnings"] += [
        f"left out: {what}" + (f" ({count} parts)" if count > 1 else "") for what, count in Counter(bad_parts).items()
    ]
    found |= _exact_facts(whole, schema) | {"fingerprint": content, "sampled_rows": len(frame)}
    found["bad_parts"] = bad_parts
    write_findings(folder, schema, preprocessor, found)
    files = np.cumsum([0, *(rows_of_files[number] for number in sorted(rows_of_files))]).tolist()
    layout = {"rows": dict(zip(SPLITS, whole.rows, strict=True)), "places": places, "first_rows": files}
    write_json(folder / "layout.json", layout)
    for name in SPLITS:
        rows_writer(folder, name, preprocessor, config, whole.rows[SPLITS.index(name)]).make()


def settle_schema(look: TableSchema, whole: Survey, config: Config) -> TableSchema:
    """What the first look took columns for, with the counts of all rows; or an error that it could not know of."""
    columns = [_settle_column(spec, whole, config) for spec in look.columns]
    if all(spec.dropped for spec in columns):
        raise DataError("no feature is left", where=config.data.path, fix="drop less, or data.columns.NAME=keep")
    return TableSchema(
        columns=tuple(columns),
        target=_settle_target(look.target, whole, config),
        num_rows=whole.num_rows - whole.num_without_target,
        num_rows_without_target=whole.num_without_target,
    )


def _settle_column(spec: ColumnSpec, whole: Survey, config: Config) -> ColumnSpec:
    if spec.name not in whole.columns:
        return spec
    facts, data = whole.columns[spec.name], config.data
    is_chosen = data.columns.get(spec.name) == spec.kind
    if facts.first_unread is not None and not is_chosen:
        place, value = facts.first_unread
        more = f", and such in {facts.num_unread - 1:,} more rows" if facts.num_unread > 1 else ""
        kind = "numbers" if spec.kind == "numeric" else "dates"
        raise DataError(
            f"column '{short(spec.name)}' holds {kind}, and '{short(value)}' in {place}{more}",
            where=data.path,
            fix=f"correct it, or list it in data.missing_values, or {column_word(spec.name, spec.kind)} (it is then "
            "missing) or categorical",
        )
    if facts.num_infinite and data.infinite == "error" and spec.kind == "numeric":
        raise DataError(
            f"column '{short(spec.name)}' holds an infinite number in {facts.num_infinite:,} rows",
            where=data.path,
            fix="correct it, or data.infinite=missing",
        )
    spec = dataclasses.replace(spec, num_missing=facts.num_missing, num_distinct=facts.num_distinct)
    if spec.dropped == "constant" and facts.num_distinct > 1:
        return dataclasses.replace(spec, dropped="")
    return spec


def _settle_target(look: TargetSpec, whole: Survey, config: Config) -> TargetSpec:
    """The classes of all rows: the first look may have missed rare ones."""
    if look.task == "regression":
        for name, moments in whole.moments.items():
            if not sum(deviations for _, _, deviations in moments) and len({mean for n, mean, _ in moments if n}) == 1:
                raise DataError(
                    f"the target '{short(name)}' is the same in every row; there is nothing to learn",
                    where=config.data.path,
                    fix="another data.target",
                )
        return look
    names = [name for name, counts in whole.classes.items() for _ in range(min(sum(counts), 1000))]
    with rows_named(lambda row: "the table"):
        return infer_target(pa.chunked_array([names]), config.data)[0]


def _refuse_empty_splits(whole: Survey, schema: TableSchema, config: Config) -> None:
    filled = SPLITS if config.split.test or config.split.method == "files" else ("train", "val")
    for place, name in enumerate(SPLITS):
        if name in filled and not whole.rows[place]:
            raise DataError(
                f"split.method={config.split.method} leaves no rows for {name}",
                where=config.data.path,
                fix="change split.val, split.test or split.method, or give more rows",
            )
    for name in schema.target.classes:
        counts = whole.classes[name]
        if not counts[0]:
            raise DataError(
                f"class '{short(name)}' has {sum(counts)} rows, and none of them is a train row",
                where=config.data.path,
                fix="another split.seed or split.method, or drop that class",
            )


def _train_facts(whole: Survey, schema: TableSchema) -> TrainFacts:
    means = []
    for name in schema.target.names if schema.target.task == "regression" else ():
        number, mean, deviations = whole.moments[name][0]
        means.append((mean, (deviations / number) ** 0.5 or 1.0))
    target: tuple[Any, Any] = means[0] if len(means) == 1 else (0.0, 1.0)
    if schema.target.columns:
        target = tuple(mean for mean, _ in means), tuple(deviation for _, deviation in means)
    return TrainFacts(
        num_rows=whole.rows[0],
        levels={name: facts.train_levels for name, facts in whole.columns.items()},
        has_missing=frozenset(name for name, facts in whole.columns.items() if facts.num_missing_train),
        target=target,
    )


def _exact_facts(whole: Survey, schema: TableSchema) -> dict[str, Any]:
    """What the sample says roughly and the survey exactly."""
    found: dict[str, Any] = {"rows": dict(zip(SPLITS, whole.rows, strict=True))}
    if schema.target.task == "regression":
        stats = {
            name: {
                split: {"mean": mean, "std": (deviations / number) ** 0.5} if number else None
                for split, (number, mean, deviations) in zip(SPLITS, moments, strict=True)
            }
            for name, moments in whole.moments.items()
        }
        return found | {"target_stats": stats if schema.target.columns else stats[schema.target.name]}
    counts = {
        split: {name: whole.classes[name][place] for name in schema.target.classes}
        for place, split in enumerate(SPLITS)
    }
    return found | {"class_counts": counts}
