"""The nouns that every stage shares: the task, the columns of a table, the metric names."""

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal, get_args

Task = Literal["binary", "multiclass", "regression"]
Kind = Literal["numeric", "categorical", "boolean", "date"]
Split = Literal["train", "val", "test"]

TASKS: tuple[Task, ...] = get_args(Task)
KINDS: tuple[Kind, ...] = get_args(Kind)
SPLITS: tuple[Split, ...] = get_args(Split)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ColumnSpec:
    """One column of the table: what it holds and why it is, or is not, a feature.

    `dropped` is empty for a feature; otherwise it is the reason why the column is left out. Dates
    written as 03/04/2024 are read with the day before the month where `day_first` is set.
    """

    name: str
    kind: Kind
    num_missing: int
    num_distinct: int
    example: str = ""
    is_id: bool = False
    dropped: str = ""
    day_first: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The column to predict.

    `classes` are the target's values as text in the order of the model's outputs; empty for
    regression. For a binary task `classes[1]` is the positive class. `quantiles` are the levels that a
    regression predicts in place of one value, increasing.
    """

    name: str
    task: Task
    classes: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: one logit for binary, one value or every quantile for regression."""
        return len(self.classes) if self.task == "multiclass" else max(len(self.quantiles), 1)

    @property
    def middle(self) -> int:
        """Place of the output that is the prediction: of quantiles the one nearest to the median, else the first."""
        return min(range(len(self.quantiles)), key=lambda place: abs(self.quantiles[place] - 0.5), default=0)

    @property
    def quantile_names(self) -> tuple[str, ...]:
        """Columns of the quantiles beside the prediction: q_0.1, ..."""
        return tuple(f"q_{level:g}" for level in self.quantiles)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TargetSpec":
        """Rebuild what `dataclasses.asdict` and JSON made of it."""
        lists: dict[str, Any] = {name: tuple(values.get(name, ())) for name in ("classes", "quantiles")}
        return cls(**(values | lists))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSchema:
    """What was inferred of a table, or set by the user, before anything is fitted."""

    columns: tuple[ColumnSpec, ...]
    target: TargetSpec
    num_rows: int
    num_rows_without_target: int = 0

    @property
    def features(self) -> tuple[ColumnSpec, ...]:
        """The columns that the network sees, in the order of the table."""
        return tuple(column for column in self.columns if not column.dropped)

    @property
    def id_columns(self) -> tuple[str, ...]:
        """Columns that identify a row: not features, kept beside the predictions."""
        return tuple(column.name for column in self.columns if column.is_id)

    def id_names(self, kept: Iterable[str] = ()) -> dict[str, str]:
        """Ids and columns that are `kept` -> their names beside predictions: `row` is taken, and becomes `id_row`."""
        taken = {"row", "target", "prediction", *(f"p_{name}" for name in self.target.classes)}
        taken |= set(self.target.quantile_names)
        names = {}
        for column in dict.fromkeys((*self.id_columns, *kept)):
            name = column
            while name in taken:
                name = f"id_{name}"
            taken.add(name)
            names[column] = name
        return names

    def to_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TableSchema":
        """Rebuild what `to_json` wrote."""
        return cls(
            columns=tuple(ColumnSpec(**column) for column in values["columns"]),
            target=TargetSpec.from_json(values["target"]),
            num_rows=values["num_rows"],
            num_rows_without_target=values["num_rows_without_target"],
        )
