"""Several networks for one task: `python -m nn_train.ensemble` trains on folds, with several seeds, or both.

Each network is an ordinary run in a folder of its own; the mean of their calibrated probabilities is judged on the test
rows beside a single one, and each row that is not for the test is predicted by networks that did not learn from it. The
same command goes on where it was cut off.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from nn_train.calibration import choose_threshold
from nn_train.config import Config, load_config
from nn_train.costs import cheapest
from nn_train.crew import Crew, last_error, owned_folder
from nn_train.ending import DONE, FAILED, STOPPED, USER_ERROR, option_parser, read_options, run_command, say
from nn_train.errors import ConfigError, RunFolderError, UserError
from nn_train.metrics import compute_metrics
from nn_train.run_folder import ENSEMBLE_FILE, is_finished, read_config, read_json, write_file, write_json
from nn_train.schema import Split, TableSchema, TargetSpec, Task
from nn_train.terminal import headlines, show_table

TEST_FILE, FOLDS_FILE = "predictions.parquet", "out_of_fold.parquet"
FILES: dict[Split, str] = {"val": "predictions_val.parquet", "test": "predictions.parquet"}
OWN = ("run.dir", "run.name", "split.folds", "split.fold", "tracking.group")  # what the ensemble sets itself
ABOUT = "Train several networks for one task, on folds, with several seeds or both, and judge the mean of them."
EXAMPLES = """examples:
  python -m nn_train.ensemble --config configs/telco.yaml --folds 5
  python -m nn_train.ensemble --folds 0 --seeds 3 data.path=my.csv data.target=price
  python -m nn_train.ensemble --config configs/telco.yaml --folds 5 --seeds 2 --parallel 2 --dir runs/telco-10

DIR/fold-0, DIR/fold-1, ... are ordinary runs. DIR/predictions.parquet holds the mean prediction of each test row,
DIR/out_of_fold.parquet that of every other row by the networks that did not see it, DIR/ensemble.json the metrics.

exit codes: 0 done; 1 a network failed; 2 your input or settings; 75 stopped, the same command goes on from there"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One network: its fold (None: validation rows are the same for all), its seed, and its run folder."""

    fold: int | None
    seed: int
    run_dir: Path

    @property
    def log(self) -> Path:
        """What its process says, beside its run folder."""
        return self.run_dir.with_suffix(".log")


def name_members(folder: Path, *, folds: int, seeds: int, first_seed: int) -> list[Member]:
    """The networks of an ensemble, fold by fold."""
    members = []
    for fold in range(folds) if folds else [None]:
        for seed in range(first_seed, first_seed + seeds):
            parts = ([f"fold-{fold}"] if fold is not None else []) + (
                [f"seed-{seed}"] if seeds > 1 or not folds else []
            )
            members.append(Member(fold=fold, seed=seed, run_dir=folder / "-".join(parts)))
    return members


def parse_arguments(words: Sequence[str]) -> argparse.Namespace:
    """Read the command line. Raises ConfigError."""
    parser = option_parser("python -m nn_train.ensemble", ABOUT, EXAMPLES)
    parser.add_argument("--config", metavar="FILE", help="a run's YAML")
    parser.add_argument("--folds", type=int, default=5, metavar="N", help="folds; 0: one validation split (default 5)")
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="networks of each fold (default 1)")
    parser.add_argument("--parallel", type=int, default=1, metavar="N", help="networks at the same time (default 1)")
    parser.add_argument("--dir", type=Path, metavar="DIR", help="folder of the ensemble (default runs/NAME-ensemble)")
    parser.add_argument("words", nargs="*", metavar="section.key=value", help="settings of every network")
    options = read_options(parser, words)
    for name, least in (("folds", 0), ("seeds", 1), ("parallel", 1)):
        if getattr(options, name) < least:
            raise ConfigError(f"--{name} {getattr(options, name)} is less than {least}", fix=f"--{name} {least}")
    if options.folds == 1 or (options.folds * options.seeds == 0 and options.seeds < 2):
        raise ConfigError("that is one network alone", fix="--folds 5, or --folds 0 --seeds 3")
    return options


class Ensemble:
    """The networks of one folder."""

    def __init__(self, options: argparse.Namespace):
        self.config_file, self.words = options.config, list(options.words)
        taken = [word.partition("=")[0] for word in self.words]
        if own := [name for name in taken if name in OWN]:
            raise ConfigError(f"{own[0]} is set by the ensemble", fix=f"leave {own[0]} out of the command line")
        self.config: Config = load_config(self.config_file, self.words)
        self.folds, self.seeds = options.folds, options.seeds
        self.folder = (options.dir or Path("runs") / f"{self.config.name}-ensemble").expanduser().absolute()
        seed = self.config.run.seed
        self.members = name_members(self.folder, folds=self.folds, seeds=self.seeds, first_seed=seed)
        load_config(self.config_file, self.member_words(self.members[0]))  # folds that do not fit the method
        self.crew = Crew()
        self.failures: dict[str, str] = {}

    def member_words(self, member: Member) -> list[str]:
        """The settings of a network; a page and baselines only where the user asks for them."""
        folds = [f"split.folds={self.folds}", f"split.fold={member.fold}"] if member.fold is not None else []
        name = f"{self.config.name}-{member.run_dir.name}"
        light = ["report.page=false", "report.baselines=false", "report.importance=false"]
        own = [f"run.dir={member.run_dir}", f"run.name={name}", f"run.seed={member.seed}"]
        return [*light, *self.words, *own, *folds, f"tracking.group={self.config.name}"]

    @property
    def plan(self) -> dict[str, Any]:
        """What networks there are, as plain values."""
        return {"folds": self.folds, "seeds": self.seeds, "members": [m.run_dir.name for m in self.members]}

    def check(self) -> None:
        """Raise RunFolderError where the folder holds another ensemble; note this one where it holds none."""
        note = self.folder / ENSEMBLE_FILE
        if not note.exists():
            return write_json(note, self.plan)
        before = json.loads(note.read_text(encoding="utf-8"))
        if before["members"] != self.plan["members"]:
            raise RunFolderError(
                f"this folder holds an ensemble of {len(before['members'])} other networks",
                where=str(self.folder),
                fix="--dir NEW for another one",
            )
        return None

    def train(self, *, parallel: int) -> None:
        """Start what is not finished."""
        waiting = [member for member in self.members if not self._is_done(member)]
        for member in self.members:
            if member not in waiting:
                say(f"{member.run_dir.name}: done before")
        script = str(Path(__file__).with_name("train.py"))
        config = ["--config", str(self.config_file)] if self.config_file else []
        self.crew.run(
            waiting,
            command=lambda member: [sys.executable, script, *config, *self.member_words(member)],
            log=lambda member: member.log,
            note_end=self._note_end,
            parallel=parallel,
        )

    def _is_done(self, member: Member) -> bool:
        try:
            return is_finished(member.run_dir, has_page=read_config(member.run_dir).report.page)
        except (UserError, KeyError, TypeError):  # not there, or cut off
            return False

    def _note_end(self, member: Member, code: int) -> None:
        name = member.run_dir.name
        if code == DONE:
            selection = read_json(member.run_dir / "metrics.json")["selection"]
            say(f"{name}: {selection['metric']} {selection['value']:.4f}")
        elif code == STOPPED or (self.crew.stop_requested and code != USER_ERROR):
            say(f"{name}: stopped")
        else:
            self.failures[name] = last_error(member.log)
            say(f"{name}: exit code {code}: {self.failures[name]}")

    def judge(self) -> dict[str, Any]:
        """Average the networks, judge them, and write what was found."""
        metrics = [read_json(member.run_dir / "metrics.json") for member in self.members]
        task: Task = metrics[0]["task"]
        target = TableSchema.from_json(read_json(self.members[0].run_dir / "schema.json")).target
        classes = target.classes
        val = average([pd.read_parquet(member.run_dir / FILES["val"]) for member in self.members], target)
        rows = metrics[0]["decision"].get("costs")
        costs = np.array(rows) if rows else None
        threshold = 0.5
        if task == "binary":
            y, p = truth_and_scores(val, target)
            threshold = choose_threshold(y, p, self.config.evaluation.threshold_by, costs=costs)
        found: dict[str, Any] = {"task": task, "threshold": threshold, "rows": {}, "num_targets": len(target.names)}
        places: list[tuple[Split, str]] = [("val", FOLDS_FILE if self.folds else FILES["val"]), ("test", TEST_FILE)]
        for split, file in places:
            if not metrics[0][split]:
                continue
            frame = val
            if split == "test":
                frame = average([pd.read_parquet(member.run_dir / FILES["test"]) for member in self.members], target)
            y, scores = truth_and_scores(frame, target)
            frame = decide(frame, classes, task, threshold, costs=costs)
            write_file(self.folder / file, frame.to_parquet(None, index=False))
            names = list(metrics[0][split])
            alone = {name: [one[split].get(name) for one in metrics] for name in names}
            known = {name: [v for v in values if v is not None] for name, values in alone.items()}
            found["rows"][split] = len(frame)
            found[split] = {
                "ensemble": compute_metrics(y, scores, task=task, threshold=threshold, costs=costs),
                "single": {name: float(np.mean(values)) for name, values in known.items() if values},
                "single_std": {name: float(np.std(values)) for name, values in known.items() if values},
            }
        seconds = [sum(one["seconds"].values()) for one in metrics]
        found["seconds"] = {"ensemble": round(sum(seconds), 1), "single": round(float(np.mean(seconds)), 1)}
        write_json(self.folder / ENSEMBLE_FILE, self.plan | found)
        return found


def average(frames: Sequence[pd.DataFrame], target: TargetSpec) -> pd.DataFrame:
    """One row for each row of the table: its target and ids, and the mean of what the networks say of it."""
    whole = pd.concat(frames, ignore_index=True)
    values = [f"p_{name}" for name in target.classes] or [*target.prediction_names, *target.quantile_names]
    firsts = whole.drop_duplicates("row").set_index("row").sort_index()
    firsts[values] = whole.groupby("row")[values].mean()
    return firsts.reset_index()


def truth_and_scores(frame: pd.DataFrame, target: TargetSpec) -> tuple[np.ndarray, np.ndarray]:
    """Targets and predictions as `compute_metrics` takes them."""
    if target.task == "regression":
        return target.take_truth(frame).astype(np.float64), target.take_prediction(frame).astype(np.float64)
    y = frame["target"].map({name: code for code, name in enumerate(target.classes)}).to_numpy(np.int64)
    p = frame[[f"p_{name}" for name in target.classes]].to_numpy(np.float64)
    return y, p[:, 1] if target.task == "binary" else p


def decide(
    frame: pd.DataFrame, classes: Sequence[str], task: Task, threshold: float, *, costs: np.ndarray | None = None
) -> pd.DataFrame:
    """The frame with the decision of the mean in `prediction`: by the threshold, the costs or the most probable."""
    if task == "regression":
        return frame
    p = frame[[f"p_{name}" for name in classes]].to_numpy()
    several = p.argmax(axis=1) if costs is None else cheapest(p, costs)
    chosen = (p[:, 1] >= threshold).astype(int) if task == "binary" else several
    return frame.assign(prediction=np.array(list(classes))[chosen])


def show(found: dict[str, Any], *, folds: int) -> None:
    """Print the ensemble beside a single network."""
    val_name = "out of fold" if folds else "validation"
    table = Table(title="", title_justify="left")
    table.add_column("")
    splits = [split for split in ("test", "val") if split in found]
    for split in splits:
        name = "test" if split == "test" else val_name
        table.add_column(f"single, {name}", justify="right")
        table.add_column(f"ensemble, {name}", justify="right")
    for metric in headlines(found["task"], num_targets=found["num_targets"]):
        cells = []
        for split in splits:
            part = found[split]
            one, spread, mean = (part[kind].get(metric) for kind in ("single", "single_std", "ensemble"))
            cells += ["-" if one is None else f"{one:.4f} ± {spread:.4f}", "-" if mean is None else f"{mean:.4f}"]
        table.add_row(metric, *cells)
    seconds = found["seconds"]
    table.add_row("seconds", *[f"{seconds['single']:.1f}", f"{seconds['ensemble']:.1f}"] * len(splits))
    show_table(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and judge an ensemble; the exit code: 0 done, 1 a network failed, 2 wrong input, 75 stopped."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _run(words), interrupted="interrupted; the same command goes on from there")


def _run(words: list[str]) -> int:
    options = parse_arguments(words)
    ensemble = Ensemble(options)
    with owned_folder(ensemble.folder, "ensemble"):
        ensemble.check()
        ensemble.train(parallel=options.parallel)
        if ensemble.crew.stop_requested:
            return say("stopped; the same command goes on from there", code=STOPPED)
        if ensemble.failures:
            return say(f"{len(ensemble.failures)} of {len(ensemble.members)} networks failed", code=FAILED)
        found = ensemble.judge()
    show(found, folds=ensemble.folds)
    return say(f"ensemble: {ensemble.folder}")


if __name__ == "__main__":
    sys.exit(main())
