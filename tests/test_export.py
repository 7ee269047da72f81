"""An exported file answers as its bundle to any raw values, in the runtimes that will read it."""

import dataclasses
import io
import json
import logging
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pyarrow as pa
import pytest
import torch
from scipy.special import ndtri
from torch import Tensor, nn

from nn_train import Engine, load_bundle
from nn_train.bundle import Bundle
from nn_train.config import load_config
from nn_train.curves import fit_curves
from nn_train.decision import Decision
from nn_train.errors import UserError
from nn_train.export_check import (
    TOLERANCE,
    Columns,
    as_rows,
    check_answers,
    compare,
    made_columns,
    onnx_answer,
    read_test_rows,
    torch_answer,
)
from nn_train.export_graph import QuantileScaler, date_parts, normal_quantile
from nn_train.export_onnx import to_onnx
from nn_train.export_torch import level_codes, to_torch, trace
from nn_train.inference import infer_schema
from nn_train.models import build_model
from nn_train.network_choice import resolve_model
from nn_train.preprocessing import fit_preprocessor
from nn_train.preprocessor import DATE_PARTS, scale_numbers
from nn_train.values import FIRST_DATE, LAST_DATE, typed_frame
from tests.conftest import BARE, ROOT, SMALL, make_table

NAMES = {
    "size": "prediction",
    "age": "total charges [€]",
    "colour": "scorer/colour",
    "member": "1",
    "day": "probabilities",
}


@pytest.fixture(autouse=True)
def no_trace_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Torch makes a record of each symbol for whoever listens, as pytest does: half of the time of an export."""
    monkeypatch.setattr(logging.getLogger("torch.__trace"), "handlers", [])


def make_bundle(table: pd.DataFrame, *words: str) -> Bundle:
    """A preprocessor that was fitted on the table, and a network of random weights, none of them zero."""
    config = load_config(None, ["data.path=table.csv", "data.target=y", *SMALL[:5], *words])
    rows = pa.Table.from_pandas(table)
    schema = infer_schema(rows, config.data)
    fitted = fit_preprocessor(typed_frame(rows, schema, config.data), schema, config.preprocess)
    torch.manual_seed(0)
    config = config.model_copy(
        update={
            "model": resolve_model(
                config.model, num_rows=len(table), num_numbers=len(fitted.numeric), device_type="cpu"
            )
        }
    )
    network = build_model(
        config.model,
        bins=fitted.bins,
        cardinalities=fitted.cardinalities,
        num_outputs=fitted.target.num_outputs,
        task=fitted.target.task,
    )
    for weight in network.parameters():
        nn.init.normal_(weight, std=0.3)
    return Bundle(
        network=network.eval().requires_grad_(False),
        preprocessor=fitted,
        schema=schema,
        decision=Decision(temperature=1.3, threshold=0.4),
        info={"config": config.model_dump(mode="json"), "name": "made", "run_id": "r", "fingerprint": "f"},
    )


def first_rows(columns: Columns, count: int) -> Columns:
    return {name: values[:count] for name, values in columns.items()}


# every model with every task (the missing pair is the run on real data below), every scaler, both kinds of encoding
@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("binary", ("model.name=mlp", "preprocess.scaler=none", "model.one_hot_max=0", *BARE)),
        ("multiclass", ("model.name=mlp", "preprocess.scaler=standard", "model.one_hot_max=4")),
        ("multiclass", ("model.name=mlp", "preprocess.scaler=quantile", "preprocess.imputation=median", *BARE)),
        ("regression", ("model.name=mlp", "preprocess.scaler=robust")),
        ("regression", ("model.name=mlp", "preprocess.scaler=quantile", "preprocess.indicators=false", *BARE)),
        ("binary", ("model.name=mlp", "preprocess.scaler=robust-clip", *BARE)),
        ("multiclass", ("model.name=realmlp", "preprocess.scaler=robust-clip", "model.embedding=pbld")),
        ("binary", ("model.name=tabm", "preprocess.scaler=quantile", "model.num_members=3")),
        ("multiclass", ("model.name=tabm", "preprocess.scaler=standard", "model.num_members=3", *BARE)),
        ("regression", ("model.name=tabm-mini", "preprocess.scaler=standard", "model.num_members=3")),
        ("multiclass", ("model.name=resnet", "preprocess.scaler=standard", "model.embedding=linear")),
        ("binary", ("model.name=realmlp", "preprocess.scaler=standard", "model.embedding=pbld")),
        ("regression", ("model.name=realmlp", "preprocess.scaler=quantile", "model.embedding=periodic")),
        (
            "binary",
            (
                "model.name=ft-transformer",
                "preprocess.scaler=standard",
                "model.embedding=auto",
                "model.num_embedding=auto",
            ),
        ),
        (
            "binary",
            ("model.name=linear", "preprocess.scaler=standard", "model.width=auto", "model.embedding=periodic-lite"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(word.partition("=")[2] for word in value[:3]),
)
def test_both_files_answer_as_the_bundle(task: str, words: tuple[str, ...]) -> None:
    bundle = make_bundle(make_table(400, task=task), *words)
    program = trace(bundle)
    content = to_onnx(program, bundle)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)
    program_file = to_torch(program, bundle)
    saved = torch.export.load(io.BytesIO(program_file))
    made = made_columns(bundle, 1000)
    # far-out numbers lose their last digits in float32, and waves of them all of their meaning
    most_unsteady = (
        1.0 if "periodic" in " ".join(words) else 0.0 if words[1].endswith(("quantile", "robust-clip")) else 0.3
    )
    assert all((values == "").any() if values.dtype == object else True for values in made.values())
    for answer, tolerance in ((onnx_answer(content, bundle), TOLERANCE), (torch_answer(saved, bundle), 1e-6)):
        for count in (1000, 7, 1):
            rows = first_rows(made, count)
            gap, num_unsteady = compare(answer(rows), bundle, as_rows(bundle, rows))
            assert gap <= tolerance
            assert num_unsteady <= most_unsteady * count
    assert answer(first_rows(made, 0))[0].shape[0] == 0
    for file in (content, program_file):
        assert str(ROOT).encode() not in file  # nor any other path of this machine
        assert b".py" not in file


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_isotonic_curves_and_costs_are_in_the_graph(task: str) -> None:
    bundle = make_bundle(make_table(400, task=task), "model.name=mlp")
    rng = np.random.default_rng(0)
    p = rng.random(500) if task == "binary" else rng.dirichlet(np.ones(3), size=500)
    y = (p**2 > rng.random(500)).astype(int) if task == "binary" else (p.cumsum(1) > rng.random((500, 1))).argmax(1)
    curves = fit_curves(p, y, task=task)
    costs = ((0.0, 1.0), (4.0, 0.0)) if task == "binary" else ((0.0, 1.0, 2.0), (5.0, 0.0, 1.0), (9.0, 3.0, 0.0))
    plain = dataclasses.replace(bundle.decision, temperature=3.0)
    made = made_columns(bundle, 300)
    rows = as_rows(bundle, made)
    logits = bundle.logits(bundle.encode(rows))
    bent = dataclasses.replace(plain, curves=curves, costs=costs)
    middle = float(np.median(bent.scores(logits, bundle.preprocessor)[:, -1]))
    bent = dataclasses.replace(bent, threshold=middle)
    scores, chosen = {}, {}
    for name, decision in (("plain", plain), ("bent", bent)):
        scores[name] = decision.scores(logits, bundle.preprocessor)
        chosen[name] = decision.choose(scores[name], bundle.preprocessor)
    assert np.abs(scores["bent"] - scores["plain"]).max() > 0.05
    assert (chosen["bent"] != chosen["plain"]).any()
    bundle = dataclasses.replace(bundle, decision=bent)
    program = trace(bundle)
    content = to_onnx(program, bundle)
    for answer in (onnx_answer(content, bundle), torch_answer(program, bundle)):
        gap, _ = compare(answer(made), bundle, rows)
        assert gap <= TOLERANCE


def test_a_hashed_column_is_refused() -> None:
    bundle = make_bundle(make_table(400), "preprocess.max_levels=3", "preprocess.hash_buckets=8")
    with pytest.raises(UserError, match="column 'colour' is hashed into 8 buckets") as caught:
        trace(bundle)
    assert "preprocess.hash_buckets=0" in caught.value.fix


@pytest.mark.parametrize("columns", [["colour", "member"], ["day"]], ids=" ".join)
def test_tables_of_one_kind_of_columns(columns: list[str]) -> None:
    bundle = make_bundle(make_table(400)[[*columns, "y"]], *BARE)
    content = to_onnx(trace(bundle), bundle)
    made = made_columns(bundle, 200)
    assert compare(onnx_answer(content, bundle)(made), bundle, as_rows(bundle, made))[0] <= TOLERANCE


def test_columns_may_be_called_as_outputs_or_inner_names() -> None:
    bundle = make_bundle(make_table(400).rename(columns=NAMES), *BARE, "preprocess.scaler=standard")
    content = to_onnx(trace(bundle), bundle)
    session = onnxruntime.InferenceSession(content)
    found = {value.name: (value.type, value.shape) for value in session.get_inputs()}
    assert found == {
        "raw_prediction": ("tensor(double)", ["rows"]),
        "total charges [€]": ("tensor(double)", ["rows"]),
        "scorer/colour": ("tensor(string)", ["rows"]),
        "1": ("tensor(string)", ["rows"]),
        "raw_probabilities": ("tensor(int64)", ["rows"]),
    }
    assert [(value.name, value.type, value.shape) for value in session.get_outputs()] == [
        ("probabilities", "tensor(double)", ["rows", 2]),
        ("prediction", "tensor(string)", ["rows"]),
    ]
    about = session.get_modelmeta().custom_metadata_map
    assert about["name"] == "made"
    assert json.loads(about["classes"]) == ["no", "yes"]
    assert float(about["threshold"]) == 0.4
    assert float(about["temperature"]) == 1.3
    assert json.loads(about["columns"]) == {
        name: kind
        for name, kind in zip(NAMES.values(), ("numeric", "numeric", "categorical", "boolean", "date"), strict=True)
    }
    made = made_columns(bundle, 200)
    assert compare(onnx_answer(content, bundle)(made), bundle, as_rows(bundle, made))[0] <= TOLERANCE


class FirstNumber(nn.Module):
    """In place of a network: hands on what it is given."""

    def forward(self, x_num: Tensor, x_cat: Tensor) -> Tensor:
        return x_num[:, :1]


def test_the_network_is_given_the_very_numbers_of_the_training() -> None:
    table = make_table(3000, task="regression")[["size", "y"]]
    bundle = make_bundle(table.round(2))  # two digits: many equal quantiles
    fitted = dataclasses.replace(bundle.preprocessor, target_mean=0.0, target_std=1.0)
    bundle = dataclasses.replace(bundle, network=FirstNumber(), preprocessor=fitted)
    made = made_columns(bundle, 5000)
    wanted = bundle.encode(as_rows(bundle, made)).x_num[:, 0]
    program = trace(bundle)
    for answer in (onnx_answer(to_onnx(program, bundle), bundle), torch_answer(program, bundle)):
        found = answer(made)[0].astype(np.float32)
        assert (found == wanted).mean() > 0.999
        np.testing.assert_allclose(found, wanted, rtol=2.5e-7)


def test_quantiles_are_read_as_numpy_reads_them() -> None:
    rng = np.random.default_rng(0)
    for count in (2, 3, 7, 8, 9, 1000):
        quantiles = np.sort(np.round(rng.normal(size=(count, 5)), 1), axis=0)  # with ties, at the ends as well
        quantiles[:, 4] = np.sort(rng.normal(size=count) * 1e80)
        shares = np.sort(rng.uniform(1e-6, 1 - 1e-6, size=(count, 5)), axis=0)
        odd = np.repeat([[0.0], [1e100], [-1e100], [1e-100]], 5, axis=1)
        near = np.concatenate([quantiles, np.nextafter(quantiles, np.inf), np.nextafter(quantiles, -np.inf)])
        raw = np.concatenate([near, odd, rng.normal(size=(500, 5))])
        wanted = scale_numbers(raw, {"quantiles": quantiles, "shares": shares})
        found = QuantileScaler(quantiles, shares)(torch.from_numpy(raw.T.copy())).numpy().T
        np.testing.assert_allclose(found, wanted, rtol=1e-14, atol=1e-15)


def test_normal_quantiles_are_those_of_scipy() -> None:
    small = np.logspace(-13.5, -0.001, 20_000)
    p = np.concatenate([small, 1 - small, np.linspace(1e-4, 1 - 1e-4, 20_001), [np.exp(-2), 1 - np.exp(-2), 0.5]])
    found = normal_quantile(torch.from_numpy(p)[None]).numpy()[0]
    np.testing.assert_allclose(found, ndtri(p), rtol=2e-15, atol=1e-16)
    assert (found == ndtri(p)).mean() > 0.95  # the rest is the last bit of a logarithm


def test_dates_have_the_parts_of_pandas() -> None:
    rng = np.random.default_rng(0)
    first, last = (date.astype(np.int64) for date in (FIRST_DATE, LAST_DATE))
    days = np.arange(first, last, 86_400_000_000)  # every day of six centuries, at its first and last instant
    ticks = np.concatenate([days, days + 86_399_999_999, rng.integers(first, last, size=20_000), [0, -1, 1]])
    dates = pd.Series(ticks.astype("datetime64[us]"))
    parts = date_parts(torch.from_numpy(ticks))
    for name in DATE_PARTS[:-1]:
        wanted = getattr(dates.dt, "day_of_week" if name == "weekday" else name)
        np.testing.assert_array_equal(parts[name].numpy(), wanted.to_numpy())
    np.testing.assert_array_equal(parts["days"].numpy(), ticks / 86_400_000_000)
    outside = torch.tensor([np.iinfo(np.int64).min, first - 1, last, np.iinfo(np.int64).max])
    assert all(torch.isnan(part).all() for part in date_parts(outside).values())


def test_texts_are_known_as_a_table_writes_them() -> None:
    table = make_table(400).assign(code=np.tile(["1", "2", "-3", "x"], 100))
    bundle = make_bundle(table, "data.missing_values=[' n/a ', '?']", "data.columns={code: categorical}")
    codes = level_codes(bundle)
    colours = bundle.preprocessor.categorical[0].levels
    assert codes["colour"] == {"": 1, "?": 1, "n/a": 1} | {level: 2 + i for i, level in enumerate(colours)}
    assert codes["member"]["yes"] == codes["member"]["YES"] == codes["member"]["yEs"] != codes["member"]["No"]
    assert codes["member"]["?"] == 0  # no train row had a gap: such a slot was never trained
    assert codes["code"]["1"] == codes["code"]["1.0"] != codes["code"]["-3.0"]
    assert "x.0" not in codes["code"]
    rows = {name: pa.array(values) for name, values in made_columns(bundle, 5).items()}
    for column, known in codes.items():
        texts = [text for text in known if text]
        place = [category.column for category in bundle.preprocessor.categorical].index(column)
        frame = pd.DataFrame({name: [values[0].as_py()] * len(texts) for name, values in rows.items()})
        found = bundle.encode(frame.assign(**{column: texts})).x_cat[:, place]
        assert found.tolist() == [known[text] for text in texts]


def test_an_answer_that_differs_is_found(tmp_path: Path) -> None:
    bundle = make_bundle(make_table(400), *BARE)
    program = trace(bundle)
    right = torch_answer(program, bundle)
    assert "largest difference" in check_answers(right, bundle, tmp_path / "bundle.zip")

    def shifted(columns: Columns) -> Any:
        scores, chosen = right(columns)
        return scores + np.array([2e-5, -2e-5]), chosen

    def swapped(columns: Columns) -> Any:
        return right(columns)[0], np.array(["no", "yes"])[(right(columns)[0][:, 1] < 0.4).astype(int)]

    def lost(columns: Columns) -> Any:
        return right(columns)[0] * np.nan, None

    for wrong in (shifted, swapped, lost):
        with pytest.raises(
            UserError, match=r"differs from the bundle by \S+ on 1000 made rows, and nothing was written"
        ):
            check_answers(wrong, bundle, tmp_path / "bundle.zip")
    other = dataclasses.replace(bundle, decision=Decision(temperature=1.31, threshold=0.4))
    with pytest.raises(UserError, match="differs from the bundle"):
        check_answers(torch_answer(trace(other), other), bundle, tmp_path / "bundle.zip")


def test_on_rows_that_float32_cannot_hold_a_file_may_lose_as_much_and_no_more() -> None:
    bundle = make_bundle(make_table(400, task="regression"), *BARE, "preprocess.scaler=standard")
    rows = as_rows(bundle, {name: values[:300] for name, values in made_columns(bundle, 300).items()})
    scores = bundle.predict_scores(rows)
    gap, num_unsteady = compare((scores, None), bundle, rows)
    assert gap == 0
    sizes, ages = (np.abs(rows.column(name).to_numpy()) for name in ("size", "age"))
    assert num_unsteady <= ((sizes > 1e10) | (ages > 1e10)).sum() < 150
    for wrong in (scores + 1e-2 * np.maximum(1, np.abs(scores)), scores * np.nan):
        assert not compare((wrong, None), bundle, rows)[0] <= TOLERANCE


# --- the command, as its own process, on real data


@pytest.fixture(scope="module")
def telco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, a short training on the real table, and the two files that the command wrote of it."""
    folder = tmp_path_factory.mktemp("telco")
    words = [f"run.dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}", *SMALL]
    script = [sys.executable, str(ROOT / "nn_train" / "train.py"), *words, "train.max_steps=40"]
    done = subprocess.run(script, capture_output=True, text=True, cwd=folder, timeout=240)
    assert done.returncode == 0, done.stderr
    return folder


def export(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "nn_train.export", *words]
    return subprocess.run(
        command, capture_output=True, text=True, cwd=folder, timeout=240, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def test_the_command_writes_what_it_has_compared(telco: Path) -> None:
    done = export(telco, "--run", "run", "--output", "model.onnx")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    said = r"same as the bundle on 1056 rows of the test split and 1000 made rows: largest difference (\S+)\n"
    found = re.search(said, done.stdout)
    assert found, done.stdout
    assert 0 < float(found[1]) <= TOLERANCE
    assert sorted(path.name for path in telco.iterdir()) == ["cache", "model.onnx", "run"]
    run_the_example_of_the_readme(telco)


def run_the_example_of_the_readme(folder: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    example = next(code for code in re.findall(r"```python\n(.*?)```", readme, re.DOTALL) if "onnxruntime" in code)
    (folder / "data").mkdir()
    shutil.copy(ROOT / "data" / "telco.csv", folder / "data")
    done = run_alone(f"{example}\nprint(probabilities.shape, *prediction, sep='\\n')", folder)
    shape, *found = done.splitlines()
    wanted = load_bundle(folder / "run").predict(pd.read_csv(ROOT / "data" / "telco.csv"))
    assert shape == "(7043, 2)"
    assert found == wanted["prediction"].tolist()


def run_alone(code: str, folder: Path) -> str:
    """What the code prints where this project cannot be imported."""
    command = [sys.executable, "-W", "error", "-c", f"import sys\nsys.modules['nn_train'] = None\n{code}"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


READER = """
import json, torch
extra = {"about.json": ""}
program = torch.export.load("model.bin", extra_files=extra)
about = json.loads(extra["about.json"])
kinds = {"numeric": torch.float64}
columns = {name: torch.zeros(4, dtype=kinds.get(kind, torch.int64)) for name, kind in about["columns"].items()}
columns["contract"][:] = about["codes"]["contract"]["Two year"]
print(json.dumps([about["classes"], program.module()(columns).tolist()]))
"""


def test_a_torch_program_loads_where_this_project_is_not(telco: Path) -> None:
    done = export(telco, "--run", "run/bundle.zip", "--output", "model.bin", "--format", "torch")
    assert done.returncode == 0, done.stderr
    assert "(not on rows of the test split: a bundle alone does not say where they are)" in done.stdout
    classes, scores = json.loads(run_alone(READER, telco))
    bundle = load_bundle(telco / "run")
    row = {column.name: 0.0 if column.kind == "numeric" else "never seen" for column in bundle.schema.features}
    assert classes == ["No", "Yes"]
    np.testing.assert_allclose(scores, bundle.predict_scores([row | {"contract": "Two year"}] * 4), atol=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "run", "--output", "m.tflite"], "error: m.tflite: '.tflite' is the ending of no format\n  mend: "),
        (["--run", "cache", "--output", "m.onnx"], "error: cache/bundle.zip: no bundle can be read here: No such file"),
        (["--run", "run", "--output", "gone/m.onnx"], "error: gone/m.onnx: there is no such folder\n  mend: "),
        (["--run", "run"], "error: --output is missing\n  mend: --help shows the options"),
        (["--run", "run", "--output", "m.onnx", "--chekc"], "error: unknown option --chekc\n  mend: "),
    ],
    ids=["format", "no bundle", "no folder", "no output", "option"],
)
def test_a_mistake_is_one_message(words: list[str], message: str, telco: Path) -> None:
    done = export(telco, *words)
    assert done.returncode == 2
    assert done.stderr.startswith(message)
    assert "Traceback" not in done.stderr
    assert not (telco / "m.onnx").exists()


BLOCKED = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name.startswith("onnx") else found(name, *rest)
from nn_train.export import main
sys.exit(main(sys.argv[1:]))
"""


def test_a_library_that_is_missing_is_named_with_its_extra(telco: Path) -> None:
    command = [sys.executable, "-c", BLOCKED, "--run", "run", "--output", "m.onnx"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=telco, timeout=120, env=environment)
    assert done.returncode == 2
    assert (
        done.stderr == "error: not installed: onnx, onnxscript, onnxruntime\n  mend: pip install 'nn-train[export]'\n"
    )


def test_a_run_whose_table_is_gone_or_changed_is_compared_on_made_rows(telco: Path, tmp_path: Path) -> None:
    bundle = load_bundle(telco / "run")
    answer = torch_answer(trace(bundle), bundle)
    run = tmp_path / "run"
    shutil.copytree(telco / "run", run)
    lines = (ROOT / "data" / "telco.csv").read_text().splitlines(keepends=True)
    (tmp_path / "short.csv").write_text("".join(lines[:100]))
    for name, reason in (("gone.csv", "no such file"), ("short.csv", "the table has other rows now")):
        config = (run / "config.yaml").read_text()
        (run / "config.yaml").write_text(re.sub(r"(?m)^  path: .*$", f"  path: {tmp_path / name}", config))
        assert re.search(
            rf"on 1000 made rows: .* \(not on rows of the test split: .*{reason}", check_answers(answer, bundle, run)
        )


def test_separate_files_are_compared_on_the_rows_of_the_test_file(tmp_path: Path) -> None:
    for seed, name in enumerate(("train", "val", "test")):
        make_table(200 + 10 * seed, seed=seed).to_csv(tmp_path / f"{name}.csv", index=False)
    words = ["split.method=files", *(f"split.{name}_path={tmp_path / name}.csv" for name in ("val", "test"))]
    own = [f"data.path={tmp_path / 'train.csv'}", "data.target=y", f"run.dir={tmp_path / 'run'}", "train.max_steps=4"]
    Engine(load_config(None, [*SMALL, *own, *words])).run()
    bundle = load_bundle(tmp_path / "run")
    wanted = pd.read_parquet(tmp_path / "run" / "predictions.parquet")
    found = bundle.predict(read_test_rows(tmp_path / "run", bundle))
    np.testing.assert_allclose(found["p_yes"], wanted["p_yes"], atol=1e-6)
    assert len(found) == 220


def test_help_names_every_option() -> None:
    done = export(ROOT, "--help")
    assert done.returncode == 0
    for option in ("--run RUN", "--output FILE", "--format {onnx,torch}", "--no-check"):
        assert option in done.stdout
