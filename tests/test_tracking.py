"""metrics.jsonl, and the real wandb: offline, through a resume, and in every way that it can fail."""

import gc
import json
import logging
import math
import os
import socket
import struct
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
import wandb
from torch import Tensor
from wandb.proto import wandb_internal_pb2

from nn_train import tracking
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import TrainingError
from nn_train.objective import Objective
from nn_train.runtime import set_up_logging
from nn_train.settings import Config
from nn_train.tracking import MetricsFile
from tests.conftest import SMALL

SOME_KEY = "a" * 40


@pytest.fixture
def own_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """wandb as on a new machine: no key, no settings, no server; and none of its processes left."""
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    for name in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / f"wandb-{name}"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # wandb lets go of its service without waiting for its end
        with suppress(ConnectionError):  # a test may have killed the service
            wandb.teardown()
        gc.collect()


@pytest.fixture
def config(table_file: Path) -> Config:
    """A short run that tracks offline."""
    return config_of(table_file, "tracking.mode=offline")


@pytest.fixture
def shown(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the program says."""
    set_up_logging()  # else the first engine would switch it off again
    monkeypatch.setattr(logging.getLogger("nn_train"), "propagate", True)
    return caplog


def config_of(table: Path, *words: str) -> Config:
    own = [
        f"data.path={table}",
        "data.target=y",
        f"run.dir={table.parent / 'run'}",
        "run.name=tracked",
        "report.dpi=40",
    ]
    lines = ["train.global_batch_size=64", "train.max_steps=6", "train.eval_every=3", "tracking.log_every_steps=1"]
    return load_config(None, [*SMALL, *own, *lines, *words])


def failures(shown: pytest.LogCaptureFixture) -> list[str]:
    """Warnings about the tracker."""
    return [record.getMessage() for record in shown.records if record.getMessage().startswith("tracking:")]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def offline_runs(run: Path) -> list[Path]:
    return sorted((run / "wandb").glob("offline-run-*"))


def read_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """What wandb wrote, once its service has written the end of the run, which it does in its own time."""
    deadline = time.monotonic() + 20
    while True:
        records = parse_records(folder)
        if any(record.HasField("exit") for record in records) or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def parse_records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """The records in the file: protobuf messages in LevelDB's log format, blocks of 32 KiB behind 7 bytes of header."""
    [path] = folder.glob("*.wandb")
    content, records, pending, position = path.read_bytes(), [], b"", 7
    while position + 7 <= len(content):
        room = 32768 - position % 32768
        if room < 7:
            position += room
            continue
        _, size, kind = struct.unpack("<IHB", content[position : position + 7])
        if kind == 0:
            break
        pending += content[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pending)
            records.append(record)
            pending = b""
    return records


def read_history(records: list[wandb_internal_pb2.Record]) -> dict[int, dict[str, Any]]:
    """Step -> what was logged there."""
    history: dict[int, dict[str, Any]] = {}
    for record in records:
        if record.HasField("history"):
            items = {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
            history.setdefault(int(items["_step"]), {}).update(items)
    return history


def read_items(records: list[wandb_internal_pb2.Record], kind: str) -> dict[str, Any]:
    """The last value of every key of the config or the summary."""
    items: dict[str, Any] = {}
    for record in records:
        if record.HasField("run") and kind == "config":
            items |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
        if record.HasField(kind):
            updates = getattr(record, kind).update
            items |= {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in updates}
    return items


# ---- metrics.jsonl


def test_rewind_drops_what_will_come_again_and_what_was_torn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    metrics = MetricsFile(path)
    metrics.rewind(0)
    assert path.read_text() == ""
    for step in range(1, 7):
        metrics.write({"step": step, "split": "train", "loss": 0.5})
    metrics.write({"step": 6, "split": "val", "loss": 0.4})
    with path.open("a") as file:
        file.write('{"step": 3, "split": "tra')
    metrics.rewind(6)
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [1, 2, 3, 4, 5, 6, 6]
    metrics.rewind(4)
    metrics.write({"step": 5, "split": "train", "loss": 0.5})
    assert [line["step"] for line in map(json.loads, path.read_text().splitlines())] == [1, 2, 3, 4, 5]
    assert [entry.name for entry in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_older_attempt_cannot_write_into_the_file_of_a_newer_one(tmp_path: Path) -> None:
    older, newer = MetricsFile(tmp_path / "m"), MetricsFile(tmp_path / "m")
    older.rewind(0)
    older.write({"step": 1, "loss": 0.5})
    newer.rewind(1)
    older.write({"step": 2, "loss": 0.1})
    newer.write({"step": 2, "loss": 0.4})
    assert [line["loss"] for line in newer.read()] == [0.5, 0.4]


@pytest.mark.parametrize("torn", ["", "{", '{"step": 2', '{"step": "2"}', "[1]", "7", "null", "\x00\x00", "\xff"])
def test_rewind_survives_any_torn_line(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + torn.encode("latin-1"))
    MetricsFile(path).rewind(9)
    assert path.read_text() == '{"step": 1}\n'


def test_numbers_that_are_not_finite_are_null(tmp_path: Path) -> None:
    metrics = MetricsFile(tmp_path / "m")
    metrics.rewind(0)
    metrics.write({"step": 1, "loss": math.nan, "norm": math.inf, "f1": 0.5})
    assert read_json(tmp_path / "m") == {"step": 1, "loss": None, "norm": None, "f1": 0.5}


# ---- wandb


def test_disabled_leaves_no_trace(table_file: Path) -> None:
    config = config_of(table_file)
    Engine(config).run()
    assert not (config.run_dir / "wandb").exists()
    assert len(read_lines(config.run_dir)) == 6 + 2


def test_offline_holds_config_history_plots_and_model(
    own_wandb: None, config: Config, shown: pytest.LogCaptureFixture
) -> None:
    metrics = Engine(config).run()
    assert failures(shown) == []
    run_id = read_json(config.run_dir / "environment.json")["run_id"]
    [folder] = offline_runs(config.run_dir)
    assert folder.name.endswith(run_id)
    records = read_records(folder)
    run = next(record.run for record in records if record.HasField("run"))
    assert (run.run_id, run.project, run.display_name) == (run_id, "nn_train", "tracked")
    logged = read_items(records, "config")
    assert logged["optim"]["peak_lr"] == config.optim.peak_lr
    assert logged["data"]["path"] == config.data.path
    history = read_history(records)
    for line in read_lines(config.run_dir):
        values = history[line["step"]]
        assert values[f"{line['split']}/loss"] == line["loss"]
        assert values["epoch"] == line["epoch"]
    assert history[6]["val/log_loss"] == metrics["selection"]["value"] or metrics["selection"]["step"] == 3
    assert history[2].keys() >= {"train/lr", "train/rows_per_s", "train/grad_norm"}
    summary = read_items(records, "summary")
    assert summary["final/test/roc_auc"] == metrics["test"]["roc_auc"]
    assert summary["final/val/log_loss"] == metrics["val"]["log_loss"]
    plots = {path.stem for path in (config.run_dir / "plots").glob("*.png")}
    pictures = {name.split("plots/")[1] for values in history.values() for name in values if "plots/" in name}
    assert {name.split(".")[0] for name in pictures} == plots
    [artifact] = [record.request.log_artifact for record in records if record.request.HasField("log_artifact")] or [
        record.artifact for record in records if record.HasField("artifact")
    ]
    names = {entry.path for entry in (getattr(artifact, "artifact", None) or artifact).manifest.contents}
    assert names == {"model.safetensors", "preprocessor.json", "preprocessor.safetensors", "config.yaml", "schema.json"}


def test_a_resumed_run_keeps_its_id(own_wandb: None, config: Config, table_file: Path) -> None:
    Engine(config).run()
    Engine(config_of(table_file, "tracking.mode=offline", "train.max_steps=9")).run()
    folders = offline_runs(config.run_dir)
    assert len(folders) == 2  # one of each attempt, for `wandb sync` to put together
    records = [read_records(folder) for folder in folders]
    ids = [record.run.run_id for part in records for record in part if record.HasField("run")]
    assert set(ids) == {read_json(config.run_dir / "environment.json")["run_id"]}
    steps = [[step for step, values in read_history(part).items() if "train/loss" in values] for part in records]
    assert steps == [[1, 2, 3, 4, 5, 6], [7, 8, 9]]
    assert [line["step"] for line in read_lines(config.run_dir) if line["split"] == "train"] == list(range(1, 10))


def test_a_run_after_a_failed_one_in_the_same_process_is_its_own(
    own_wandb: None, config: Config, table_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Objective, "loss_sum", lambda self, logits, y: logits.sum() * math.nan)
        with pytest.raises(TrainingError):
            Engine(config).run()
    other = config_of(table_file, "tracking.mode=offline", f"run.dir={table_file.parent / 'other'}")
    Engine(other).run()
    assert len(offline_runs(config.run_dir)) == 1
    [folder] = offline_runs(other.run_dir)
    assert len(read_history(read_records(folder))) >= 6


def test_a_folder_that_wandb_cannot_use_is_one_warning(
    own_wandb: None, config: Config, shown: pytest.LogCaptureFixture
) -> None:
    engine = Engine(config)
    engine.prepare()
    (config.run_dir / "wandb").write_text("a file in its place")
    engine.train()
    engine.evaluate()
    engine.report()
    [warning] = failures(shown)
    assert "wandb failed and is left alone from here" in warning
    assert read_json(config.run_dir / "status.json")["state"] == "done"
    assert len(read_lines(config.run_dir)) == 6 + 2


def test_a_wandb_that_dies_on_the_way_is_one_warning(
    own_wandb: None, config: Config, shown: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls, loss_sum = 0, Objective.loss_sum

    def killing(self: Objective, logits: Tensor, y: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        if calls == 3:
            services = [p for p in psutil.Process().children(recursive=True) if "wandb" in p.name()]
            assert services
            for service in services:
                service.kill()
        return loss_sum(self, logits, y)

    monkeypatch.setattr(Objective, "loss_sum", killing)
    Engine(config).run()
    assert len(failures(shown)) == 1
    assert read_json(config.run_dir / "status.json") == {"state": "done", "reason": "max_steps", "step": 6}


# ---- wandb online


def assert_trained_without(config: Config, shown: pytest.LogCaptureFixture, reason: str) -> None:
    Engine(config).run()
    [warning] = failures(shown)
    assert reason in warning
    assert read_json(config.run_dir / "status.json")["state"] == "done"
    assert len(read_lines(config.run_dir)) == 6 + 2


def test_online_without_a_key(own_wandb: None, table_file: Path, shown: pytest.LogCaptureFixture) -> None:
    assert_trained_without(config_of(table_file, "tracking.mode=online"), shown, "API key")


def test_online_without_a_network(
    own_wandb: None, table_file: Path, shown: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]  # nobody listens there any more
    monkeypatch.setenv("WANDB_API_KEY", SOME_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")
    monkeypatch.setattr(tracking, "START_S", 2)
    assert_trained_without(config_of(table_file, "tracking.mode=online"), shown, "refused")


class _GoingAway(BaseHTTPRequestHandler):
    """A wandb server that lets a run begin and is out of order from then on."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        query = body.decode(errors="replace") if self.path == "/graphql" else ""
        answer: dict[str, Any] | None = None
        if "UpsertBucket" in query:
            name = json.loads(body)["variables"]["name"]
            project = {"id": "p", "name": "p", "entity": {"id": "e", "name": "e"}}
            bucket = {"id": "b", "name": name, "displayName": "n", "config": "{}", "project": project}
            answer = {"upsertBucket": {"bucket": bucket | {"historyLineCount": 0}, "inserted": True}}
        elif "query Viewer" in query:
            answer = {"viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        elif "RunResumeStatus" in query:
            answer = {"model": None}
        # 503 is asked again, and uploads are what a run waits for at its end; 400 is not, which keeps this test short
        self.send_response(200 if answer else 400 if query and "mutation" not in query else 503)
        self.end_headers()
        if answer:
            self.wfile.write(json.dumps({"data": answer}).encode())

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_online_with_a_server_that_goes_away(
    own_wandb: None, table_file: Path, shown: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _GoingAway)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("WANDB_API_KEY", SOME_KEY)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{server.server_port}")
    for name, value in {"START_S": 20, "FINISH_S": 1, "RETRIES": 1, "RETRY_S": 1}.items():
        monkeypatch.setattr(tracking, name, value)
    try:
        assert_trained_without(config_of(table_file, "tracking.mode=online"), shown, "Timed out finishing run")
    finally:
        server.shutdown()
        server.server_close()
