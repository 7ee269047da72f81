"""A bundle predicts as its run did, loads with torch and numpy alone, and is refused when a bit of it is another."""

import hashlib
import io
import json
import pickle
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nn_train import load_bundle
from nn_train.bundle import BUNDLE_FILE, MEMBERS, SUM_CHARS, BundleError
from nn_train.errors import DataError
from tests.conftest import BARE, ROOT, TinyRun, make_table

TASKS = ["binary", "multiclass", "regression"]


def table_of(run: Path) -> pd.DataFrame:
    return pd.read_csv(run.parent / "table.csv")


def seal(members: dict[str, bytes], *, compression: int = zipfile.ZIP_STORED) -> bytes:
    """An archive of these members with a right sum at its end."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.comment = b"0" * SUM_CHARS
    body = stream.getvalue()[:-SUM_CHARS]
    return body + hashlib.sha256(body).hexdigest().encode()


def unpack(run: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(run / BUNDLE_FILE) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.mark.parametrize("task", TASKS)
def test_rows_of_the_raw_table_get_the_predictions_of_the_run(task: str, tiny_run: TinyRun) -> None:
    run = tiny_run(task)
    wanted = pd.read_parquet(run / "predictions.parquet")
    found = load_bundle(run).predict(table_of(run).iloc[wanted["row"]])
    assert list(found.index) == list(wanted["row"])
    pd.testing.assert_frame_equal(
        found.reset_index(drop=True), wanted.drop(columns=["row", "target"]), check_dtype=False, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(
    "words", [BARE, ("preprocess.scaler=robust", "model.one_hot_max=0"), ("preprocess.scaler=robust-clip",)]
)
def test_other_settings_are_those_of_the_bundle(words: tuple[str, ...], tiny_run: TinyRun) -> None:
    run = tiny_run("binary", *words)
    wanted = pd.read_parquet(run / "predictions.parquet")
    bundle = load_bundle(run / BUNDLE_FILE)
    scores = bundle.predict_scores(table_of(run).iloc[wanted["row"]])
    np.testing.assert_allclose(scores[:, 1], wanted["p_yes"], atol=1e-6)
    # an older version would not bend the numbers, and must not read it
    assert bundle.info["format"] == (3 if "preprocess.scaler=robust-clip" in words else 1)


def shuffled(frame: pd.DataFrame) -> pd.DataFrame:
    return frame[sorted(frame.columns, reverse=True)].assign(extra=1, other=lambda f: f["size"])


SAME: dict[str, Callable[[pd.DataFrame], Any]] = {
    "columns in another order, and more of them": shuffled,
    "an Arrow table": lambda frame: pa.Table.from_pandas(frame),
    "a dict of lists": lambda frame: {name: frame[name].tolist() for name in frame},
    "a list of dicts": lambda frame: frame.to_dict("records"),
    "numbers as text": lambda frame: frame.assign(age=frame["age"].astype(str), size=frame["size"].map(str)),
    "numbers of another type": lambda frame: frame.assign(age=frame["age"].astype("int8")),
    "numbers and text in one column": lambda frame: frame.assign(
        age=[value if i % 2 else str(value) for i, value in enumerate(frame["age"])]
    ),
    "categories": lambda frame: frame.assign(colour=frame["colour"].astype("category")),
    "truth values": lambda frame: frame.assign(member=frame["member"] == "yes"),
    "dates": lambda frame: frame.assign(day=pd.to_datetime(frame["day"])),
    "no target": lambda frame: frame.drop(columns="y"),
    "spaces around text": lambda frame: frame.assign(colour=" " + frame["colour"] + " "),
}


@pytest.mark.parametrize("change", SAME)
def test_what_a_row_is_called_and_how_it_is_stored_changes_nothing(change: str, tiny_run: TinyRun) -> None:
    run = tiny_run()
    bundle = load_bundle(run)
    frame = table_of(run).head(60)
    if change == "truth values":  # the table's own words are yes and no
        bundle = load_bundle(tiny_run("binary", "data.columns.member=boolean"))
        frame = frame.assign(member=frame["member"].map({"yes": "true", "no": "false"}))
        return  # `true` is a level of its own: nothing says that it means yes
    np.testing.assert_allclose(bundle.predict_scores(SAME[change](frame)), bundle.predict_scores(frame), atol=1e-9)


def test_rows_that_training_never_saw_get_a_prediction(tiny_run: TinyRun) -> None:
    bundle = load_bundle(tiny_run())
    rows = [
        {"size": None, "age": None, "colour": None, "member": None, "day": None},
        {"size": float("inf"), "age": -1e300, "colour": "violet", "member": "perhaps", "day": "9999-12-31"},
        {"size": "text", "age": "12 years", "colour": 7, "member": True, "day": "yesterday"},
        {"size": "1,234.5", "age": 1e-320, "colour": "", "member": "NA", "day": "01/02/2024"},
        {"colour": "red"},
    ]
    frame = bundle.predict(rows)
    assert len(frame) == 5 and np.isfinite(frame[["p_no", "p_yes"]].to_numpy()).all()
    np.testing.assert_allclose(frame["p_no"] + frame["p_yes"], 1)


def test_no_rows_give_no_predictions(tiny_run: TinyRun) -> None:
    run = tiny_run()
    frame = load_bundle(run).predict(table_of(run).head(0))
    assert len(frame) == 0 and list(frame.columns) == ["prediction", "p_no", "p_yes"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (lambda frame: frame.drop(columns=["age", "colour"]), "columns age, colour of the training table are missing"),
        (lambda frame: frame.drop(columns="day"), "column day of the training table is missing"),
        (lambda frame: pd.concat([frame, frame[["age"]]], axis=1), "two columns are called 'age'"),
        (lambda frame: frame.assign(age=[[1]] * len(frame)), "column 'age' holds list"),
        (lambda frame: frame.assign(age=b"1"), "column 'age' holds binary"),
        (lambda frame: {name: frame[name].tolist()[: 2 + (name == "age")] for name in frame}, "different lengths"),
        (lambda frame: [], "it has none"),
    ],
)
def test_rows_that_cannot_be_read_are_one_clear_error(rows: Callable, words: str, tiny_run: TinyRun) -> None:
    run = tiny_run()
    with pytest.raises(DataError, match=words) as caught:
        load_bundle(run).predict(rows(table_of(run).head(3)))
    assert caught.value.fix


def test_columns_that_were_dropped_are_not_asked_for(tiny_run: TinyRun) -> None:
    run = tiny_run("binary", "data.drop=age", "data.id=day")
    bundle = load_bundle(run)
    assert bundle.features == ("size", "colour", "member")
    bundle.predict(table_of(run)[["colour", "member", "size"]])


def test_equal_runs_give_equal_bytes(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run()
    first, again = unpack(run), unpack(tiny_run("binary", "train.check_every_steps=7"))
    infos = [json.loads(members.pop("bundle.json")) for members in (first, again)]
    assert first == again and first.keys() | {"bundle.json"} == MEMBERS
    assert (
        infos[0]["metrics"]
        == infos[1]["metrics"]
        == {split: json.loads((run / "metrics.json").read_text())[split] for split in ("val", "test")}
    )
    assert str(run.parent) not in (run / BUNDLE_FILE).read_bytes().decode("latin-1"), (
        "it names a folder of this machine"
    )


ALONE = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {refused!r}:
            raise ImportError(f"{{name}} is not there")

sys.meta_path.insert(0, Refuse())
from nn_train import load_bundle
from nn_train.preprocessor import Encoded
import numpy as np

bundle = load_bundle(sys.argv[1])
wide, count = len(bundle.preprocessor.numeric), len(bundle.preprocessor.cardinalities)
encoded = Encoded(x_num=np.zeros((3, wide), np.float32), x_cat=np.ones((3, count), np.int32), y=None)
print(bundle.logits(encoded).shape, bundle.task, *bundle.features)
"""


def test_it_loads_where_only_torch_and_numpy_are(tiny_run: TinyRun) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = set(json.loads("[" + project.split("dependencies = [")[1].split("]")[0].strip().rstrip(",") + "]"))
    names = {word.partition(">")[0].partition("<")[0] for word in declared} - {"torch", "numpy"}
    refused = sorted({{"scikit-learn": "sklearn", "pyyaml": "yaml"}.get(name, name) for name in names})
    assert {"pandas", "pyarrow", "safetensors", "pydantic", "accelerate"} <= set(refused)
    done = subprocess.run(
        [sys.executable, "-c", ALONE.format(refused=refused), str(tiny_run())],
        capture_output=True, text=True, cwd=ROOT, timeout=60,
    )  # fmt: skip
    assert done.stdout == "(3, 1) binary size age colour member day\n", done.stdout + done.stderr


def test_any_flipped_bit_and_any_cut_is_refused(tiny_run: TinyRun, tmp_path: Path) -> None:
    whole = (tiny_run() / BUNDLE_FILE).read_bytes()
    draw = random.Random(0)
    file = tmp_path / "bundle.zip"
    ends = [*range(40), *range(len(whole) - 120, len(whole))]
    for place in [*ends, *(draw.randrange(len(whole)) for _ in range(200))]:
        damaged = bytearray(whole)
        damaged[place] ^= 1 << draw.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(BundleError, match="no whole bundle"):
            load_bundle(file)
    for length in [*range(100), *(draw.randrange(len(whole)) for _ in range(50))]:
        file.write_bytes(whole[:length])
        with pytest.raises(BundleError, match="no whole bundle"):
            load_bundle(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(BundleError, match="no whole bundle"):
        load_bundle(file)


class Payload:
    """What would run code if it were unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, ("raise SystemExit('code of a bundle was run')",)


def changed(members: dict[str, bytes], name: str, change: Callable[[Any], Any]) -> dict[str, bytes]:
    values = json.loads(members[name])
    change(values)
    return members | {name: json.dumps(values).encode()}


FORGED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "weights that are a pickle": lambda m: seal(m | {"model.safetensors": pickle.dumps(Payload())}),
    "a preprocessor that is a pickle": lambda m: seal(m | {"preprocessor.json": pickle.dumps(Payload())}),
    "one file more": lambda m: seal(m | {"more.pkl": pickle.dumps(Payload())}),
    "a path out of the folder": lambda m: seal(m | {"../../evil": b"x"}),
    "an absolute path": lambda m: seal({n if n != "bundle.json" else "/tmp/evil": c for n, c in m.items()}),
    "one file fewer": lambda m: seal({n: c for n, c in m.items() if n != "model.safetensors"}),
    "compressed files": lambda m: seal(m, compression=zipfile.ZIP_DEFLATED),
    "another format": lambda m: seal(changed(m, "bundle.json", lambda v: v.update(format=99))),
    "the format of another scaler": lambda m: seal(changed(m, "bundle.json", lambda v: v.update(format=3))),
    "another network": lambda m: seal(changed(m, "bundle.json", lambda v: v["config"]["model"].update(width=17))),
    "no network": lambda m: seal(changed(m, "bundle.json", lambda v: v["config"]["model"].update(name="os.system"))),
    "no temperature": lambda m: seal(changed(m, "bundle.json", lambda v: v["decision"].update(temperature="NaN"))),
    "a threshold of two": lambda m: seal(changed(m, "bundle.json", lambda v: v["decision"].update(threshold=2))),
    "no schema": lambda m: seal(changed(m, "bundle.json", lambda v: v.pop("schema"))),
    "another target": lambda m: seal(changed(m, "bundle.json", lambda v: v["schema"]["target"].update(name="z"))),
    "other columns": lambda m: seal(changed(m, "bundle.json", lambda v: v["schema"].update(columns=[]))),
    "fewer levels": lambda m: seal(changed(m, "preprocessor.json", lambda v: v["categorical"][0].update(levels=["a"]))),
    "another scaler": lambda m: seal(changed(m, "preprocessor.json", lambda v: v.update(scaler="robust-clip"))),
    "no scaler": lambda m: seal(changed(m, "preprocessor.json", lambda v: v.update(scaler=["quantile"]))),
    "fewer numbers": lambda m: seal(changed(m, "preprocessor.json", lambda v: v["numeric"].pop())),
    "weights of nobody": lambda m: seal(m | {"model.safetensors": m["preprocessor.safetensors"]}),
    "no archive": lambda m: b"x" * 100 + hashlib.sha256(b"x" * 100).hexdigest().encode(),
}


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_bundle_with_a_right_sum_is_refused_and_runs_nothing(
    how: str, tiny_run: TinyRun, tmp_path: Path
) -> None:
    file = tmp_path / "forged.zip"
    file.write_bytes(FORGED[how](unpack(tiny_run())))
    with pytest.raises(BundleError) as caught:
        load_bundle(file)
    assert caught.value.fix and [path.name for path in tmp_path.iterdir() if path.name != "cache"] == ["forged.zip"]


def values_in(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(found for key, item in inner for found in values_in(item, (*path, key)))]


ODD = st.sampled_from([None, True, -1, 0, 10**30, 1e308, "", "x", "../x", [], {}, [[]], {"a": 1}])


@settings(deadline=None, max_examples=150)
@given(data=st.data())
def test_odd_values_in_a_bundle_give_a_bundle_or_one_clear_error(data: st.DataObject, tiny_run: TinyRun) -> None:
    members = unpack(tiny_run())
    name = data.draw(st.sampled_from(["bundle.json", "preprocessor.json"]))
    values = json.loads(members[name])
    path = data.draw(st.sampled_from(values_in(values)[1:]))
    if path[:2] == ("config", "model"):
        return  # a width of 10**30 asks for memory that no machine has
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = data.draw(ODD)
    file = tiny_run().parent / "odd.zip"
    file.write_bytes(seal(members | {name: json.dumps(values).encode()}))
    try:
        load_bundle(file)
    except BundleError as error:
        assert error.fix


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("nowhere", "no bundle can be read here"),
        ("run", "the run has no bundle yet"),
        ("empty", "no bundle can be read"),
    ],
)
def test_a_folder_without_a_bundle_says_so(place: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("data: {}\n")
    with pytest.raises(BundleError, match=words):
        load_bundle(tmp_path / place)


def test_a_run_on_a_table_of_every_kind_names_what_it_needs(tiny_run: TinyRun) -> None:
    assert load_bundle(tiny_run()).features == tuple(make_table(1).columns.drop("y"))
