"""What a finished run shows in wandb: pictures, tables, page and model, read back from real offline runs."""

import base64
import hashlib
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from wandb.proto import wandb_internal_pb2

from nn_train import report_media, tracking_media
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.report import COMMON_PLOTS, PLOTS
from nn_train.report_media import build_table, collect_media
from nn_train.settings import Config
from nn_train.tracking_media import Media, artifact_name
from tests.conftest import PAGE, ROOT, SMALL, make_table
from tests.draw_wandb import DPI, MOST_BYTES, SIZE, draw
from tests.offline_run import offline_runs, read_items, read_json, read_records, read_values

TASKS = ("binary", "multiclass", "regression")


def config_of(folder: Path, *words: str, task: str = "binary") -> Config:
    make_table(300).assign(y=make_table(300, task=task)["y"]).to_csv(folder / "table.csv", index=False)
    own = [f"data.path={folder / 'table.csv'}", "data.target=y", f"run.dir={folder / 'run'}", "run.name=Größe_1"]
    steps = ["train.global_batch_size=64", "train.max_steps=12", "train.eval_every=3", "report.importance=true"]
    return load_config(None, [*SMALL, *PAGE, *own, *steps, *words])


class Recorded:
    """An offline run as its own log and files have it."""

    def __init__(self, run: Path):
        [self.folder] = offline_runs(run)
        self.records = read_records(self.folder)
        self.values = read_values(self.records)
        self.summary = read_items(self.records, "summary")
        self.run = next(record.run for record in self.records if record.HasField("run"))

    def media(self, kind: str) -> dict[str, dict[str, Any]]:
        """Key -> what is logged of one kind, whose file is there and is the one that was meant."""
        found = {k: v for k, v in self.values.items() if isinstance(v, dict) and v.get("_type") == kind}
        for value in found.values():
            assert hashlib.sha256(self.file(value).read_bytes()).hexdigest() == value["sha256"]
        return found

    def file(self, value: dict[str, Any]) -> Path:
        return self.folder / "files" / value["path"]

    def artifacts(self, kind: str) -> list[wandb_internal_pb2.ArtifactRecord]:
        return [r.artifact for r in self.records if r.HasField("artifact") and r.artifact.type == kind]


@pytest.fixture
def own_home(own_wandb: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """wandb with no place of its own for copies, as a user has it."""
    monkeypatch.delenv("WANDB_DATA_DIR")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """A finished run of each task, which tracked nothing."""
    runs = {}
    with pytest.MonkeyPatch.context() as patch:
        for task in TASKS:
            folder = tmp_path_factory.mktemp(task)
            patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
            config = config_of(folder, "data.id=age", task=task)
            Engine(config).run()
            runs[task] = config.run_dir
        yield runs


# ---- what an offline run holds


def test_an_offline_run_holds_pictures_tables_page_and_model(own_home: None, tmp_path: Path) -> None:
    words = ("tracking.mode=offline", "tracking.aliases=[latest,best]", "tracking.group=seeds", "report.baselines=yes")
    config = config_of(tmp_path, *words)
    metrics = Engine(config).run()
    run, recorded = config.run_dir, Recorded(config.run_dir)
    assert recorded.run.run_group == "seeds"
    assert recorded.summary["final/test/roc_auc"] == metrics["test"]["roc_auc"]

    images = recorded.media("image-file")
    sections = COMMON_PLOTS | {"results": PLOTS["binary"]}
    places = {name: f"{section}/{name}" for section, names in sections.items() for name in names}
    plots = {path.stem: path for path in (run / "plots").glob("*.png")}
    assert set(images) == {places[name] for name in plots}
    assert len(images) >= 18
    page = (run / "report.html").read_text(encoding="utf-8")
    for name, path in plots.items():
        image = images[places[name]]
        assert recorded.file(image).read_bytes() == path.read_bytes()
        assert f'alt="{image["caption"]}"' in page.replace("&#39;", "'")
        with Image.open(path) as opened:
            assert (image["width"], image["height"]) == opened.size

    tables = {key: read_json(recorded.file(value)) for key, value in recorded.media("table-file").items()}
    assert set(tables) == {f"tables/{name}" for name in (
        "leaderboard", "metrics", "importance", "confusion", "worst_rows", "predictions")}  # fmt: skip
    models = [row[0] for row in tables["tables/leaderboard"]["data"]]
    assert models == ["network (mlp)", "majority class", "linear model", "gradient boosting"]
    place = tables["tables/leaderboard"]["columns"].index("log_loss")
    losses = [row[place] for row in tables["tables/leaderboard"]["data"]]
    assert losses == [metrics["test"]["log_loss"], *(m["test"]["log_loss"] for m in metrics["baselines"].values())]

    picture = draw(run)
    assert len(picture) < MOST_BYTES
    assert Image.open(io.BytesIO(picture)).size == tuple(int(inches * DPI) for inches in SIZE)

    [html] = recorded.media("html-file").items()
    assert html[0] == "report/page"
    assert recorded.file(html[1]).read_bytes() == (run / "report.html").read_bytes()

    [artifact] = recorded.artifacts("model")
    assert (artifact.name, sorted(artifact.aliases)) == ("Gr-e_1", ["best", "latest"])
    [entry] = artifact.manifest.contents
    content = (run / "bundle.zip").read_bytes()
    assert (entry.path, entry.size) == ("bundle.zip", len(content))
    assert base64.b64decode(entry.digest) == hashlib.md5(content).digest()
    assert Path(entry.local_path).read_bytes() == content
    metadata = json.loads(artifact.metadata)
    assert metadata["test"] == read_json(run / "metrics.json")["test"]  # null where a metric is not defined
    assert metadata["selection"] == metrics["selection"]
    assert metadata["model"] == metrics["network"]
    assert metadata["fingerprint"] == read_json(run / "data.json")["fingerprint"]
    assert (metadata["task"], metadata["target"]) == ("binary", "y")

    # all that `wandb sync` uploads lies in the run folder
    for copied in [artifact, *recorded.artifacts("run_table")]:
        for entry in copied.manifest.contents:
            assert Path(entry.local_path).is_relative_to(run / "wandb")
            assert Path(entry.local_path).stat().st_size == entry.size


def test_what_is_switched_off_or_too_large_is_not_there(
    own_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking_media, "MOST_BYTES", 9_000)
    config = config_of(tmp_path, "tracking.mode=offline", "tracking.log_model=no", "tracking.num_rows=0")
    Engine(config).run()
    recorded = Recorded(config.run_dir)
    assert recorded.artifacts("model") == []
    assert set(recorded.media("table-file")) == {f"tables/{name}" for name in (
        "leaderboard", "metrics", "importance", "confusion")}  # fmt: skip
    assert recorded.media("html-file") == {}
    sizes = {path.stem: path.stat().st_size for path in (config.run_dir / "plots").glob("*.png")}
    assert min(sizes.values()) < 9_000 < max(sizes.values())
    logged = {key.split("/")[1] for key in recorded.media("image-file")}
    assert logged == {name for name, size in sizes.items() if size <= 9_000}


def test_media_that_fail_are_one_warning_and_cost_no_summary(
    own_home: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = config_of(tmp_path, "tracking.mode=offline")
    engine = Engine(config)
    engine.prepare()
    engine.train()
    metrics = engine.evaluate()
    (config.run_dir / "plots").mkdir()
    (config.run_dir / "plots" / "broken.png").write_bytes(b"no picture")
    engine.report()
    said = capfd.readouterr().out
    assert said.count("tracking: ") == 1
    assert "tracking: pictures, tables and model are left out" in said
    assert "cannot identify image file" in said
    recorded = Recorded(config.run_dir)
    assert recorded.summary["final/test/log_loss"] == metrics["test"]["log_loss"]
    assert recorded.media("image-file") == {}
    assert read_json(config.run_dir / "status.json")["state"] == "done"
    assert (config.run_dir / "tracked.json").exists()  # wandb itself is well


# ---- what is read from a run folder


def frame_of(media: Media, name: str) -> pd.DataFrame:
    [table] = [table for table in media.tables if table.key == f"tables/{name}"]
    return pd.DataFrame(table.rows, columns=pd.Index(table.columns))


@pytest.mark.parametrize("task", TASKS)
def test_tables_say_what_the_run_folder_says(finished: dict[str, Path], task: str) -> None:
    run = finished[task]
    media, test = collect_media(run, num_rows=20), pd.read_parquet(run / "predictions.parquet")
    metrics = read_json(run / "metrics.json")
    predictions = frame_of(media, "predictions")
    assert list(predictions) == list(test)
    pd.testing.assert_frame_equal(predictions, test.head(20), check_dtype=False)
    worst = frame_of(media, "worst_rows")
    if task == "regression":
        badness = (test["target"] - test["prediction"]).abs()
        assert worst["residual"].abs().to_list() == sorted(badness, reverse=True)[:50]
        assert "tables/confusion" not in {table.key for table in media.tables}
    else:
        own = np.array([row[f"p_{row['target']}"] for _, row in test.iterrows()])
        assert worst["p of the true class"].to_list() == sorted(own)[:50]
        confusion = frame_of(media, "confusion")
        for _, line in confusion.iterrows():
            pair = (test["target"] == line["true"]) & (test["prediction"] == line["predicted"])
            assert line["rows"] == pair.sum() > 0
        assert confusion["rows"].sum() == len(test)
        assert confusion["rows"].is_monotonic_decreasing
    assert set(worst["row"]) <= set(test["row"])
    importance = frame_of(media, "importance").set_index("column")["mean_loss"]
    assert importance.to_dict() == {name: loss["mean"] for name, loss in metrics["importance"]["columns"].items()}
    own_metrics = frame_of(media, "metrics").set_index("metric")
    for split in ("val", "test"):
        assert own_metrics[split].dropna().to_dict() == {k: v for k, v in metrics[split].items() if v is not None}


def test_pictures_carry_their_place_and_their_words(finished: dict[str, Path]) -> None:
    for task, run in finished.items():
        pictures = {picture.path.stem: picture for picture in collect_media(run, num_rows=0).pictures}
        assert pictures["loss_by_step"].key == "training/loss_by_step"
        assert all(picture.key.startswith("results/") for name, picture in pictures.items() if name in PLOTS[task])
        assert all(len(picture.caption) > 20 for picture in pictures.values())


def test_a_run_without_a_bundle_or_a_page_has_none(finished: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "schema.json").write_bytes((finished["binary"] / "schema.json").read_bytes())
    media = collect_media(tmp_path, num_rows=10)
    assert (media.model, media.pictures, media.tables, media.page) == (None, [], [], None)


def test_values_of_a_table_are_plain_bounded_and_of_one_type() -> None:
    frame = pd.DataFrame(
        {
            "number": [1.5, float("nan"), float("inf")],
            "count": np.array([1, 2, 3], dtype=np.int64),
            "flag": [True, False, None],
            "mixed": ["a", 2, None],
            "time": pd.to_datetime(["2024-01-01", None, "2024-01-02"]),
            "long": ["x" * 1000, "y", "z"],
        }
    )
    table = build_table("t", frame)
    columns = dict(zip(table.columns, zip(*table.rows, strict=True), strict=True))
    assert columns["number"] == (1.5, None, None)
    assert columns["count"] == (1, 2, 3)
    assert all(type(value) is int for value in columns["count"])
    assert columns["flag"] == (True, False, None)
    assert columns["mixed"] == ("a", "2", None)
    assert columns["time"] == ("2024-01-01 00:00:00", None, "2024-01-02 00:00:00")
    assert columns["long"] == ("x" * 200, "y", "z")
    json.dumps(table.rows, allow_nan=False)


def test_a_wide_table_is_cut_by_its_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_media, "MOST_CELLS", 1_000)
    assert len(build_table("t", pd.DataFrame(np.zeros((500, 100)))).rows) == 10
    assert len(build_table("t", pd.DataFrame(np.zeros((3, 1_001)))).rows) == 1


@pytest.mark.parametrize(
    ("name", "expected"), [("telco", "telco"), ("a/b c", "a-b-c"), ("Größe_1", "Gr-e_1"), ("x" * 300, "x" * 100)]
)
def test_names_of_artifacts(name: str, expected: str) -> None:
    assert artifact_name(name) == expected


@pytest.mark.parametrize("alias", ["v3", "a/b", "a:b", "' '", "x" * 129])
def test_aliases_that_wandb_refuses_are_refused_at_once(tmp_path: Path, alias: str) -> None:
    with pytest.raises(Exception, match="is no alias"):
        config_of(tmp_path, f"tracking.aliases=[{alias}]")


def test_a_single_alias_is_written_without_brackets(tmp_path: Path) -> None:
    assert config_of(tmp_path, "tracking.aliases=best").tracking.aliases == ("best",)
    assert config_of(tmp_path, "tracking.aliases=[]").tracking.aliases == ()


def test_the_readme_shows_the_picture_in_words_too() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    [(words, path)] = re.findall(r"!\[([^\]]+)\]\((data/pictures/wandb\.png)\)", readme)
    assert len(words) > 100
    assert (ROOT / path).stat().st_size < MOST_BYTES
    assert "no screenshot of wandb's web app" in readme
    for key in ("best/METRIC", "tables/leaderboard", "report/page", "final/test/METRIC"):
        assert f"`{key}`" in readme
