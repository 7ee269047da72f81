"""The rows that the network is most wrong about, and what moved its predictions of them."""

from typing import Any

import numpy as np
import pandas as pd

from nn_train.metrics import NUM_WORST_ROWS, worst_first
from nn_train.plots_explain import AttributionView, RowView
from nn_train.report_run import Run
from nn_train.report_table import Table, number

MOST_TARGETS = 4  # of several, those whose values are shown
NUM_NAMED = 3  # columns of one row that the table of attributions names


def build_worst_rows(run: Run) -> pd.DataFrame | None:
    """The test rows with the least probable true class, or the largest residual, the worst first."""
    test, target = run.test, run.schema.target
    if not len(test):
        return None
    shown = ["target", "prediction"]
    if target.task == "regression":
        truth, scores = target.take_truth(test).astype(float), target.take_prediction(test).astype(float)
        extra = {} if target.columns else {"residual": pd.Series(truth - scores)}
        pairs = zip(target.truth_names[:MOST_TARGETS], target.prediction_names, strict=False)
        shown = [name for pair in pairs for name in pair]
    else:
        scores = test[[f"p_{name}" for name in target.classes]].to_numpy(float)
        places = pd.Index(target.classes)
        truth, said = (places.get_indexer(pd.Index(test[name].astype(str))) for name in ("target", "prediction"))
        if min(truth.min(), said.min()) < 0:
            raise ValueError("predictions.parquet holds a class that schema.json does not know")
        at = np.arange(len(test))
        extra = {
            "p of the true class": pd.Series(scores[at, truth]),
            "p of the prediction": pd.Series(scores[at, said]),
        }
    worst = worst_first(truth, scores)[:NUM_WORST_ROWS]
    ids = [name for name in run.schema.id_names().values() if name in test]
    columns = {name: test[name] for name in ("row", *ids, *shown)} | extra
    return pd.DataFrame({name: values.iloc[worst] for name, values in columns.items()})


def build_worst_table(run: Run) -> Table | None:
    """The worst rows for a person, with what the table holds in their most important columns."""
    worst = build_worst_rows(run)
    if worst is None:
        return None
    raw = run.explanation.get("worst") or {"columns": [], "rows": [], "values": []}
    raw_values = dict(zip(raw["rows"], raw["values"], strict=True))
    unknown = ["–"] * len(raw["columns"])
    rows = [
        [*(_cell(worst[name].iloc[at]) for name in worst), *raw_values.get(int(worst["row"].iloc[at]), unknown)]
        for at in range(len(worst))
    ]
    note = "Row: place in the input table, from 0."
    if raw["columns"]:
        note += f" The last {len(raw['columns'])} columns: what the table holds in the most important columns."
    named = [f"target: {run.schema.target.name}" if name == "target" else str(name) for name in worst]
    return Table(
        caption=f"The {len(rows)} test rows that the network is most wrong about",
        head=[*named, *raw["columns"]],
        rows=rows,
        num_text=0,
        note=note,
    )


def _cell(value: Any) -> str:
    return f"{int(value)}" if isinstance(value, int | np.integer) else number(value)


def build_attributions(run: Run) -> AttributionView:
    """The most wrong rows with what each column added; no rows where nothing was attributed."""
    found, target = run.explanation.get("attributions") or {"rows": []}, run.schema.target
    wanted = {entry["row"]: entry for entry in found["rows"]}
    shown = run.test[run.test["row"].isin(list(wanted))] if wanted and len(run.test) else run.test.head(0)
    places = {int(row): place for place, row in enumerate(shown["row"])} if len(shown) else {}
    rows = []
    for entry in found["rows"]:
        if entry["row"] not in places:
            continue
        test = shown.iloc[places[entry["row"]]]
        truth, said = (_cell(test[name]) for name in (target.truth_names[0], target.prediction_names[0]))
        rows.append(
            RowView(
                row=entry["row"],
                verdict=f"predicted {_quoted(said, target.task)}, true {_quoted(truth, target.task)}",
                score=entry["score"],
                base=entry["base"],
                parts=[(part["column"], part["value"], part["part"]) for part in entry["parts"]],
                num_rest=entry["num_rest"],
                rest=entry["rest"],
            )
        )
    score = {
        "binary": f"the log-odds of '{target.classes[-1]}'" if target.classes else "",
        "multiclass": "the log-odds of the predicted class",
        "regression": f"the predicted {target.names[0]}",
    }[target.task]
    return AttributionView(rows=rows, score=score, is_class=target.task != "regression")


def _quoted(text: str, task: str) -> str:
    return text if task == "regression" else f"'{text}'"


def build_attribution_table(run: Run) -> Table | None:
    """A line for each attributed row: from the base row's score to its own, and the largest parts of the way."""
    view = build_attributions(run)
    if not view.rows:
        return None
    rows = []
    for row in view.rows:
        named = [f"{column} = {value}: {part:+.3g}" for column, value, part in row.parts[:NUM_NAMED]]
        named += ["–"] * (NUM_NAMED - len(named))
        rest = row.score - row.base - sum(part for _, _, part in row.parts[:NUM_NAMED])
        rows.append([str(row.row), row.verdict, *named, number(rest), number(row.base), number(row.score)])
    return Table(
        caption=f"What was added to {view.score}, from the base row on",
        head=["row", "", *(f"part {place}" for place in range(1, NUM_NAMED + 1)), "all others", "base row", "this row"],
        rows=rows,
        num_text=2 + NUM_NAMED,
        note=_explain(run, run.explanation["attributions"]["gap"]),
    )


def _explain(run: Run, gap: float) -> str:
    """How to read the attributions."""
    decision = run.metrics.get("decision") or {}
    which = "most probable" if decision.get("costs") else "predicted"
    what = {
        "binary": "the log-odds ln(p / (1 - p)) of the positive class",
        "multiclass": f"the log-odds ln(p / (1 - p)) of the {which} class",
        "regression": "the prediction",
    }[run.schema.target.task]
    if decision.get("curves"):
        what += ", before isotonic calibration,"
    return (
        f"Integrated gradients (by captum) lead {what} from a base row to the row itself, and say what each column "
        "adds on the way. In the base row, numbers are what stands for a missing one, which is the train rows' "
        "average, and categories are unknown. The parts add up to the difference, here to within "
        f"{gap:.2g}. They say what moved the network, not what causes the target."
    )
