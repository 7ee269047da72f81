"""metrics.jsonl, and the real wandb: offline, through a resume, and in every way that it can fail."""

import json
import logging
import math
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest
from wandb.proto import wandb_internal_pb2

from nn_train import tracking
from nn_train.attempts import Fenced
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import TrainingError
from nn_train.objective import Objective
from nn_train.runtime import set_up_logging, start_runtime
from nn_train.settings import Config
from nn_train.tracking import BLOCK, MetricsFile, is_whole, open_tracker
from tests.conftest import ROOT, SMALL, Start, make_table
from tests.offline_run import offline_runs, parse_records, read_history, read_items, read_json, read_lines, read_records

SOME_KEY = "a" * 40
RUN_TRACKED = ROOT / "tests" / "run_tracked.py"


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


def test_offline_holds_config_history_and_summary(
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
    best = {step: values["best/log_loss"] for step, values in history.items() if "best/log_loss" in values}
    evaluated = {line["step"]: line["log_loss"] for line in read_lines(config.run_dir) if line["split"] == "val"}
    assert best == {3: evaluated[3], 6: min(evaluated.values())}
    assert summary["best/log_loss"] == metrics["selection"]["value"]


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


# ---- wandb in trouble: each in processes of its own, and beside a run that tracks nothing


def words_of(untracked: Path, run: Path, *words: str) -> list[str]:
    """A run on the table that lies there, with the same bits on any number of processes."""
    own = [f"data.path={untracked / 'table.csv'}", "data.target=y", f"run.dir={run}", "run.name=tracked"]
    steps = ["train.global_batch_size=64", "train.max_steps=6", "train.eval_every=3", "tracking.log_every_steps=1"]
    rest = ["train.gradient_reduction=exact", f"data.cache_dir={untracked / 'cache'}", "tracking.mode=offline"]
    return [*SMALL, *own, *steps, *rest, *words]


@pytest.fixture(scope="module")
def untracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run that tracked nothing, beside its table."""
    folder = tmp_path_factory.mktemp("untracked")
    make_table(300).to_csv(folder / "table.csv", index=False)
    Engine(load_config(None, words_of(folder, folder / "run", "tracking.mode=disabled"))).run()
    return folder


def assert_trained_like(untracked: Path, run: Path, done: subprocess.CompletedProcess[str]) -> str:
    """The run is as if nothing had been tracked, and says once what is wrong; that word."""
    assert (done.returncode, done.stderr) == (0, "")
    assert (run / "model.safetensors").read_bytes() == (untracked / "run" / "model.safetensors").read_bytes()
    losses = [[(line["step"], line["split"], line["loss"]) for line in read_lines(r)] for r in (run, untracked / "run")]
    assert losses[0] == losses[1]
    assert read_json(run / "status.json") == {"state": "done", "reason": "max_steps", "step": 6}
    assert not (run / "tracked.json").exists()
    [warning] = [line for line in done.stdout.splitlines() if line.startswith("tracking:")]
    return warning


@pytest.mark.parametrize(
    ("name", "processes", "why"),
    [("SIGKILL", 1, "Error"), ("SIGTERM", 1, "Error"), ("SIGSTOP", 1, "no end within 3 s"), ("SIGKILL", 2, "Error")],
)
def test_whatever_wandbs_process_meets_the_training_does_not_notice(
    name: str, processes: int, why: str, own_wandb: None, untracked: Path, tmp_path: Path, start: Start
) -> None:
    words = words_of(untracked, tmp_path / "run")
    done = start(name, *words, processes=processes, script=RUN_TRACKED, timeout=90)
    assert why in assert_trained_like(untracked, tmp_path / "run", done)
    assert not [p for p in psutil.process_iter(["name", "environ"]) if is_left(p, tmp_path)]


def is_left(process: psutil.Process, folder: Path) -> bool:
    """Is it a process of wandb that a test in this folder started?"""
    is_alive = "wandb" in process.name() and process.status() != psutil.STATUS_ZOMBIE
    return is_alive and str(folder) in (process.info["environ"] or {}).get("XDG_CACHE_HOME", "")


@pytest.mark.parametrize("trouble", ["full", "read-only"])
def test_a_disk_that_takes_nothing_is_one_warning(
    trouble: str, own_wandb: None, untracked: Path, tmp_path: Path, start: Start, small_disk: Path
) -> None:
    if trouble == "full":
        with suppress(OSError):
            (small_disk / "filler").write_bytes(bytes(100_000))
    else:
        subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    words = words_of(untracked, tmp_path / "run")
    done = start(str(small_disk), *words, script=RUN_TRACKED, timeout=90)
    assert "OSError" in assert_trained_like(untracked, tmp_path / "run", done)


def test_a_disk_that_fills_on_the_way_is_one_warning(
    own_wandb: None, table_file: Path, small_disk: Path, shown: pytest.LogCaptureFixture
) -> None:
    config = config_of(table_file, "tracking.mode=offline", "train.max_steps=300", "train.eval_every=300")
    (small_disk / "filler").write_bytes(bytes(20_000))
    engine = Engine(config)
    engine.prepare()
    (config.run_dir / "wandb").symlink_to(small_disk)
    engine.train()
    deadline = time.monotonic() + 20
    while shutil.disk_usage(small_disk).free and time.monotonic() < deadline:
        time.sleep(0.05)
    (small_disk / "filler").unlink()  # what comes now is written, and wandb says nothing of what was not
    engine.close()
    [warning] = failures(shown)
    assert "is not whole" in warning
    assert not (config.run_dir / "tracked.json").exists()
    [folder] = offline_runs(config.run_dir)
    assert 1 < len(parse_records(folder, damaged=True)) < 300


def test_a_wandb_that_cannot_keep_up_is_one_warning(
    own_wandb: None, config: Config, shown: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "LINES", 2)  # the first six come before wandb has started
    Engine(config).run()
    [warning] = failures(shown)
    assert "2 lines wait for it" in warning
    assert not (config.run_dir / "tracked.json").exists()
    [folder] = offline_runs(config.run_dir)
    assert any(record.HasField("exit") for record in parse_records(folder))


def test_what_a_dead_wandb_lost_is_logged_again(
    own_wandb: None, table_file: Path, shown: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(tracking, "LINES", 2)
        Engine(config_of(table_file, "tracking.mode=offline")).run()
    config = config_of(table_file, "tracking.mode=offline", "train.max_steps=9")
    (config.run_dir / "tracked.json").write_text("[" * 100_000)  # damaged: not there
    Engine(config).run()
    assert len(failures(shown)) == 1
    history = read_history(read_records(offline_runs(config.run_dir)[-1]))
    assert [step for step, values in history.items() if "train/loss" in values] == list(range(1, 10))
    assert read_json(config.run_dir / "tracked.json") == {"step": 9}


def test_an_attempt_that_was_fenced_off_leaves_the_step_file_alone(
    own_wandb: None, config: Config, tmp_path: Path, shown: pytest.LogCaptureFixture
) -> None:
    def refuse() -> None:
        raise Fenced("a newer attempt owns the run")

    record = {"step": 3, "epoch": 0.5, "split": "train", "loss": 0.5}
    for check_owner, expected in ((refuse, False), (lambda: None, True)):
        accelerator = start_runtime(config.train, log_with="wandb").accelerator
        tracker = open_tracker(
            accelerator,
            config,
            run_dir=tmp_path,
            run_id="some",
            metric="log_loss",
            read_records=lambda: [record],
            check_owner=check_owner,
        )
        tracker.close()
        assert (tmp_path / "tracked.json").exists() is expected
    assert failures(shown) == []


def test_wandb_has_no_hand_in_what_the_training_does(own_wandb: None, config: Config, tmp_path: Path) -> None:
    hooks = sys.exit, sys.excepthook
    accelerator = start_runtime(config.train, log_with="wandb").accelerator
    open_tracker(accelerator, config, run_dir=tmp_path, run_id="some", metric="log_loss", read_records=list).close()
    assert (tmp_path / "tracked.json").exists()
    assert (sys.exit, sys.excepthook) == hooks
    # one would send word of every import of scikit-learn to wandb's process, and have it fail where that one is gone
    assert not [finder for finder in sys.meta_path if type(finder).__module__.startswith("wandb")]


def test_a_file_of_wandb_that_lacks_something_is_not_whole(tmp_path: Path) -> None:
    path, proto = tmp_path / "run.wandb", wandb_internal_pb2
    for size in range(BLOCK - 60, BLOCK + 20):  # the end lies before, across and after the edge of a block
        texts = [proto.Record(num=n, output=proto.OutputRecord(line="x" * size)) for n in (1, 2)]
        end = proto.Record(num=3, exit=proto.RunExitRecord(runtime=12345))
        content = write_records(path, [*texts, end])
        assert is_whole(path), size
        for cut in {1, 2, 7, 8, len(end.SerializeToString()), len(content) - BLOCK, BLOCK}:
            path.write_bytes(content[:-cut])
            assert not is_whole(path), (size, cut)
        for lost in (0, 1):
            path.write_bytes(content[: lost * BLOCK] + content[(lost + 1) * BLOCK :])
            assert not is_whole(path), (size, lost)
        write_records(path, [texts[0], end])
        assert not is_whole(path), size
    path.write_bytes(b"")
    assert not is_whole(path)
    path.unlink()
    assert not is_whole(path)


def write_records(path: Path, records: list[wandb_internal_pb2.Record]) -> bytes:
    """Write a file of wandb's as `parse_records` reads it; its content."""
    content = bytearray(b"\0" * 7)
    for record in records:
        left, kind = record.SerializeToString(), 0
        while left or kind == 0:
            room = BLOCK - len(content) % BLOCK
            if room < 7:
                content += bytes(room)
                continue
            part, left = left[: room - 7], left[room - 7 :]
            kind = (4 if kind else 1) if not left else (3 if kind else 2)
            content += struct.pack("<IHB", 0, len(part), kind) + part
    path.write_bytes(content)
    assert parse_records(path.parent) == records
    return bytes(content)


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
    for name, value in {"START_S": 20, "UPLOAD_S": 1, "RETRIES": 1, "RETRY_S": 1}.items():
        monkeypatch.setattr(tracking, name, value)
    try:
        assert_trained_without(config_of(table_file, "tracking.mode=online"), shown, "Timed out finishing run")
    finally:
        server.shutdown()
        server.server_close()
