"""explain.json and its part of the page, of a real run on real customers."""

import csv
import html
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.explanation import MOST_PARTS, NUM_ATTRIBUTED, NUM_WORST_ROWS, value_text
from tests.conftest import PAGE, ROOT, SMALL


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the telco table, cut short."""
    folder = tmp_path_factory.mktemp("telco")
    words = [*SMALL, *PAGE, "report.importance=true", f"run.dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}"]
    words += [f"data.path={ROOT / 'data' / 'telco.csv'}", "data.target=churn", "data.max_rows=3000"]
    engine = Engine(load_config(None, [*words, "train.max_steps=120", "split.val=0.2", "report.attributions=required"]))
    engine.run()
    return folder / "run"


@pytest.fixture(scope="module")
def explanation(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "explain.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def table() -> list[dict[str, str]]:
    with (ROOT / "data" / "telco.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cells(run_dir: Path, table_id: str) -> list[list[str]]:
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    body = page.partition(f'id="{table_id}"')[2].partition("</table>")[0].partition("<tbody>")[2]
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in body.split("</tr>")]
    return [[html.unescape(cell) for cell in row] for row in rows if row]


def test_importance_is_measured_on_validation_rows_and_the_page_says_so(run_dir: Path) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["importance"]["num_rows"] == metrics["rows"]["val"] != metrics["rows"]["test"]
    page = (run_dir / "report.html").read_text(encoding="utf-8")
    assert f"Measured on {metrics['rows']['val']:,} validation rows, each column shuffled 5 times." in page
    assert "These rows also chose the weights" in page
    shown = cells(run_dir, "column-importance")
    assert [row[0] for row in shown] == list(metrics["importance"]["columns"])
    assert all(len(row) == 3 and any(sign.isdigit() for sign in row[2]) for row in shown)


def test_the_most_important_columns_are_followed(run_dir: Path, explanation: dict[str, Any]) -> None:
    metrics = json.loads((run_dir / "metrics.json").read_text(encoding="utf-8"))
    found = explanation["dependence"]
    assert [entry["column"] for entry in found["columns"]] == list(metrics["importance"]["columns"])[:6]
    assert found["outputs"] == ["yes"] or found["outputs"] == ["Yes"]
    by_column = {entry["column"]: entry for entry in found["columns"]}
    contract = dict(zip(by_column["contract"]["labels"], by_column["contract"]["mean"][0], strict=True))
    assert contract["Month-to-month"] > contract["Two year"]  # whoever can leave soon does
    for entry in found["columns"]:
        low, mean, high = (np.array(entry[name][0]) for name in ("low", "mean", "high"))
        assert np.all(low <= high) and np.all((0 <= mean) & (mean <= 1))


def test_the_worst_rows_show_what_the_table_holds(
    run_dir: Path, explanation: dict[str, Any], table: list[dict[str, str]]
) -> None:
    shown, worst = cells(run_dir, "worst"), explanation["worst"]
    assert len(shown) == NUM_WORST_ROWS
    assert [int(row[0]) for row in shown] == worst["rows"]
    predictions = pd.read_parquet(run_dir / "predictions.parquet").set_index("row")
    for row in shown:
        number = int(row[0])
        assert table[number]["churn"] == predictions.loc[number, "target"]
        for column, cell in zip(worst["columns"], row[-len(worst["columns"]) :], strict=True):
            raw = table[number][column]
            same = float(raw) == float(cell) if re.fullmatch(r"[\d.]+", raw) else raw.lower() == cell.lower()
            assert same, (number, column, raw, cell)


def test_the_worst_predictions_are_attributed(
    run_dir: Path, explanation: dict[str, Any], table: list[dict[str, str]]
) -> None:
    found = explanation["attributions"]
    assert [entry["row"] for entry in found["rows"]] == explanation["worst"]["rows"][:NUM_ATTRIBUTED]
    predictions = pd.read_parquet(run_dir / "predictions.parquet").set_index("row")
    for entry in found["rows"]:
        p = predictions.loc[entry["row"]].filter(regex="^p_[Yy]es$").iloc[0]
        assert entry["score"] == pytest.approx(np.log(p / (1 - p)), abs=1e-4)
        parts = [part["part"] for part in entry["parts"]]
        assert sum(parts) + entry["rest"] == pytest.approx(entry["score"] - entry["base"], abs=found["gap"] + 1e-5)
        assert parts == sorted(parts, key=abs, reverse=True) and len(parts) == MOST_PARTS
        for part in entry["parts"]:
            assert table[entry["row"]][part["column"]].lower().startswith(part["value"].lower()[:5])
    assert found["gap"] < 0.02
    shown = cells(run_dir, "attributions")
    assert [int(row[0]) for row in shown] == [entry["row"] for entry in found["rows"]]
    for row in shown:
        assert re.fullmatch(r"predicted '(yes|no)', true '(yes|no)'", row[1], re.IGNORECASE)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "missing"),
        (float("nan"), "missing"),
        (12.0, "12"),
        (118.75, "118.75"),
        (1e20, "1e+20"),
        (0.1 + 0.2, "0.30000000000000004"),
        (pd.Timestamp("2024-03-01"), "2024-03-01"),
        (pd.Timestamp("2024-03-01 13:30"), "2024-03-01 13:30:00"),
        (pd.NaT, "missing"),
        ("a" * 100, "a" * 57 + "..."),
        ("two\nlines", "two\\nlines"),
    ],
)
def test_a_value_is_shown_as_the_table_holds_it(value: Any, text: str) -> None:
    assert value_text(value) == text
