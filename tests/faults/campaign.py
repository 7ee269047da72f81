"""A seeded random campaign of faults on real trainings, and the table of what they cost.

    python -m tests.faults.campaign [--faults 120] [--seed 0] [--at-once 2]

A case is one run under `python -m launch run` on 1, 2 or 4 processes that meets several faults, one in each attempt.
What a machine does (a process that dies, stops, hangs, or gets an error from a disk) must end in the very bits of a run
that met none; what is for a person to mend must end in an error that says so, and in a folder that the same command
goes on from, to the same bits.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launch.verify import main as verify
from nn_train.timeline import read_events
from tests.conftest import PAGE, ROOT, SMALL, make_table
from tests.test_worlds import digest, last_weights, read_losses

STEPS, WINDOW = 120, 30  # each attempt but the last gets one window of steps further
WORDS = (*SMALL, *PAGE, "data.target=y", "train.global_batch_size=64", f"train.max_steps={STEPS}",
         "train.eval_every=10", "checkpoint.every_steps=4", "tracking.log_every_steps=1",
         "train.gradient_reduction=exact", "watchdog.floor=4", "watchdog.cap=15")  # fmt: skip
ENDS = ("raise", "exit", "kill", "stop", "lock", "loop", "io_error")  # each of these ends an attempt
DURING = ("start", "preprocess", "pack", "step", "evaluate", "checkpoint", "judge", "report")
FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json", "manifest.json", "rename",
         "prune")  # fmt: skip
MAIN_ALONE = ("checkpoint", "report")  # places that process 0 alone comes through
PART = {place: "before" if place in ("start", "preprocess", "pack") else "after" if place in ("judge", "report") else
        "during" for place in DURING}  # fmt: skip
STRUCK = re.compile(r"injected fault: (\w+)@(\w+).*, ([\d.]+) s$", re.MULTILINE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Planned:
    """One fault of one attempt."""

    kind: str
    place: str
    rank: int | None  # None: whichever process comes there
    attempt: int
    step: int | None = None
    file: str = ""
    times: str = "1"

    @property
    def ends_attempt(self) -> bool:
        """Does it end the attempt? A checkpoint that cannot be written does not."""
        return self.place != "checkpoint" or self.kind not in ("no_space", "io_error")

    def __str__(self) -> str:
        conditions = [f"attempt={self.attempt}", f"times={self.times}"]
        conditions += [f"rank={self.rank}"] if self.rank is not None else []
        conditions += [f"step={self.step}"] if self.step is not None else []
        conditions += [f"file={self.file}"] if self.file else []
        return ",".join([f"{self.kind}@{self.place}", *conditions])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One run and the faults that it meets."""

    name: str
    processes: int
    faults: tuple[Planned, ...]
    is_for_the_user: bool = False
    words: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Seen:
    """What became of one fault; `lost_steps` and `recovered_s` are None where the attempt went on."""

    fault: Planned
    processes: int
    survived: bool
    why: str = ""
    lost_steps: int | None = None
    recovered_s: float | None = None


def draw_cases(num_faults: int, *, seed: int) -> list[Case]:
    """Random cases that hold at least `num_faults` faults; every kind and place comes up before any comes again."""
    rng = random.Random(seed)
    pairs: list[tuple[str, str]] = []
    cases: list[Case] = []
    while (count := sum(len(case.faults) for case in cases)) < num_faults:
        processes = (1, 2, 4)[len(cases) % 3]
        name = f"case-{len(cases):03d}"
        if len(cases) % 5 == 4:  # faults that are the user's to mend
            cases.append(_draw_for_the_user(rng, name, processes))
        else:
            cases.append(_draw_attempts(rng, pairs, name, processes, most=num_faults - count))
    return cases


def _draw_attempts(rng: random.Random, pairs: list[tuple[str, str]], name: str, processes: int, *, most: int) -> Case:
    """Up to three attempts that end in a fault, each after the run has come further, in the order of their places."""
    if len(pairs) < 3:
        more = [(kind, place) for kind in ENDS for place in DURING]
        rng.shuffle(more)
        pairs += more
    # two attempts in a row that bring nothing are given up: at most one of the places before, and one of those after
    kept: list[tuple[str, str]] = []
    for pair in pairs[:3][: max(1, most)]:
        rest = [place for _, place in kept if PART[place] != "during"]
        if PART[pair[1]] == "during" or PART[pair[1]] not in (PART[place] for place in rest):
            kept.append(pair)
            pairs.remove(pair)
    kept.sort(key=lambda pair: ("before", "during", "after").index(PART[pair[1]]))
    faults, window, attempt = [], 0, 1
    for kind, place in kept:
        step, file = None, ""
        if place in ("step", "evaluate", "checkpoint"):
            step, window = window + rng.randrange(WINDOW - 12, WINDOW), window + WINDOW
        if place == "checkpoint":
            file = rng.choice(FILES)
        rank = None if place == "pack" else 0 if place in MAIN_ALONE else rng.randrange(processes)
        faults.append(Planned(kind=kind, place=place, rank=rank, attempt=attempt, step=step, file=file))
        attempt += faults[-1].ends_attempt
    words = ()
    if any(fault.place == "pack" for fault in faults):  # in a cache of its own, where nothing is packed yet
        words = (f"data.cache_dir={{folder}}/{name}-cache",)
    if rng.random() < 0.3:  # a disk that refuses once in a while, beside what else happens
        kind = rng.choice(("no_space", "io_error"))
        faults.append(
            Planned(kind=kind, place="checkpoint", rank=0, attempt=attempt, step=1, file=rng.choice(FILES[:5]))
        )
    return Case(name=name, processes=processes, faults=tuple(faults), words=words)


def _draw_for_the_user(rng: random.Random, name: str, processes: int) -> Case:
    place = rng.choice(("preprocess", "step", "evaluate", "judge", "report", "checkpoint", "nan"))
    rank = 0 if place in MAIN_ALONE else rng.randrange(processes)
    words: tuple[str, ...] = ()
    if place == "nan":
        fault = Planned(kind="nan", place="step", rank=rank, attempt=1, step=rng.randrange(5, STEPS))
    elif place == "checkpoint":  # a disk that stays full, for longer than is allowed
        fault = Planned(kind="no_space", place=place, rank=0, attempt=1, step=rng.randrange(5, 20), times="all",
                        file=rng.choice(FILES[:5]))  # fmt: skip
        words = ("checkpoint.max_age=0.3",)
    else:
        step = rng.randrange(5, STEPS) if place in ("step", "evaluate") else None
        fault = Planned(kind="no_space", place=place, rank=rank, attempt=1, step=step)
    return Case(name=name, processes=processes, faults=(fault,), is_for_the_user=True, words=words)


class Field:
    """A folder with a table, and the run that met no fault."""

    def __init__(self, folder: Path):
        self.folder = folder
        make_table(500).to_csv(folder / "table.csv", index=False)
        self.environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
        done = self.launch("undisturbed", 1)
        assert done.returncode == 0, done.stdout + done.stderr
        self.reference = folder / "undisturbed"

    def launch(
        self, name: str, processes: int, *words: str, faults: str = "", restarts: int = 10, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """One `python -m launch run` to its end."""
        own = [*WORDS, f"data.path={self.folder / 'table.csv'}", f"run.dir={self.folder / name}", *words]
        options = [f"--processes={processes}", "--threads=1", f"--max-restarts={restarts}"]
        command = [sys.executable, "-m", "launch", "run", *options, "--", *own]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment | {"NN_TRAIN_FAULTS": faults}, capture_output=True, text=True,
            timeout=timeout,
        )  # fmt: skip

    def meet(self, case: Case) -> list[Seen]:
        """Let a run meet its faults, and judge each of them."""
        try:
            return self._judge(case)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            why = f"{type(error).__name__}: {str(error)[-1500:]}"
            return [Seen(fault=fault, processes=case.processes, survived=False, why=why) for fault in case.faults]

    def _judge(self, case: Case) -> list[Seen]:
        run = self.folder / case.name
        words = [word.format(folder=self.folder) for word in case.words]
        done = self.launch(case.name, case.processes, *words, faults=";".join(map(str, case.faults)))
        said = done.stdout + done.stderr
        if case.is_for_the_user:
            assert done.returncode == 2, f"{done.returncode}: {said}"
            assert "error:" in said and "mend:" in said, said
            done = self.launch(case.name, case.processes, *[word for word in words if "max_age" not in word])
            said += done.stdout + done.stderr
        assert done.returncode == 0, f"{done.returncode}: {said}"
        assert_same_bits(self.reference, run)
        assert verify([str(run)]) == 0
        assert not processes_with(f"LAUNCH_RUN_DIR={run}")
        return [self._cost(case, run, fault) for fault in case.faults]

    def _cost(self, case: Case, run: Path, fault: Planned) -> Seen:
        rank = "*" if fault.rank is None else fault.rank
        logs = (run / "logs" / f"attempt-{fault.attempt:04d}").glob(f"*-rank-{rank}.log")
        struck = [found for log in logs for found in STRUCK.findall(log.read_text(errors="replace"))]
        moments = [float(moment) for kind, place, moment in struck if (kind, place) == (fault.kind, fault.place)]
        assert moments, f"{fault} never struck"
        seen = Seen(fault=fault, processes=case.processes, survived=True)
        if not fault.ends_attempt:
            return seen
        events = [event for event in read_events(run) if event["attempt"] > fault.attempt]
        end = next(e for e in read_events(run) if e["attempt"] == fault.attempt and e["event"] == "end")
        made, safe = end["made_step"], end["last_step"]
        back_s = next((event["time"] for event in events if event["event"] == "train"), None)
        return dataclasses.replace(
            seen,
            lost_steps=None if made is None or safe is None else max(0, made - safe),
            # a person who mends takes longer than that
            recovered_s=None if back_s is None or case.is_for_the_user else round(back_s - moments[0], 1),
        )


def assert_same_bits(reference: Path, run: Path) -> None:
    """The one oracle: weights, the last checkpoint, each step once with its loss, and the metrics."""
    assert digest(run) == digest(reference), "other best weights"
    assert last_weights(run) == last_weights(reference), "other last weights"
    for split in ("train", "val"):
        assert read_losses(run, split).tolist() == read_losses(reference, split).tolist(), f"other {split} losses"
    results = [json.loads((folder / "metrics.json").read_text()) for folder in (run, reference)]
    assert results[0]["test"] == results[1]["test"], "other metrics"
    assert json.loads((run / "status.json").read_text())["state"] == "done"
    assert (run / "report.html").exists()


def processes_with(mark: str) -> list[int]:
    """Processes of this machine whose environment holds the mark."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def run_campaign(field: Field, cases: Sequence[Case], *, at_once: int = 2) -> list[Seen]:
    """Run all cases, some at once, since much of the time is waiting."""
    with ThreadPoolExecutor(at_once) as pool:
        return [seen for result in pool.map(field.meet, cases) for seen in result]


def describe(seen: Sequence[Seen]) -> str:
    """The table of the README: fault, how often injected and survived, lost steps, seconds to recover."""
    rows = ["| fault | injected | survived | steps lost | seconds to recover |", "|---|---|---|---|---|"]
    for kind in dict.fromkeys(one.fault.kind for one in sorted(seen, key=lambda one: one.fault.kind)):
        for is_ending in (True, False):
            group = [one for one in seen if one.fault.kind == kind and one.fault.ends_attempt == is_ending]
            if group:
                name = kind if is_ending or kind not in ("io_error", "no_space") else f"{kind}, writing a checkpoint"
                rows.append(_row(name, group))
    rows.append(_row("all", seen))
    return "\n".join(rows)


def _row(name: str, group: Sequence[Seen]) -> str:
    lost = [one.lost_steps for one in group if one.lost_steps is not None]
    times = [one.recovered_s for one in group if one.recovered_s is not None]
    cells = (
        name,
        str(len(group)),
        str(sum(one.survived for one in group)),
        f"{statistics.mean(lost):.1f} (at most {max(lost)})" if lost else "0",
        f"{statistics.median(times):.1f} (at most {max(times):.1f})" if times else "-",
    )
    return f"| {' | '.join(cells)} |"


def main() -> int:
    """Run the whole campaign and print its table; 1 if a fault was not survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=120)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at-once", type=int, default=2)
    options = parser.parse_args()
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="campaign-") as folder:
        seen = run_campaign(Field(Path(folder)), draw_cases(options.faults, seed=options.seed), at_once=options.at_once)
    print(describe(seen))
    failed = [one for one in seen if not one.survived]
    for one in failed:
        print(f"NOT SURVIVED on {one.processes} processes: {one.fault}\n  {one.why}")
    print(f"{len(seen)} faults, {len(failed)} not survived, {time.monotonic() - started_s:.0f} s, seed {options.seed}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
