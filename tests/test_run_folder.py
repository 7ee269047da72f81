"""The run folder: whole files, one owner, no foreign file touched, no other run gone on with."""

import json
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from nn_train import environment
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import RunFolderError, UserError
from nn_train.run_folder import (
    LOCK_FILE,
    OUTPUTS,
    START_FILES,
    clear,
    holds_run,
    own,
    read_config,
    read_json,
    refuse_other_run,
    start_folder,
    write_file,
    write_json,
    write_status,
)
from nn_train.settings import Config, RunConfig
from tests.conftest import PAGE, ROOT, SMALL, make_table

WORDS = (*SMALL, "data.target=y", "train.max_steps=2")


def config_of(table: Path, *words: str) -> Config:
    return load_config(None, [*WORDS, f"data.path={table}", f"run.dir={table.parent / 'run'}", *words])


def train(config: Config) -> Engine:
    engine = Engine(config)
    try:
        engine.prepare()
        engine.train()
        engine.evaluate()
    finally:
        engine.close()
    return engine


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def fill(disk: Path) -> None:
    """Use up the last byte."""
    with (disk / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            pass


def test_a_reader_sees_a_file_whole(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [bytes([n]) * 200_000 for n in range(2)]
    write_file(path, contents[0])
    writer = threading.Thread(target=lambda: [write_file(path, contents[n % 2]) for n in range(60)])
    writer.start()
    while writer.is_alive():
        assert path.read_bytes() in contents
    writer.join()
    assert names(tmp_path) == {"file"}


def test_a_write_that_fails_leaves_the_old_file(small_disk: Path) -> None:
    write_file(small_disk / "file", "old")
    with pytest.raises(OSError, match="No space left") as caught:
        write_file(small_disk / "file", b"0" * 100_000)
    assert caught.value.filename == str(small_disk / "file")
    assert (small_disk / "file").read_text() == "old"
    assert names(small_disk) == {"file"}


def test_numbers_that_json_does_not_know_become_null(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [float("nan"), (1.0, float("inf"))], "b": {"c": -float("inf"), "ü": "ü"}})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [None, [1.0, None]], "b": {"c": None, "ü": "ü"}}
    assert "ü" in (tmp_path / "a.json").read_text(encoding="utf-8")


def test_a_damaged_file_of_the_run_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": ')
    with pytest.raises(RunFolderError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunFolderError, match=r"b\.json"):
        read_json(tmp_path / "b.json")


OWN = """
import sys, time
from pathlib import Path
from nn_train.run_folder import own
with own(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def test_a_folder_has_one_owner_until_that_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", OWN, str(tmp_path)]
    other = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    try:
        assert other.stdout is not None
        assert other.stdout.readline() == "mine\n"
        with pytest.raises(RunFolderError, match="another process trains in this run folder"), own(tmp_path):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        with own(tmp_path):
            pass
        with own(tmp_path):
            pass
    finally:
        other.kill()
        other.communicate()


def test_a_folder_has_one_owner_inside_a_process_too(tmp_path: Path) -> None:
    with own(tmp_path), pytest.raises(RunFolderError), own(tmp_path):
        pass


def test_what_a_folder_holds(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not holds_run(folder)
    folder.mkdir()
    assert not holds_run(folder)
    with own(folder):
        assert not holds_run(folder)
    (folder / "thesis.doc").write_text("years of work")
    with pytest.raises(RunFolderError, match="not empty and holds no run"):
        holds_run(folder)
    (folder / "config.yaml").write_text("")
    assert holds_run(folder)
    with pytest.raises(RunFolderError, match="is a file"):
        holds_run(folder / "thesis.doc")


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "checkpoints", "status.json"])
def test_results_without_a_config_are_not_taken_for_an_empty_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(RunFolderError, match="holds no run"):
        holds_run(tmp_path)


def test_a_start_that_was_killed_can_be_made_again(table_file: Path) -> None:
    config = config_of(table_file)
    train(config)
    for name in names(config.run_dir) - {*START_FILES[:3], LOCK_FILE}:
        path = config.run_dir / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (config.run_dir / ".git.diff.77.tmp").write_text("half")
    assert not holds_run(config.run_dir)
    train(config)
    assert read_json(config.run_dir / "status.json")["state"] == "done"


def test_a_new_start_that_fails_leaves_nothing(small_disk: Path, table_file: Path) -> None:
    config, files = config_of(table_file), [("schema.json", b"{}"), ("data.json", b"0" * 100_000)]
    for folder in (small_disk / "new", small_disk / "runs" / "new"):
        with pytest.raises(OSError, match="No space left"):
            start_folder(folder, config, files=files)
        assert not folder.exists()
    existing = small_disk / "existing"
    existing.mkdir()
    (existing / LOCK_FILE).touch()
    with pytest.raises(OSError, match="No space left"):
        start_folder(existing, config, files=files)
    assert names(existing) == {LOCK_FILE}


def test_an_old_run_survives_a_start_that_fails(small_disk: Path, table_file: Path) -> None:
    config = config_of(table_file)
    folder = small_disk / "run"
    start_folder(folder, config, files=[("schema.json", b"{}")])
    (folder / "checkpoints" / "step-00000001").mkdir(parents=True)
    before = names(folder)
    fill(small_disk)
    with pytest.raises(OSError, match="No space left"):
        start_folder(folder, config, files=[])
    assert names(folder) == before
    assert (folder / "checkpoints" / "step-00000001").exists()
    assert read_config(folder) == config


def test_clear_removes_what_a_run_wrote_and_nothing_else(table_file: Path) -> None:
    config = config_of(table_file, *PAGE, "tracking.mode=offline", "train.profile=true")
    Engine(config).run()
    assert names(config.run_dir) == {*OUTPUTS, LOCK_FILE, "attempts"}
    (config.run_dir / "notes.txt").write_text("mine")
    (config.run_dir / ".metrics.json.99.tmp").write_text("left by a kill")
    elsewhere = table_file.parent / "elsewhere"
    shutil.move(config.run_dir / "plots", elsewhere)
    (config.run_dir / "plots").symlink_to(elsewhere)
    kept = names(elsewhere)
    clear(config.run_dir)
    # the attempts stay: their numbers may only grow, or an older one could take itself for the newest
    assert names(config.run_dir) == {"notes.txt", LOCK_FILE, "attempts"}
    assert names(elsewhere) == kept


def test_never_replaces_the_run(table_file: Path) -> None:
    train(config_of(table_file))
    run = table_file.parent / "run"
    (run / "notes.txt").write_text("mine")
    run_id = read_json(run / "environment.json")["run_id"]
    with pytest.raises(RunFolderError, match=r"run\.seed: 0 -> 1"):
        train(config_of(table_file, "run.seed=1"))
    train(config_of(table_file, "run.seed=1", "checkpoint.resume=never"))
    assert read_json(run / "environment.json")["run_id"] != run_id
    assert read_config(run).run.seed == 1
    assert (run / "notes.txt").read_text() == "mine"


DAMAGED = {
    "empty": b"",
    "not YAML": b"data: [",
    "not text": b"\xff\xfe\x00",
    "a list": b"- data",
    "of another version": b"data: {path: a.csv, target: y}\nmodel: {depth: 3}",
    "without a target": b"data: {path: a.csv}",
    "a wrong type": b"data: {path: a.csv, target: y}\ntrain: {max_epochs: many}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_config_is_refused_with_a_way_out(table_file: Path, content: bytes) -> None:
    config = config_of(table_file)
    config.run_dir.mkdir()
    (config.run_dir / "config.yaml").write_bytes(content)
    with pytest.raises(RunFolderError, match="cannot read") as caught:
        read_config(config.run_dir)
    assert caught.value.where == str(config.run_dir)
    assert "checkpoint.resume=never" in caught.value.fix
    train(config_of(table_file, "checkpoint.resume=never"))
    assert read_config(config.run_dir) == config_of(table_file, "checkpoint.resume=never")


def refusal(folder: Path, old: Config, new: Config, fingerprint: str = "f") -> str:
    """What refuse_other_run says, or nothing."""
    write_json(folder / "data.json", {"fingerprint": "f"})
    try:
        refuse_other_run(folder, old, new, fingerprint=fingerprint)
    except RunFolderError as error:
        return error.what
    return ""


def test_every_key_that_differs_is_named(table_file: Path) -> None:
    old = config_of(table_file)
    words = ("optim.peak_lr=0.5", "model.width=17", "train.max_epochs=3", "data.columns={age: categorical}")
    what = refusal(table_file.parent, old, config_of(table_file, *words, "split.seed=4"))
    for line in (
        "optim.peak_lr: 0.002 -> 0.5",
        "model.width: 16 -> 17",
        "split.seed: 0 -> 4",
        "data.columns: {} -> {'age': 'categorical'}",
    ):
        assert line in what
    assert what.count("->") == 4


FREE: dict[str, Any] = {
    "checkpoint.every_steps": 5,
    "checkpoint.every_time": "no",
    "checkpoint.keep_last": 4,
    "tracking.project": "other",
    "tracking.log_every_steps": 3,
    "report.dpi": 50,
    "evaluation.threshold_metric": "accuracy",
    "run.dir": "elsewhere",
    "run.name": "other",
    "data.cache_dir": "elsewhere",
    "train.max_epochs": 7,
    "train.max_steps": 9,
    "train.max_time": "2h",
    "train.check_every_steps": 3,
}


@pytest.mark.parametrize("key", FREE)
@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_keys_that_touch_no_step_are_free(table_file: Path, key: str, schedule: str) -> None:
    old = config_of(table_file, f"optim.schedule={schedule}")
    new = config_of(table_file, f"optim.schedule={schedule}", f"{key}={FREE[key]}")
    assert old != new
    is_stretched = schedule == "cosine" and key in ("train.max_epochs", "train.max_steps")
    assert (key in refusal(table_file.parent, old, new)) == is_stretched
    assert bool(refusal(table_file.parent, old, new)) == is_stretched


def test_every_other_key_is_compared(table_file: Path) -> None:
    free = {key.split(".")[0] for key in FREE if key.split(".")[0] not in ("run", "data", "train")}
    assert free == {"checkpoint", "tracking", "report", "evaluation"}
    for word in ("run.seed=1", "train.grad_clip=no", "train.global_batch_size=8", "train.early_stopping=3",
                 "preprocess.scaler=robust", "data.drop=age", "split.val=0.2", "train.eval_every=7"):  # fmt: skip
        assert word.split("=")[0] in refusal(table_file.parent, config_of(table_file), config_of(table_file, word))


def test_a_table_may_move_and_may_not_change(table_file: Path) -> None:
    train(config_of(table_file))
    run = table_file.parent / "run"
    moved = table_file.parent / "moved" / table_file.name
    moved.parent.mkdir()
    shutil.move(table_file, moved)
    words = (f"run.dir={run}", "train.max_steps=4")
    train(config_of(moved, *words))
    assert read_json(run / "status.json") == {"state": "done", "reason": "max_steps", "step": 4}
    assert read_config(run).data.path == str(moved)
    make_table(300, seed=1).to_csv(moved, index=False)
    with pytest.raises(RunFolderError, match="the content of"):
        train(config_of(moved, *words))
    assert read_json(run / "status.json")["state"] == "done"


def test_a_folder_in_use_is_refused_and_left(table_file: Path) -> None:
    config = config_of(table_file)
    train(config)
    before = {path.name: path.read_bytes() for path in config.run_dir.iterdir() if path.is_file()}
    with own(config.run_dir):
        for words in ((), ("checkpoint.resume=never",), ("train.max_steps=4",)):
            with pytest.raises(RunFolderError, match="another process"):
                train(config_of(table_file, *words))
    assert {path.name: path.read_bytes() for path in config.run_dir.iterdir() if path.is_file()} == before


def test_a_place_that_cannot_be_written_is_one_message(table_file: Path) -> None:
    config = config_of(table_file)
    blocked = config.model_copy(update={"run": RunConfig(dir=str(table_file / "run"))})
    with pytest.raises(UserError, match="refused a file operation") as caught:
        train(blocked)
    assert "run.dir=DIR" in caught.value.fix


def test_a_failure_is_noted(table_file: Path) -> None:
    config = config_of(table_file)
    engine = Engine(config)
    engine.prepare()
    with torch.no_grad():
        next(engine.training.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError):
        engine.train()
    status = read_json(config.run_dir / "status.json")
    assert status["state"] == "failed"
    assert "step 1" in status["reason"]
    with own(config.run_dir):
        pass


def test_the_status_is_plain(tmp_path: Path) -> None:
    write_status(tmp_path, "stopped", reason="SIGTERM", step=7)
    assert read_json(tmp_path / "status.json") == {"state": "stopped", "reason": "SIGTERM", "step": 7}


def test_the_environment_names_what_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    described = environment.describe_environment(num_processes=2, device="cpu")
    assert described["processes"] == 2
    assert described["packages"]["torch"] == torch.__version__
    assert described["run_id"] != environment.describe_environment(num_processes=2, device="cpu")["run_id"]
    monkeypatch.setattr(environment, "project_root", lambda: tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert environment.git_diff() == ""  # no repository
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    (tmp_path / "file.txt").write_bytes(b"one\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "one"]):
        subprocess.run([*git, *words], check=True)
    clean = environment.describe_environment(num_processes=1, device="cpu")
    assert len(clean["commit"]) == 40
    assert not clean["dirty"]
    (tmp_path / "file.txt").write_bytes("na\xefve\n".encode("latin-1"))
    assert environment.describe_environment(num_processes=1, device="cpu")["dirty"]
    assert "+na\ufffdve" in environment.git_diff()
