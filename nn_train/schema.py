"""The nouns that every stage shares: the task, the columns of a table, the metric names."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

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
class Levels:
    """A column of levels in short: `names`, each once, and for each row its place among them (B,), -1 for none."""

    names: tuple[str, ...]
    places: "np.ndarray"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TargetSpec:
    """The column to predict, or the columns of a regression of several targets at once.

    `classes` are the target's values as text in the order of the model's outputs; empty for
    regression. For a binary task `classes[1]` is the positive class. `quantiles` are the levels that a
    regression predicts in place of one value, increasing. `columns` are several targets, and `name` is
    then all of their names for people; empty for one, whose column `name` is.
    """

    name: str
    task: Task
    classes: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def num_outputs(self) -> int:
        """Width of the model's output: one logit for binary; a value, every quantile or every target for regression."""
        return len(self.classes) if self.task == "multiclass" else max(len(self.quantiles), len(self.columns), 1)

    @property
    def names(self) -> tuple[str, ...]:
        """The target's column, or those of several."""
        return self.columns or (self.name,)

    @property
    def truth_names(self) -> tuple[str, ...]:
        """Columns of the true values beside predictions: `target`, or of several target_NAME."""
        return tuple(f"target_{name}" for name in self.columns) or ("target",)

    @property
    def prediction_names(self) -> tuple[str, ...]:
        """Columns of the predictions: `prediction`, or of several targets prediction_NAME."""
        return tuple(f"prediction_{name}" for name in self.columns) or ("prediction",)

    def take(self, columns: "Mapping[str, Any] | pd.DataFrame") -> "np.ndarray":
        """The target's values (R,), or those of several (R, T), from columns or a frame."""
        import numpy as np  # where there are values: the launcher reads settings without it

        values = [np.asarray(columns[name]) for name in self.names]
        return np.stack(values, axis=1) if self.columns else values[0]

    @property
    def middle(self) -> int:
        """Place of the output that is the prediction: of quantiles the one nearest to the median, else the first."""
        return min(range(len(self.quantiles)), key=lambda place: abs(self.quantiles[place] - 0.5), default=0)

    @property
    def quantile_names(self) -> tuple[str, ...]:
        """Columns of the quantiles beside the prediction: q_0.1, ..."""
        return tuple(f"q_{level:g}" for level in self.quantiles)

    def take_truth(self, predictions: "Mapping[str, Any] | pd.DataFrame") -> "np.ndarray":
        """The true values (R,) or (R, T) from a table of predictions."""
        return self.take(dict(zip(self.names, (predictions[name] for name in self.truth_names), strict=True)))

    def take_prediction(self, predictions: "Mapping[str, Any] | pd.DataFrame") -> "np.ndarray":
        """The predictions (R,) or (R, T) from a table of them."""
        return self.take(dict(zip(self.names, (predictions[name] for name in self.prediction_names), strict=True)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "TargetSpec":
        """Rebuild what `dataclasses.asdict` and JSON made of it."""
        lists: dict[str, Any] = {name: tuple(values.get(name, ())) for name in ("classes", "quantiles", "columns")}
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
        target = self.target
        taken = {"row", *target.truth_names, *target.prediction_names, *target.quantile_names}
        taken |= {f"p_{name}" for name in target.classes}
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
