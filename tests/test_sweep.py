"""Sweeps: the file that is shipped under wandb's own commands, and trials without a server."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from nn_train import crew
from nn_train import sweep as sweep_module
from nn_train.config import load_config
from nn_train.errors import ConfigError, UserError
from nn_train.sweep import LocalSweep, build_sweep, parse_arguments
from nn_train.sweep_space import DISTRIBUTIONS, Sweep, read_sweep, to_words
from tests.conftest import ROOT, SMALL, make_table
from tests.offline_run import offline_runs, read_history, read_items, read_json, read_records
from tests.wandb_server import serve

SHIPPED = ROOT / "configs" / "sweep.yaml"
COMMAND = ["${env}", "python", "-m", "nn_train.train", "${args_no_hyphens}"]
METRIC = {"name": "best/log_loss", "goal": "minimize"}


def write_sweep(folder: Path, parameters: dict[str, Any], **keys: Any) -> Path:
    path = folder / "sweep.yaml"
    values = {"method": "random", "metric": METRIC, "command": COMMAND, "parameters": parameters}
    path.write_text(yaml.safe_dump(values | keys, sort_keys=False))
    return path


def read(folder: Path, parameters: dict[str, Any], **keys: Any) -> Sweep:
    return read_sweep(write_sweep(folder, parameters, **keys))


# ---- the file


def test_the_shipped_file_is_what_the_program_takes() -> None:
    sweep = read_sweep(SHIPPED)
    for index in range(50):
        words = to_words(sweep.settings(index, seed=3))
        config = load_config(ROOT / "configs" / "telco.yaml", words)
        drawn = {word.partition("=")[0]: word.partition("=")[2] for word in words}
        assert float(drawn["optim.peak_lr"]) == config.optim.peak_lr
        assert int(drawn["model.width"]) == config.model.width
    assert (ROOT / yaml.safe_load(SHIPPED.read_text())["program"]).exists()


def test_draws_depend_on_seed_index_and_name_alone(tmp_path: Path) -> None:
    one = {"optim.peak_lr": {"distribution": "log_uniform_values", "min": 0.001, "max": 0.1}}
    two = {"model.width": {"values": [8, 16, 32]}} | one
    small, large = read(tmp_path, one), read(tmp_path, two)
    for index in range(20):
        assert small.settings(index, seed=1)["optim.peak_lr"] == large.settings(index, seed=1)["optim.peak_lr"]
    draws = [small.settings(index, seed=seed)["optim.peak_lr"] for seed in (0, 1) for index in range(100)]
    assert len(set(draws)) == 200
    # fixed for good: another value would be another trial in a folder that goes on
    assert small.settings(0, seed=0) == {"optim.peak_lr": FIRST_DRAW}


FIRST_DRAW = 0.0206104


@pytest.mark.parametrize(
    ("keys", "low", "high"),
    [
        ({"min": 1, "max": 4}, 1, 4),
        ({"min": 0.5, "max": 2.5}, 0.5, 2.5),
        ({"distribution": "q_uniform", "q": 16, "min": 64, "max": 500}, 64, 500),
        ({"distribution": "q_uniform", "q": 0.05, "min": 0.0, "max": 0.5}, 0.0, 0.5),
        ({"distribution": "log_uniform_values", "min": 0.0001, "max": 0.1}, 0.0001, 0.1),
        ({"distribution": "q_log_uniform_values", "q": 8, "min": 8, "max": 1024}, 8, 1024),
    ],
)
def test_draws_fill_their_range(tmp_path: Path, keys: dict[str, Any], low: float, high: float) -> None:
    sweep = read(tmp_path, {"model.width": keys})
    drawn = [sweep.settings(index, seed=0)["model.width"] for index in range(2000)]
    assert low <= min(drawn) <= low + 0.05 * (high - low)
    assert high - 0.1 * (high - low) <= max(drawn) <= high
    if "q" in keys:
        assert all(abs(value / keys["q"] - round(value / keys["q"])) < 1e-9 or value in (low, high) for value in drawn)
    if isinstance(keys["min"], int) and isinstance(keys.get("q", 1), int):
        assert all(type(value) is int for value in drawn)
    kind = sweep.parameters["model.width"]["distribution"]
    middle = math.sqrt(low * high) if "log" in kind else (low + high) / 2
    below = sum(value < middle for value in drawn) + sum(value == middle for value in drawn) / 2
    assert 0.44 < below / len(drawn) < 0.56
    if kind == "int_uniform":
        assert min(Counter(drawn).values()) > 430


def test_values_are_drawn_by_their_probabilities(tmp_path: Path) -> None:
    parameters = {
        "model.width": {"values": [8, 16, 32]},
        "model.dropout": {"values": [0.0, 0.5], "probabilities": [0.9, 0.1]},
        "run.seed": {"value": 7},
    }
    sweep = read(tmp_path, parameters)
    drawn = [sweep.settings(index, seed=0) for index in range(3000)]
    assert all(900 < count < 1100 for count in Counter(d["model.width"] for d in drawn).values())
    assert 2600 < Counter(d["model.dropout"] for d in drawn)[0.0] < 2800
    assert {d["run.seed"] for d in drawn} == {7}


def test_a_grid_holds_every_combination_once(tmp_path: Path) -> None:
    parameters = {
        "model.width": {"values": [8, 16]},
        "model.num_blocks": {"min": 1, "max": 3},
        "run.seed": {"value": 0},
    }
    sweep = read(tmp_path, parameters, method="grid")
    assert sweep.num_grid == 6
    trials = [sweep.settings(index, seed=5) for index in range(6)]
    assert [(t["model.width"], t["model.num_blocks"]) for t in trials] == [(w, b) for w in (8, 16) for b in (1, 2, 3)]
    assert list(trials[0]) == list(parameters)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**40), st.integers(0, 10**6))
def test_any_draw_is_written_as_wandbs_agent_writes_it(index: int, seed: int) -> None:
    drawn = read_sweep(SHIPPED).settings(index, seed=seed)
    args = {"args": {name: {"value": value} for name, value in drawn.items()}}
    assert to_words(drawn) == create_sweep_command_args(args)["args_no_hyphens"]


WIDTH = {"model.width": {"values": [8, 16]}}


@pytest.mark.parametrize(
    ("parameters", "keys", "message"),
    [
        (WIDTH, {"method": "bayes"}, "method bayes needs wandb's server"),
        (WIDTH, {"metric": {"name": "final/test/log_loss"}}, "a validation metric and its goal"),
        (WIDTH, {"metric": {"name": "val/log_loss"}}, "nothing that trials are compared by"),
        (WIDTH, {"metric": {"name": "best/log_loss", "goal": "down"}}, "nothing that trials are compared by"),
        (WIDTH, {"metric": None}, "metric None is nothing"),
        (WIDTH, {"command": ["python", "${args}"]}, r"does not hold \$\{args_no_hyphens\}"),
        (WIDTH, {"command": ["${program}", "${args_no_hyphens}"]}, r"\$\{program\} of the command means nothing"),
        (WIDTH, {"run_cap": 0}, "run_cap 0 is no number of trials"),
        (WIDTH, {"run_cap": "4"}, "run_cap 4 is no number of trials"),
        ({}, {}, "a sweep has parameters"),
        ({"width": {"values": [1]}}, {}, "'width' is no setting"),
        ({"model": {"parameters": {"width": {"values": [1]}}}}, {}, "'model' is no setting"),
        ({"model.width": 3}, {}, "model.width has no keys of its own"),
        ({"optim.peak_lr": {"min": "1e-4", "max": 0.1}}, {}, "optim.peak_lr.min is '1e-4', which YAML 1.1 reads as no"),
        ({"optim.peak_lr": {"min": 0.1, "max": 0.1}}, {}, "min is not below max"),
        ({"optim.peak_lr": {"min": 0.1}}, {}, "min is not below max"),
        ({"optim.peak_lr": {}}, {}, "min is not below max"),
        ({"optim.peak_lr": {"distribution": "normal", "mu": 0}}, {}, "distribution normal is not drawn here"),
        ({"optim.peak_lr": {"distribution": "log_uniform_values", "min": 0, "max": 1}}, {}, "is not above 0"),
        ({"model.width": {"distribution": "int_uniform", "min": 0.5, "max": 1}}, {}, "are whole numbers"),
        ({"model.width": {"values": []}}, {}, "model.width has no values"),
        ({"model.width": {"values": [1, 2], "probabilities": [0.5]}}, {}, "are not one for each value"),
        ({"optim.peak_lr": {"min": 0.1, "max": 0.2}}, {"method": "grid"}, "a grid has no end of uniform"),
    ],
)
def test_a_file_that_starts_no_trials_is_refused(
    tmp_path: Path, parameters: dict[str, Any], keys: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        read(tmp_path, parameters, **keys)
    assert raised.value.where == str(tmp_path / "sweep.yaml")
    assert raised.value.fix


@pytest.mark.parametrize(("text", "message"), [("a: [", "this is not YAML"), ("- 1", "a sweep has parameters")])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_sweep(tmp_path / "s.yaml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_sweep(tmp_path / "none.yaml")


def test_every_distribution_is_tested_above() -> None:
    assert set(DISTRIBUTIONS) == {"constant", "categorical", "categorical_w_probabilities", "int_uniform", "uniform",
                                  "q_uniform", "log_uniform_values", "q_log_uniform_values"}  # fmt: skip


# ---- trials without a server


def words_of(folder: Path) -> list[str]:
    own = [f"data.path={folder / 'table.csv'}", "data.target=y", f"data.cache_dir={folder / 'cache'}"]
    steps = ["train.global_batch_size=64", "train.max_steps=6", "train.eval_every=3"]
    small = [word for word in SMALL if not word.startswith(("model.width", "tracking"))]
    # tracking.mode=disabled: the word of the command line counts, and not the sweep's
    return [*small, *own, *steps, "tracking.mode=disabled"]


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, "-m", "nn_train.sweep", *words],
        cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run(folder: Path, *words: str, code: int = 0) -> tuple[str, str]:
    process = start(folder, *words)
    said, error = process.communicate(timeout=300)
    assert process.returncode == code, said + error
    return said, error


def read_table(folder: Path) -> list[dict[str, str]]:
    with (folder / "trials.csv").open() as file:
        return list(csv.DictReader(file))


def make_folder(folder: Path) -> Path:
    """A folder with a table."""
    folder.mkdir()
    make_table(300).to_csv(folder / "table.csv", index=False)
    return folder


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "folder")


RATES = {"optim.peak_lr": {"values": [0.00001, 0.01, 100.0]}, "model.width": {"values": [8]}}


class Swept:
    """A sweep that was stopped in its first trial, and gone on with: one more trial, and one that no trial can be."""

    def __init__(self, place: Path):
        self.place = make_folder(place / "a folder")
        hyperband = {"type": "hyperband", "min_iter": 3}
        self.file = write_sweep(self.place, RATES, method="grid", name="two rates", early_terminate=hyperband)
        self.folder = self.place / "runs" / "sweep-two-rates"
        self.words = [*words_of(self.place), *(f"train.max_{name}=2000" for name in ("steps", "epochs"))]
        self.words += ["train.eval_every=50", "checkpoint.every_steps=50"]
        self.stop()
        self.said, self.error = self.run("--parallel=2", code=1)
        self.best, self.other, self.failed = read_table(self.folder)

    def stop(self) -> None:
        process = start(self.place, self.file.name, *self.words)
        status, deadline = self.folder / "trial-0" / "status.json", time.monotonic() + 200
        while not (status.exists() and read_json(status)["step"] >= 50) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        self.stopped_said, self.stopped_error = process.communicate(timeout=300)
        self.stopped_code, self.stopped_status = process.returncode, read_json(status)
        self.stopped_table, self.stopped_files = read_table(self.folder), {path.name for path in self.folder.iterdir()}

    def run(self, *words: str, code: int) -> tuple[str, str]:
        return run(self.place, self.file.name, *self.words, *words, code=code)


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    return Swept(tmp_path_factory.mktemp("swept"))


def test_a_sweep_that_is_stopped_has_its_trial_saved(swept: Swept) -> None:
    assert (swept.stopped_code, swept.stopped_error) == (75, "")
    assert "early_terminate is left out" in swept.stopped_said
    assert "stopped; the same command goes on from there" in swept.stopped_said
    assert swept.stopped_status["state"] == "stopped"
    assert 50 <= swept.stopped_status["step"] < 2000
    assert [line["state"] for line in swept.stopped_table] == ["stopped", "waiting", "waiting"]
    assert swept.stopped_files == {".lock", "sweep.json", "trial-0", "trial-0.log", "trials.csv"}


def test_the_same_command_goes_on_and_finds_again_what_is_finished(swept: Swept) -> None:
    trial = swept.folder / "trial-0"
    events = [json.loads(text) for text in (trial / "events.jsonl").read_text().splitlines()]
    assert [e["step"] for e in events if e["event"] == "start"] == [0, swept.stopped_status["step"]]
    assert read_json(trial / "status.json")["step"] == 2000
    ended = [(swept.folder / f"trial-{at}" / "status.json").stat().st_mtime_ns for at in (0, 1)]
    said, _ = swept.run(code=1)
    assert [(swept.folder / f"trial-{at}" / "status.json").stat().st_mtime_ns for at in (0, 1)] == ended
    assert [line.split(":")[0] for line in said.splitlines() if line.startswith("trial ") and ":" in line] == [
        "trial 2"
    ]


def test_trials_are_ranked_by_what_their_runs_hold(swept: Swept) -> None:
    assert (swept.best["trial"], swept.best["optim.peak_lr"], swept.other["trial"]) == ("1", "0.01", "0")
    for line in (swept.best, swept.other):
        trial = Path(line["run"])
        config, metrics = yaml.safe_load((trial / "config.yaml").read_text()), read_json(trial / "metrics.json")
        assert float(line["best/log_loss"]) == metrics["selection"]["value"]
        assert config["optim"]["peak_lr"] == float(line["optim.peak_lr"])
        assert config["run"]["name"] == f"two-rates-{line['trial']}"
        assert config["tracking"]["group"] == "two-rates"
        assert config["tracking"]["mode"] == "disabled"  # the word of the command line counts
    assert float(swept.best["best/log_loss"]) < float(swept.other["best/log_loss"])
    assert f"best: trial 1, {swept.folder / 'trial-1'}: optim.peak_lr=0.01 model.width=8" in swept.said


def test_a_trial_that_fails_costs_no_other(swept: Swept) -> None:
    assert swept.error == ""
    assert (swept.failed["trial"], swept.failed["state"], swept.failed["best/log_loss"]) == ("2", "failed", "")
    assert swept.failed["reason"].startswith("exit code 2: ")
    assert "optim.peak_lr=100" in swept.failed["reason"]
    assert swept.failed["reason"] in swept.said


def test_another_sweep_in_the_same_folder_is_refused(swept: Swept) -> None:
    _, error = swept.run("--seed=1", code=2)
    assert "this folder holds a sweep with another seed" in error
    for keys, word in (
        ({"method": "random", "run_cap": 1}, "method"),
        ({"metric": METRIC | {"name": "final/val/f1"}}, "metric"),
    ):
        other = read_sweep(write_sweep(swept.place / "runs", RATES, **{"method": "grid"} | keys))
        local = LocalSweep(other, swept.folder, count=1, seed=0, words=swept.words)
        with pytest.raises(UserError, match=f"holds a sweep with another {word}"):
            local.check()


@pytest.mark.parametrize(
    ("metric", "state", "reason"),
    [
        ("best/log_loss", "done", ""),
        ("final/val/roc_auc", "done", ""),
        ("best/roc_auc", "failed", "its weights were chosen by log_loss: metric: {name: best/log_loss}"),
        ("final/val/rmse", "failed", "it has no finite final/val/rmse"),
    ],
)
def test_a_trial_is_measured_by_its_validation_rows(swept: Swept, metric: str, state: str, reason: str) -> None:
    sweep = read_sweep(write_sweep(swept.place / "runs", RATES, metric=METRIC | {"name": metric}))
    trial = LocalSweep(sweep, swept.folder, count=1, seed=0, words=[]).trials[0]
    LocalSweep(sweep, swept.folder, count=1, seed=0, words=[]).read(trial)
    metrics = read_json(trial.run_dir / "metrics.json")
    values = {"best/log_loss": metrics["selection"]["value"], "final/val/roc_auc": metrics["val"]["roc_auc"]}
    assert (trial.state, trial.reason, trial.value) == (state, reason, values.get(metric))


def test_trials_are_sorted_by_the_goal(tmp_path: Path) -> None:
    for goal, order in (("minimize", [1, 2, 0, 3]), ("maximize", [0, 2, 1, 3])):
        local = LocalSweep(read(tmp_path, WIDTH, metric=METRIC | {"goal": goal}), tmp_path, count=4, seed=0, words=[])
        for trial, value in zip(local.trials, (0.9, 0.1, 0.5, None), strict=True):
            trial.value = value
        assert [trial.index for trial in local.ranked()] == order


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "no file is named"),
        (["{file}", "--counts=3"], "unknown option --counts=3"),
        (["{file}", "--count=x"], "invalid int value"),
        (["{file}", "--count=0"], "--count 0 is less than 1"),
        (["{file}", "--parallel=0"], "--parallel 0 is less than 1"),
        (["{file}", "--seed=-1"], "--seed -1 is less than 0"),
        (["{file}"], "how many trials?"),
        (["{file}", "--count=1", "model.width=3"], "model.width is set by the sweep"),
        (["{file}", "--count=1", "run.dir=x"], "run.dir is set by the sweep"),
        (["{file}", "--count=1", "width"], "'width' is not section.key=value"),
    ],
)
def test_wrong_words_are_refused(tmp_path: Path, words: list[str], message: str) -> None:
    file = write_sweep(tmp_path, WIDTH)
    with pytest.raises(UserError, match=message):
        build_sweep(parse_arguments([word.format(file=file) for word in words]))


def test_settings_that_no_trial_can_have_are_refused_before_the_first(table: Path) -> None:
    file = write_sweep(table, {"model.widht": {"values": [8]}})
    _, error = run(table, file.name, "--count=1", *words_of(table), code=2)
    assert "unknown key 'model.widht'; did you mean 'model.width'?" in error
    assert not (table / "runs" / "sweep-sweep" / "trial-0").exists()


def test_two_sweeps_in_one_folder_are_refused(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write_sweep(table, WIDTH)
    (table / "s").mkdir()
    with crew.FileLock(table / "s" / ".lock"):
        assert sweep_module.main([str(file), "--count=1", f"--dir={table / 's'}"]) == 2
    assert "another process runs this sweep" in capsys.readouterr().err


def test_a_trial_is_not_taken_for_one_of_an_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"):
        monkeypatch.setenv(name, "x")
    own = crew.own_environment()
    assert {name for name in own if name.startswith("WANDB_")} & {
        "WANDB_SWEEP_ID", "WANDB_RUN_ID", "WANDB_SWEEP_PARAM_PATH", "WANDB_DIR"} == {"WANDB_DIR"}  # fmt: skip


# ---- the shipped file under wandb's own commands


def test_wandb_takes_the_file_and_its_agent_runs_trials_apart(own_wandb: None, tmp_path: Path) -> None:
    small = {"data.max_rows": 400, "train.max_steps": 6, "train.eval_every": 3, "report.baselines": False,
             "report.importance": False, "report.page": False, "tracking.mode": "offline"}  # fmt: skip
    drawn = [read_sweep(SHIPPED).settings(index, seed=0) | {"model.width": 16 + index} for index in (0, 1)]
    trials = [(name, values | small) for name, values in zip(("r1", "r2"), drawn, strict=True)]
    with serve(trials) as server:
        environment = os.environ | {
            "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}",
            "WANDB_API_KEY": "a" * 40,
            "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }
        for words in (["sweep", str(SHIPPED)], ["agent", "--count=2", "e/nn_train/s1"]):
            done = subprocess.run(
                [sys.executable, "-m", "wandb", *words],
                cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
            assert done.returncode == 0, done.stdout + done.stderr
    assert server.sweep["metric"] == METRIC
    for name, chosen in trials:
        run_dir = tmp_path / "runs" / f"s1-{name}"
        assert read_json(run_dir / "status.json")["state"] == "done"
        config = load_config(run_dir / "config.yaml")
        assert config.optim.peak_lr == chosen["optim.peak_lr"]
        assert config.model.width == chosen["model.width"]
        [folder] = offline_runs(run_dir)
        records = read_records(folder)
        logged = next(record.run for record in records if record.HasField("run"))
        assert (logged.run_id, logged.sweep_id, logged.display_name) == (name, "s1", f"s1-{name}")
        summary = read_items(records, "summary")
        assert summary[METRIC["name"]] == read_json(run_dir / "metrics.json")["selection"]["value"]
        # hyperband compares runs by what they logged on the way
        assert sum(METRIC["name"] in values for values in read_history(records).values()) == 2
