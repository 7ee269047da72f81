"""A measured window of the training: what it says, that it names a slow process, and that it changes no bit."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.step_profile import plan_window
from nn_train.step_times import PHASES, describe_straggler, summarise_steps, tabulate
from tests.conftest import PAGE, ROOT, SMALL, make_table, run_world
from tests.test_worlds import digest, last_weights

WORDS = (*SMALL, "data.target=y", "train.global_batch_size=64", "train.max_steps=60", "train.eval_every=20")
PROFILE = "train.profile=true"
EXACT = "train.gradient_reduction=exact"
# a network of the user's own whose forward is slow on process 1
SLOW_NET = """
import os, time
from torch import nn

class Net(nn.Module):
    def __init__(self, num_numbers, num_outputs, **_):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(num_numbers, 64), nn.ReLU(), nn.Linear(64, num_outputs))

    def forward(self, x_num, x_cat):
        if os.environ.get("RANK") == "1" and self.training:
            time.sleep(0.02)
        return self.layers(x_num)
"""
OWN = ("model.name=custom", "model.embedding=auto", "model.width=auto", "model.num_embedding=auto",
       "model.target=slow_nets:Net")  # fmt: skip


def read_profile(run: Path) -> dict[str, Any]:
    return json.loads((run / "profile.json").read_text())


def read_trace(run: Path, rank: int = 0) -> dict[str, Any]:
    return json.loads(gzip.decompress((run / "profile" / f"trace-rank{rank}.json.gz").read_bytes()))


def train(folder: Path, name: str, *words: str) -> Path:
    table = folder / "table.csv"
    if not table.exists():
        make_table(400).to_csv(table, index=False)
    Engine(load_config(None, [*WORDS, f"data.path={table}", f"run.dir={folder / name}", *words])).run()
    return folder / name


# ---- what is summed up


def processes_of(*compute_s: float) -> list[dict[str, Any]]:
    """Processes that compute so long in each forward, and leave the exchange 2 ms after the last of them is there."""
    until_s = max(compute_s)
    return [
        {"host": f"n{rank}", "steps": [{"forward": own, "communication": until_s - own + 0.002}] * 5}
        for rank, own in enumerate(compute_s)
    ]


def test_waiting_is_apart_from_communication_and_the_slow_process_is_named() -> None:
    found = summarise_steps(processes_of(0.010, 0.010, 0.010, 0.018), first_step=11, device="cpu")
    assert found["steps"] == [11, 15]
    assert sum(found["shares"].values()) == pytest.approx(1)
    assert [process["seconds"]["waiting"] for process in found["processes"]] == pytest.approx([0.008] * 3 + [0])
    assert [process["seconds"]["communication"] for process in found["processes"]] == pytest.approx([0.002] * 4)
    assert describe_straggler(found) == (
        "process 3 on host n3 is 1.8 times as slow as the median of the others in forward: "
        "18.00 ms a step beside 10.00 ms"
    )
    head, rows = tabulate(found)
    assert head[3:] == list(PHASES) and [row[:2] for row in rows] == [
        ["all", ""],
        *([str(n), f"n{n}"] for n in range(4)),
    ]


@pytest.mark.parametrize("compute_s", [(0.010,), (0.010, 0.011), (0.010, 0.012, 0.011)])
def test_processes_that_are_alike_name_nobody(compute_s: tuple[float, ...]) -> None:
    found = summarise_steps(processes_of(*compute_s), first_step=1, device="cpu")
    assert found["straggler"] is None and describe_straggler(found) == ""


def test_one_slow_step_names_nobody() -> None:
    processes = processes_of(0.010, 0.010)
    processes[1]["steps"] = [*processes[1]["steps"][:4], {"forward": 9.0}]
    assert summarise_steps(processes, first_step=1, device="cpu")["straggler"] is None


def test_of_many_processes_the_table_shows_the_slow_ones() -> None:
    _, rows = tabulate(summarise_steps(processes_of(*[0.01] * 99, 0.05), first_step=1, device="cpu"))
    assert len(rows) == 33 and rows[-1][0] == "99"


@pytest.mark.parametrize("num_steps", [*range(1, 50), 1000])
def test_the_window_lies_within_the_steps_of_the_start(num_steps: int) -> None:
    window = plan_window(num_steps)
    assert window.timed and window.traced and 0 <= window.timed.start
    assert window.timed.stop <= window.stop <= num_steps
    assert window.timed.stop == window.traced.start or num_steps == 1
    assert num_steps < 40 or (window.timed, window.traced) == (range(10, 37), range(37, 40))


# ---- one process


@pytest.mark.parametrize("words", [(), (EXACT,), ("train.micro_batch_size=10", "optim.ema_decay=0.9")])
def test_a_profile_changes_no_bit(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    plain, run = train(tmp_path, "plain", *words), train(tmp_path, "profiled", *words, PROFILE)
    assert last_weights(plain) == last_weights(run) and digest(plain) == digest(run)
    assert not (plain / "profile.json").exists() and not (plain / "profile").exists()
    profile = read_profile(run)
    assert profile["steps"] == [11, 37] and profile["straggler"] is None
    shares = profile["shares"]
    assert set(shares) == set(PHASES) and sum(shares.values()) == pytest.approx(1)
    assert min(shares[phase] for phase in ("data", "forward", "backward", "optimizer")) > 0
    assert shares["waiting"] == 0 and shares["communication"] < (0.05 if words == (EXACT,) else 1e-9)
    assert any("addmm" in str(event.get("name")) for event in read_trace(run)["traceEvents"])
    assert (run / "profile" / "trace-rank0.json.gz").stat().st_size < 2**20
    assert "Steps 11 to 37 on cpu" in capsys.readouterr().out


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_a_run_shorter_than_the_window(tmp_path: Path, num_steps: int) -> None:
    run = train(tmp_path, "run", PROFILE, f"train.max_steps={num_steps}")
    first, last = read_profile(run)["steps"]
    assert 1 <= first <= last <= num_steps
    assert read_trace(run)["traceEvents"]


def test_a_run_that_ends_within_the_window(tmp_path: Path) -> None:
    words = ("train.eval_every=5", "train.early_stopping=1", "train.max_steps=10000", "train.max_epochs=9999")
    run = train(tmp_path, "run", PROFILE, *words, "optim.peak_lr=1.0")
    assert 11 <= json.loads((run / "status.json").read_text())["step"] < 37
    assert read_profile(run)["steps"][1] == json.loads((run / "status.json").read_text())["step"]


def test_a_start_that_goes_on_measures_its_own_steps_and_has_the_bits_of_the_whole_run(tmp_path: Path) -> None:
    whole = train(tmp_path, "whole")
    train(tmp_path, "run", "train.max_steps=20")
    run = train(tmp_path, "run", PROFILE)
    assert read_profile(run)["steps"] == [31, 57]  # 40 steps, the first ten to warm up, the last three traced
    assert last_weights(run) == last_weights(whole)
    train(tmp_path, "run", "train.max_steps=80")  # without: what was measured stays
    assert read_profile(run)["steps"] == [31, 57]
    train(tmp_path, "run", "checkpoint.resume=never")
    assert not (run / "profile.json").exists() and not (run / "profile").exists()


def test_the_page_shows_it(tmp_path: Path) -> None:
    from nn_train.report import write_report

    run = train(tmp_path, "run", PROFILE, *PAGE)
    page = (run / "report.html").read_text()
    assert '<section id="profile">' in page and "Steps 11 to 37 on cpu" in page and 'id="straggler"' not in page
    found = summarise_steps(processes_of(0.010, 0.030), first_step=11, device="cpu")
    (run / "profile.json").write_text(json.dumps(found))
    page = write_report(run, dpi=40).read_text()
    assert "Process 1 on host n1 is 3.0 times as slow as the median of the others in forward" in page
    for damaged in ("{", "[]", '{"steps": 3}', '{"steps": [1, 2], "shares": {}, "processes": {}}'):
        (run / "profile.json").write_text(damaged)
        assert '<section id="profile">' not in write_report(run, dpi=40).read_text()


def test_a_training_does_not_end_for_want_of_its_profile(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path, "run", "train.max_steps=5")
    (tmp_path / "run" / "profile").write_text("in the way")
    run = train(tmp_path, "run", PROFILE)
    assert "the profile is not whole" in capsys.readouterr().out
    assert json.loads((run / "status.json").read_text())["state"] == "done"


# ---- several processes


def test_profiles_of_two_and_three_processes(tmp_path: Path) -> None:
    make_table(400).to_csv(tmp_path / "table.csv", index=False)
    runs = {"fast": [], "exact": [EXACT], "micro": ["train.micro_batch_size=10"]}
    for processes in (2, 3):
        words = {name: own for name, own in runs.items() if processes == 2 or name != "exact"}
        plan = []
        for name, own in words.items():
            base = [*WORDS, *own, f"data.path={tmp_path / 'table.csv'}"]
            plan.append([*base, f"run.dir={tmp_path / f'{name}-{processes}'}"])
            plan.append([*base, PROFILE, f"run.dir={tmp_path / f'{name}-{processes}-profiled'}"])
        run_world(processes, plan, tmp_path)
        for name in words:
            plain, run = tmp_path / f"{name}-{processes}", tmp_path / f"{name}-{processes}-profiled"
            assert last_weights(plain) == last_weights(run), (name, processes)
            profile = read_profile(run)
            assert [process["rank"] for process in profile["processes"]] == list(range(processes))
            assert profile["shares"]["communication"] > 0
            assert all(read_trace(run, rank)["traceEvents"] for rank in range(processes))


@pytest.mark.parametrize("words", [(), (EXACT, "train.canonical_slices=2")])
def test_a_process_that_is_slow_is_named(tmp_path: Path, words: tuple[str, ...]) -> None:
    make_table(400).to_csv(tmp_path / "table.csv", index=False)
    (tmp_path / "slow_nets.py").write_text(SLOW_NET)
    agent = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        str(ROOT / "nn_train" / "train.py"),
    ]
    own = [f"data.path={tmp_path / 'table.csv'}", f"run.dir={tmp_path / 'run'}", "train.max_steps=30", PROFILE, *PAGE]
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    done = subprocess.run([sys.executable, *agent, *WORDS, *OWN, *own, *words], cwd=tmp_path, env=environment,
                          capture_output=True, text=True, timeout=200)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    profile = read_profile(tmp_path / "run")
    assert (profile["straggler"]["rank"], profile["straggler"]["phase"]) == (1, "forward")
    assert profile["straggler"]["seconds"] > 0.02
    waits, slow = (process["seconds"] for process in profile["processes"])
    assert waits["waiting"] > 0.01 > slow["waiting"]
    assert waits["waiting"] > waits["communication"]
    text = describe_straggler(profile)
    assert text.startswith("process 1 on host ") and text in done.stdout.replace("\n", " ")
    assert text[1:] in (tmp_path / "run" / "report.html").read_text()
