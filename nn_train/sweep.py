"""A sweep without a server: `python -m nn_train.sweep configs/sweep.yaml` starts the trials of the file one by one.

Each trial is the file's own command in a process of its own, with a run folder of its own; the best validation metric
decides. The same command goes on where it was cut off.
"""

import argparse
import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nn_train.config import parse_words, project_root
from nn_train.crew import Crew, last_error, own_environment, owned_folder
from nn_train.ending import DONE, FAILED, STOPPED, USER_ERROR, read_options, run_command, say
from nn_train.errors import ConfigError, RunFolderError, UserError
from nn_train.run_folder import is_finished, read_config, read_json, write_file, write_json
from nn_train.sweep_space import Sweep, read_sweep, to_words

SHOWN = 10  # trials in the printed table
OWN = ("run.dir", "run.name", "tracking.group")  # what the sweep sets itself
USAGE = """\
python -m nn_train.sweep FILE [--count N] [--parallel N] [--seed N] [--dir DIR] [section.key=value ...]

Start the trials of a sweep's file (method random or grid) on this machine, without wandb's server. The same command
goes on where it was cut off, and a larger --count adds trials.

  FILE              a sweep as `wandb sweep` takes it, such as configs/sweep.yaml
  --count N         trials; default: the file's run_cap, or the whole grid
  --parallel N      trials at the same time (default 1)
  --seed N          with the trial's index it decides the trial's settings (default 0)
  --dir DIR         folder of the sweep (default runs/sweep-NAME)
  section.key=value settings of every trial, over the file's
"""


@dataclass(kw_only=True)
class Trial:
    """One run of a sweep; `reason` says why it has no value."""

    index: int
    settings: dict[str, Any]
    run_dir: Path
    value: float | None = None
    seconds: float | None = None
    state: str = "waiting"
    reason: str = ""

    @property
    def log(self) -> Path:
        """What its process says, beside its run folder."""
        return self.run_dir.with_suffix(".log")


class LocalSweep:
    """The trials of a sweep in one folder."""

    def __init__(self, sweep: Sweep, folder: Path, *, count: int, seed: int, words: Sequence[str]):
        self.sweep, self.folder, self.seed, self.words = sweep, folder, seed, list(words)
        self.crew = Crew()
        self.trials = [
            Trial(index=index, settings=sweep.settings(index, seed=seed), run_dir=folder / f"trial-{index}")
            for index in range(count)
        ]

    def command(self, trial: Trial) -> list[str]:
        """What starts a trial: the file's command, then what this sweep sets; the last word on a setting counts."""
        own = [f"run.dir={trial.run_dir}", f"run.name={self.sweep.name}-{trial.index}"]
        group = [f"tracking.group={self.sweep.name}", "tracking.mode=offline"]
        return self.sweep.start_command([*to_words(trial.settings), *own, *group, *self.words])

    def check(self) -> None:
        """Raise UserError where another sweep lies in the folder, or a trial's settings are refused."""
        note, now = self.folder / "sweep.json", self._describe()
        if note.exists():
            before = json.loads(note.read_text(encoding="utf-8"))
            changed = [key for key in now if before.get(key) != now[key]]
            if changed:
                raise RunFolderError(
                    f"this folder holds a sweep with another {', '.join(changed)}",
                    where=str(self.folder),
                    fix="--dir NEW for another sweep",
                )
        asked = subprocess.run(
            [*self.command(self.trials[0]), "--print-config"],
            env=own_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip
        if asked.returncode:
            raise ConfigError(f"a trial cannot be started:\n{asked.stderr.strip()}", fix="mend the sweep's file")
        write_json(note, now)

    def _describe(self) -> dict[str, Any]:
        sweep = self.sweep
        values = {"method": sweep.method, "metric": sweep.metric, "parameters": sweep.parameters}
        return json.loads(json.dumps(values | {"command": sweep.command, "seed": self.seed, "words": self.words}))

    def run(self, *, parallel: int) -> None:
        """Start every trial that is not finished, `parallel` at a time, and note how each ended."""
        for trial in self.trials:
            self.read(trial)
        self.crew.run(
            [trial for trial in self.trials if trial.state != "done"],
            command=self.command,
            log=lambda trial: trial.log,
            note_end=self._note_end,
            parallel=parallel,
        )
        self.write_table()

    def _note_end(self, trial: Trial, code: int) -> None:
        self.read(trial)
        if trial.state != "done" and not trial.reason:
            is_stopped = code == STOPPED or (self.crew.stop_requested and code != USER_ERROR)
            trial.state = "stopped" if is_stopped else "failed"
            trial.reason = "" if is_stopped else f"exit code {code}: {last_error(trial.log)}"
        value = f"{self.sweep.metric} {trial.value:.6g}" if trial.value is not None else trial.state
        shown = " ".join(to_words(trial.settings))
        say(f"trial {trial.index}: {value}  ({shown}){f'  {trial.reason}' if trial.reason else ''}")
        self.write_table()

    def read(self, trial: Trial) -> None:
        """Find out from its run folder how a trial stands."""
        trial.reason = ""
        try:
            if not is_finished(trial.run_dir, has_page=read_config(trial.run_dir).report.page):
                return
            metrics = read_json(trial.run_dir / "metrics.json")
        except (UserError, KeyError, TypeError):  # not there, or cut off
            return
        place, _, name = self.sweep.metric.rpartition("/")
        chosen_by = metrics["selection"]["metric"]
        trial.seconds = round(sum(metrics["seconds"].values()), 1)
        trial.value = metrics["selection"]["value"] if place == "best" else metrics["val"].get(name)
        trial.state = "done"
        if place == "best" and chosen_by != name:
            trial.value, trial.state = None, "failed"
            trial.reason = f"its weights were chosen by {chosen_by}: metric: {{name: best/{chosen_by}}}"
        elif trial.value is None:
            trial.state, trial.reason = "failed", f"it has no finite {self.sweep.metric}"

    def ranked(self) -> list[Trial]:
        """Trials with a value, the best first, then the others in their order."""
        sign = -1 if self.sweep.maximize else 1
        return sorted(
            self.trials, key=lambda t: (t.value is None, sign * t.value if t.value is not None else 0, t.index)
        )

    def write_table(self) -> None:
        """Write trials.csv, the best trial first."""
        names = list(self.sweep.parameters)
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(["trial", "state", self.sweep.metric, *names, "seconds", "run", "reason"])
        for t in self.ranked():
            settings = [t.settings[name] for name in names]
            writer.writerow([t.index, t.state, t.value, *settings, t.seconds, t.run_dir, t.reason])
        write_file(self.folder / "trials.csv", stream.getvalue())

    def show(self) -> None:
        """Print the best trials, and how the best one is started again."""
        names = list(self.sweep.parameters)
        lines = [["trial", self.sweep.metric, *(name.split(".", 1)[1] for name in names), "seconds"]]
        for t in self.ranked()[:SHOWN]:
            value = t.state if t.value is None else f"{t.value:.6g}"
            lines.append([str(t.index), value, *(str(t.settings[name]) for name in names), str(t.seconds or "-")])
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        for line in lines:
            say("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        best = self.ranked()[0]
        if best.value is not None:
            say(f"best: trial {best.index}, {best.run_dir}: {' '.join(to_words(best.settings))}")
        say(f"table: {self.folder / 'trials.csv'}")


def parse_arguments(words: list[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError."""
    parser = argparse.ArgumentParser(prog="sweep", usage=USAGE, add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("-h", "--help", action="store_true")
    parser.add_argument("file", nargs="?", type=Path)
    parser.add_argument("--count", type=int)
    parser.add_argument("--parallel", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dir", type=Path)
    parser.add_argument("words", nargs="*")
    options = read_options(parser, words)
    if options.help:
        return options
    if options.file is None:
        raise ConfigError("no file is named", fix="--help shows the usage")
    for name, least in (("count", 1), ("parallel", 1), ("seed", 0)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name} {value} is less than {least}", fix=f"--{name} {least} or more")
    return options


def build_sweep(options: argparse.Namespace) -> LocalSweep:
    """The sweep that the options name, checked. Raises ConfigError."""
    file = options.file
    if not file.exists() and (project_root() / file).exists():
        file = project_root() / file  # `configs/sweep.yaml` means the project's own from anywhere
    sweep = read_sweep(file)
    taken = [f"{section}.{name}" for section, keys in parse_words(options.words).items() for name in keys]
    for name in taken:
        if name in OWN or name in sweep.parameters:
            raise ConfigError(f"{name} is set by the sweep", fix=f"leave {name} out of the command line")
    most = sweep.num_grid
    count = options.count or sweep.run_cap or most
    if count is None:
        raise ConfigError("how many trials?", where=str(options.file), fix="--count 8, or run_cap: 8 in the file")
    folder = (options.dir or Path("runs") / f"sweep-{sweep.name}").expanduser().absolute()
    return LocalSweep(sweep, folder, count=min(count, most or count), seed=options.seed, words=options.words)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sweep; the exit code: 0 all trials are done, 1 some failed, 2 wrong input, 75 stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(words), interrupted="interrupted; the same command goes on from there")


def _run(words: list[str]) -> int:
    options = parse_arguments(words)
    if options.help:
        return say(f"usage: {USAGE}")
    local = build_sweep(options)
    with owned_folder(local.folder, "sweep"):
        local.check()
        if local.sweep.has_early_terminate:
            say("early_terminate is left out: it is for wandb's server; train.early_stopping ends each trial here")
        local.run(parallel=options.parallel)
    local.show()
    if local.crew.stop_requested:
        return say("stopped; the same command goes on from there", code=STOPPED)
    return DONE if all(trial.state == "done" for trial in local.trials) else FAILED


if __name__ == "__main__":
    sys.exit(main())
