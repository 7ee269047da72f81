"""What a person sees: a bar on a real pseudo-terminal, plain lines elsewhere, and the tables."""

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.runtime import set_up_logging
from nn_train.schema import ColumnSpec, TableSchema, TargetSpec
from nn_train.terminal import ProgressBar, print_metrics, print_schema
from tests.conftest import PAGE, SCRIPT, SMALL

LINE = {"step": 30, "epoch": 1.5, "split": "train", "loss": 0.25, "lr": 0.1, "rows_per_s": 12345.6}
VAL = {"step": 30, "epoch": 1.5, "split": "val", "loss": 0.5, "roc_auc": 0.875}


class Screen:
    """A pseudo-terminal of 80 columns that remembers what was written to it."""

    def __init__(self) -> None:
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
        self._content = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                part = os.read(self._master, 65536)
            except OSError:  # the last writer has gone
                return
            self._content += part

    def close(self) -> str:
        """All that was written, with its escape codes."""
        os.close(self.slave)
        self._reader.join(timeout=60)
        os.close(self._master)
        return self._content.decode()


def without_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text).replace("\r", "\n")


@pytest.fixture(autouse=True)
def shown_on_stdout(monkeypatch: pytest.MonkeyPatch) -> None:
    """The program's lines go to standard output, and no variable of this machine decides on colours."""
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    set_up_logging()


def on_screen(work: Callable[[], None]) -> str:
    """What this process writes while its standard output is a terminal."""
    screen = Screen()
    with os.fdopen(os.dup(screen.slave), "w", encoding="utf-8") as file, redirect_stdout(file):
        work()
    return screen.close()


def watch(bar: ProgressBar) -> None:
    bar.show(LINE, metric="roc_auc")
    bar.show(VAL, metric="roc_auc")
    bar.close()


# ---- progress


def test_a_whole_run_on_a_terminal(table_file: Path, tmp_path: Path) -> None:
    words = [*SMALL, *PAGE, f"data.path={table_file}", "data.target=y", "train.max_steps=200", "run.name=seen"]
    screen = Screen()
    command = [sys.executable, str(SCRIPT), *words]
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), screen.slave)
    assert subprocess.run(command, **streams, cwd=tmp_path, timeout=240, env=dict(os.environ)).returncode == 0
    text = screen.close()
    seen = without_codes(text)
    assert re.search(r"epoch \d+\.\d .*━.* \d+/200 loss \d\.\d{4}  val log_loss \d\.\d{4}  [\d,]+ rows/s", seen)
    assert not re.search(r"step \d+/200  epoch", seen)
    assert "\x1b[?25h" in text  # the cursor is given back
    assert text.rindex("\x1b[2K") < text.index("trained 200 steps")  # and the bar is taken away
    assert "network (mlp)" in seen
    assert re.search(r"report: +\S+/runs/seen/report.html", seen)
    assert "Traceback" not in seen


def test_without_a_terminal_there_are_plain_lines(
    table_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on GitHub's machines; a log file is no terminal for all that
    words = [*SMALL, f"data.path={table_file}", "data.target=y", "train.max_steps=40", f"run.dir={tmp_path / 'run'}"]
    engine = Engine(load_config(None, [*words, "tracking.log_every_steps=20"]))
    engine.prepare()
    engine.train()
    engine.evaluate()
    engine.close()
    shown = capsys.readouterr().out
    assert re.search(r"^step 20/40  epoch 20\.0  loss \d\.\d{4}  val log_loss \d\.\d{4}  [\d,]+ rows/s$", shown, re.M)
    assert "\x1b" not in shown
    assert "\r" not in shown


def test_a_bar_shows_epoch_steps_loss_metric_and_speed() -> None:
    seen = without_codes(on_screen(lambda: watch(ProgressBar(total_steps=60, first_step=10, is_main=True))))
    assert "epoch 1.5" in seen
    assert "10/60" in seen  # where a resumed training begins
    assert "30/60 loss 0.2500  val roc_auc 0.8750  12,346 rows/s" in seen


def test_a_line_of_the_log_does_not_break_the_bar() -> None:
    def work() -> None:
        bar = ProgressBar(total_steps=60, first_step=0, is_main=True)
        print("a checkpoint cannot be used", flush=True)
        watch(bar)

    assert "a checkpoint cannot be used" in without_codes(on_screen(work)).splitlines()


@pytest.mark.parametrize("term", ["dumb", "unknown"])
def test_a_terminal_that_cannot_move_its_cursor_gets_lines(monkeypatch: pytest.MonkeyPatch, term: str) -> None:
    monkeypatch.setenv("TERM", term)
    text = on_screen(lambda: watch(ProgressBar(total_steps=60, first_step=0, is_main=True)))
    assert "step 30/60  epoch 1.5  loss 0.2500    12,346 rows/s" in text
    assert "\x1b" not in text


def test_other_processes_show_nothing() -> None:
    assert on_screen(lambda: watch(ProgressBar(total_steps=60, first_step=0, is_main=False))) == ""


def test_lines_come_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    bar = ProgressBar(total_steps=60, first_step=0, is_main=True)
    for step in range(1, 31):
        bar.show(LINE | {"step": step}, metric="roc_auc")
    assert capsys.readouterr().out.count("\n") == 1
    bar.last_line_s -= 3
    bar.show(VAL, metric="roc_auc")
    bar.show(LINE, metric="roc_auc")
    assert capsys.readouterr().out == "step 30/60  epoch 1.5  loss 0.2500  val roc_auc 0.8750  12,346 rows/s\n"


# ---- tables


def make_schema(*columns: ColumnSpec, target: TargetSpec | None = None) -> TableSchema:
    return TableSchema(
        columns=columns, target=target or TargetSpec(name="y", task="binary", classes=("no", "yes")), num_rows=1234
    )


def make_column(name: str, **changes: Any) -> ColumnSpec:
    return ColumnSpec(**({"name": name, "kind": "numeric", "num_missing": 3, "num_distinct": 55} | changes))


def row_of(text: str, name: str) -> list[str]:
    """The cells of the table's row that begins with `name`."""
    [line] = [line for line in text.splitlines() if re.match(rf"│ {re.escape(name)} +│", line)]
    return [cell.strip() for cell in line.strip("│").split("│")]


def test_the_schema_says_why_columns_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    print_schema(
        make_schema(
            make_column("age"),
            make_column("key", is_id=True, dropped="looks like an id: every value occurs once"),
            make_column("note", kind="categorical", dropped="data.drop"),
        )
    )
    shown = capsys.readouterr().out
    assert "1234 rows, target 'y': binary" in shown
    assert row_of(shown, "age") == ["age", "numeric", "3", "55", ""]
    assert row_of(shown, "key")[-1] == "dropped: looks like an id: every value occurs once"
    assert row_of(shown, "note") == ["note", "categorical", "3", "55", "dropped: data.drop"]
    assert "classes: no, yes; positive: yes\n" in shown


def test_many_classes_are_cut_and_numbers_have_none(capsys: pytest.CaptureFixture[str]) -> None:
    classes = tuple(f"c{n}" for n in range(30))
    print_schema(make_schema(target=TargetSpec(name="y", task="multiclass", classes=classes)))
    assert "c10, c11, ...\n" in capsys.readouterr().out
    print_schema(make_schema(target=TargetSpec(name="y", task="regression")))
    assert "classes" not in capsys.readouterr().out


NAMES = ("price [EUR]", "[red]", "[/]", "[/bold]", ":smile:", "a\\[b]", "größe", "価格", "[link=x]y")


def test_names_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    target = TargetSpec(name="[/y] :smile:", task="binary", classes=("[no]", ":yes:"))
    print_schema(make_schema(*(make_column(name) for name in NAMES), target=target))
    shown = capsys.readouterr().out
    for name in NAMES:
        assert name in shown
    assert "target '[/y] :smile:': binary" in shown
    assert "classes: [no], :yes:; positive: :yes:" in shown


def test_names_are_shown_as_they_are_on_a_terminal() -> None:
    text = on_screen(lambda: print_schema(make_schema(*(make_column(name) for name in NAMES))))
    assert "\x1b[" in text
    for name in NAMES:
        assert name in without_codes(text)


def test_a_long_name_is_folded_and_not_cut(capsys: pytest.CaptureFixture[str]) -> None:
    print_schema(make_schema(make_column("x" * 300)))
    shown = capsys.readouterr().out
    assert shown.count("x") >= 300
    assert max(map(len, shown.splitlines())) <= 100


METRICS: dict[str, dict[str, Any]] = {
    "binary": {"roc_auc": 0.75, "log_loss": 0.5, "accuracy": 0.8, "f1": None},
    "multiclass": {"log_loss": 0.5, "accuracy": 0.8},
    "regression": {"rmse": 1.5, "mae": 1.25, "r2": 0.5},
}


@pytest.mark.parametrize("task", METRICS)
def test_metrics_stand_beside_those_of_the_baselines(capsys: pytest.CaptureFixture[str], task: str) -> None:
    print_metrics(
        {
            "task": task,
            "model": "mlp",
            "test": METRICS[task],
            "rows": {"test": 45},
            "seconds": {"train": 2.25},
            "baselines": {
                "linear": {"test": {name: 0.125 for name in METRICS[task]}, "seconds": 0.5},
                "gradient_boosting": {"test": {}, "seconds": 12.0},
            },
        }
    )
    shown = capsys.readouterr().out
    assert "test metrics (45 rows)" in shown
    assert re.search(r"network \(mlp\) +┃ +linear +┃ +gradient boosting ┃", shown)
    for name, value in METRICS[task].items():
        assert row_of(shown, name) == [name, "-" if value is None else f"{value:.4f}", "0.1250", "-"]
    assert row_of(shown, "seconds") == ["seconds", "2.2", "0.5", "12.0"]


def test_without_baselines_the_network_stands_alone(capsys: pytest.CaptureFixture[str]) -> None:
    print_metrics(
        {
            "task": "regression",
            "model": "tabm",
            "test": METRICS["regression"],
            "rows": {"test": 45},
            "seconds": {"train": 2.0},
            "baselines": {},
        }
    )
    assert row_of(capsys.readouterr().out, "rmse") == ["rmse", "1.5000"]
