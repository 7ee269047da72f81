"""Rows in JSON and their answers: a run's schema as pydantic types, which OpenAPI shows and which name each mistake.

A row that passes holds a finite number, text or None in each column, so that rows of several requests lie in one
column without a change to how any of them is read.
"""

import json
import math
from typing import Annotated, Any

import numpy as np
from pydantic import (
    AllowInfNan,
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    PlainValidator,
    Strict,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from nn_train.bundle import Bundle
from nn_train.errors import short
from nn_train.incoming import KINDS, Counts
from nn_train.schema import ColumnSpec
from nn_train.values import PLAIN_NUMBER, level_name, parse_number

MOST_LEVELS = 20  # of a column, that its description lists
MOST_NAMED = 20  # columns, that an answer lists as ignored
MEANT = {
    "number": "a JSON number",
    "amount": "a JSON number, or text such as {example}",
    "text": "text",
    "level": "text or a number",
    "flag": "text, true or false",
    "date": "a date as text, such as {example}",
    "day": "a date as text or digits, such as {example}",
}


class Problem(BaseModel):
    """Why a request was not answered."""

    detail: str


class CellProblem(BaseModel):
    """One mistake in a request."""

    loc: list[str | int]
    """Where it is: `body`, `rows`, the row's number from 0, the column."""
    msg: str
    type: str


class CellProblems(BaseModel):
    """The mistakes in the first row that has some."""

    detail: list[CellProblem]


class RowsProblem(Exception):
    """Rows that do not fit the run's schema, or no JSON."""

    def __init__(self, problems: list[dict[str, Any]]):
        super().__init__(problems[0]["msg"])
        self.problems = problems


class RowReader:
    """Reads the body of a request by a run's schema.

    `model` is the request's type. Columns are its fields by alias, since a column's name need be no identifier.
    """

    def __init__(self, bundle: Bundle, *, max_rows: int):
        levels = {category.column: category.levels for category in bundle.preprocessor.categorical}
        specs = {column.name: column for column in bundle.schema.features}
        self.names = bundle.features
        self.max_rows = max_rows
        columns = [_Column(specs[name], levels.get(name, ())) for name in self.names]
        self.example: dict[str, Any] = {column.spec.name: column.example for column in columns}
        self._meant = {
            column.spec.name: MEANT[column.form].format(example=short(column.spec.example)) for column in columns
        }
        self._keys = [f"column_{index}" for index in range(len(columns))]
        fields: Any = {key: column.field() for key, column in zip(self._keys, columns, strict=True)}
        row: Any = create_model(
            "Row",
            __config__=ConfigDict(extra="allow", protected_namespaces=()),
            __doc__="One row of the table: every column that the network needs, null where there is no value. "
            "Other columns are ignored, and named in the answer.",
            **fields,
        )
        many: Any = Annotated[list[row], FailFast()]
        rows = Field(
            max_length=max_rows, description="Rows to predict, in the order of the answer; none is no mistake."
        )
        self.model: type[BaseModel] = create_model(
            "Rows",
            __config__=ConfigDict(extra="forbid"),
            rows=(many, rows),
        )

    def json_schema(self, ref_template: str) -> dict[str, Any]:
        """The type of the body, with an example and the row's type in `$defs`."""
        schema = self.model.model_json_schema(ref_template=ref_template)
        # not by pydantic: it would follow a column that is called "$ref"
        return schema | {"example": {"rows": [self.example]}}

    def read(self, body: bytes) -> tuple[list[tuple[Any, ...]], list[str]]:
        """The rows, each with its values in the order of `names`, and the names of other columns.

        Raises:
            RowsProblem: the mistakes in the first row that has some, or in the request itself.
        """
        try:
            rows: list[Any] = self.model.model_validate_json(body).rows  # pyright: ignore[reportAttributeAccessIssue]
        except ValidationError as error:
            found = error.errors(include_url=False, include_context=True)
            raise RowsProblem([self._problem(item) for item in found[:MOST_NAMED]]) from None
        others = dict.fromkeys(name for row in rows for name in row.__pydantic_extra__)
        return [tuple(row.__dict__[key] for key in self._keys) for row in rows], list(others)

    def _problem(self, item: Any) -> dict[str, Any]:
        """One mistake as FastAPI shows them, with a message that names row and column."""
        place, kind, value = list(item["loc"]), item["type"], item["input"]
        match place:
            case ["rows", int(row), str(name)]:
                where = f"row {row} (from 0), column '{short(name)}'"
                what = "missing; give null where there is no value"
                if kind != "missing":
                    what = f"{_shown(value)} where {self._meant[name]} is meant, or null where there is no value"
                message = f"{where}: {what}"
            case ["rows", int(row)]:
                message = f"row {row} (from 0): {_shown(value)} where an object is meant: column -> value"
            case ["rows"] if kind == "too_long":
                message = f"rows: more than {self.max_rows}; send them in several requests"
            case ["rows"]:
                message = 'no list of rows; the body is {"rows": [{column: value, ...}, ...]}'
            case [str(name)]:
                message = f"'{short(name)}' is not known here; the body holds 'rows' alone"
            case _:
                reason = item.get("ctx", {}).get("error", _shown(value))
                message = f'no JSON object {{"rows": [...]}}: {short(str(reason), most=120)}'
        place = [short(part) if isinstance(part, str) else part for part in place]
        return {"loc": ["body", *place], "msg": message, "type": kind}


class _Column:
    """A column's form in JSON: the pydantic type, what a message calls it, and an example."""

    def __init__(self, spec: ColumnSpec, levels: tuple[str, ...]):
        self.spec = spec
        self.levels = levels
        self.example: Any = spec.example
        numbers, flags = any(_is_number(level) for level in levels), bool({"true", "false"} & set(levels))
        if spec.kind == "numeric":
            # a table that writes $12 or 12:30 may do so here; elsewhere text among numbers is a mistake
            self.form = "number" if _is_number(spec.example) else "amount"
        elif spec.kind == "date":
            self.form = "day" if spec.example.isdigit() else "date"
        else:
            self.form = "flag" if flags else "level" if numbers else "text"
        if self.form == "number":
            number = float(spec.example)
            self.example = int(number) if number.is_integer() else number
        elif self.form == "level" and spec.example.isdecimal() and str(int(spec.example)) == spec.example:
            self.example = int(spec.example)  # 7, and not the code "007"

    def field(self) -> tuple[Any, Any]:
        """Type and description, as `create_model` takes them."""
        number: Any = Annotated[float, Strict(), AllowInfNan(False)]
        text: Any = Annotated[str, Strict()]
        types: dict[str, Any] = {
            "number": number | None,
            "text": text | None,
            "date": text | None,
            "amount": Annotated[Any, PlainValidator(_amount), _one_of("number", "string")],
            "day": Annotated[Any, PlainValidator(_day), _one_of("string", "integer")],
            "level": Annotated[Any, PlainValidator(_name), _one_of("string", "number")],
            "flag": Annotated[Any, PlainValidator(_flag), _one_of("string", "boolean")],
        }
        field = Field(alias=self.spec.name, description=self._description(), examples=[self.example])
        return types[self.form], field

    def _description(self) -> str:
        if not self.levels:
            return {"numeric": "A finite number.", "date": "A date."}.get(self.spec.kind, "A category.")
        shown = ", ".join(json.dumps(level, ensure_ascii=False) for level in self.levels[:MOST_LEVELS])
        more = f" and {len(self.levels) - MOST_LEVELS} more" if len(self.levels) > MOST_LEVELS else ""
        return f"Known values: {shown}{more}; any other counts as unseen."


def _one_of(*kinds: str) -> WithJsonSchema:
    return WithJsonSchema({"anyOf": [{"type": kind} for kind in (*kinds, "null")]})


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_number(text: str) -> bool:
    return PLAIN_NUMBER.fullmatch(text) is not None and _is_finite(float(text))


def _amount(value: Any) -> float | None:
    if isinstance(value, str):
        value = parse_number(value.strip())
    if value is None or (isinstance(value, int | float) and not isinstance(value, bool) and _is_finite(value)):
        return None if value is None else float(value)
    raise ValueError


def _name(value: Any) -> str | None:
    """A category as training names it: 1 and 1.0 are "1"."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError
    return str(value) if isinstance(value, int) else level_name(value)


def _day(value: Any) -> str | None:
    if isinstance(value, float) and not value.is_integer():
        raise ValueError
    return _name(value)


def _flag(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, bool):
        raise ValueError
    return str(value).lower()


def _shown(value: Any) -> str:
    """A value of a request in a message to its sender."""
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return short(json.dumps(value, ensure_ascii=False, default=repr), most=40)


class Warnings(BaseModel):
    """What was met in the rows of this request, and is no mistake."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    missing: dict[str, int]
    """Column -> rows without a value."""
    unreadable: dict[str, int]
    """Column -> rows whose value could not be read and counts as missing."""
    unseen: dict[str, int]
    """Column -> rows with a value that the training did not show, or too rarely."""
    ignored_columns: list[str]
    """Columns that the network does not use; the first 20."""


def answer_model(bundle: Bundle) -> type[BaseModel]:
    """The answer's type, for OpenAPI."""
    if bundle.task == "regression":
        is_several = bool(bundle.preprocessor.target.columns)
        unit = Field(description=f"Value of '{short(bundle.schema.target.name)}' in the table's unit.")
        fields: dict[str, Any] = {"prediction": (dict[str, float] if is_several else float, unit)}
        if bundle.preprocessor.target.quantiles:
            levels = Field(description="q_LEVEL -> quantile in the table's unit.")
            fields["quantiles"] = (dict[str, float], levels)
        prediction = create_model("Prediction", **fields)
    else:
        name: Any = Annotated[str, WithJsonSchema({"type": "string", "enum": list(bundle.classes)})]
        probabilities = Field(description="Class -> probability; they sum to 1.")
        prediction = create_model(
            "Prediction",
            prediction=(name, Field(description=f"Class of '{short(bundle.schema.target.name)}'.")),
            probabilities=(dict[str, float], probabilities),
        )
    many: Any = list[prediction]
    return create_model(
        "Answer",
        predictions=(many, Field(description="One for each row, in their order.")),
        warnings=(Warnings, ...),
    )


def write_answer(bundle: Bundle, scores: np.ndarray, counts: Counts, others: list[str]) -> bytes:
    """The answer to a request: `scores` (B, C) probabilities of all classes, (B,) values, or (B, Q) quantiles.

    Several targets are scores (B, T), and a prediction by name.
    """
    target = bundle.preprocessor.target
    if target.columns:
        predictions: list[Any] = [
            {"prediction": dict(zip(target.columns, row, strict=True))} for row in scores.tolist()
        ]
    elif target.quantiles:
        predictions = [
            {"prediction": row[target.middle], "quantiles": dict(zip(target.quantile_names, row, strict=True))}
            for row in scores.tolist()
        ]
    elif bundle.task == "regression":
        predictions = [{"prediction": value} for value in scores.tolist()]
    else:
        chosen = bundle.decision.choose(scores, bundle.preprocessor).tolist()
        predictions = [
            {"prediction": bundle.classes[place], "probabilities": dict(zip(bundle.classes, row, strict=True))}
            for place, row in zip(chosen, scores.tolist(), strict=True)
        ]
    warnings = {kind: getattr(counts, kind) for kind in KINDS}
    warnings["ignored_columns"] = [short(name) for name in others[:MOST_NAMED]]
    return json.dumps({"predictions": predictions, "warnings": warnings}, allow_nan=False).encode()
