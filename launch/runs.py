"""Runs as they stand: found by path or name, their state told from the run folder, the processes and the job queue."""

import dataclasses
import difflib
import json
import math
import os
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

from launch.decision import SAVED, WRONG_INPUT, decide
from launch.history import JOB_FILE, end_file, is_process_alive, queued_job, read_end, read_outcomes
from launch.outcome import Kind, Outcome, read_step, same_host
from launch.plan import Plan
from launch.slurm import Job, ask_queue
from nn_train.attempts import FOLDER, Attempt, list_attempts
from nn_train.errors import RunFolderError

State = Literal["new", "queued", "training", "done", "saved", "failed", "given up", "lost"]
# What status.json says of a run whose processes are gone, and of its last attempt where no launcher does.
TOLD: dict[str, State] = {"done": "done", "stopped": "saved", "failed": "failed"}
KINDS: dict[str, Kind] = {"done": "done", "stopped": "stopped", "failed": "crashed"}
RUNS = Path("runs")
MARKS = (Path("status.json"), Path("config.yaml"), Path(FOLDER), JOB_FILE)  # one of them makes a folder a run's
# What changes while a run goes on.
FRESH = ("status.json", "metrics.jsonl", "config.yaml", FOLDER, "checkpoints", "launch", "logs")
QUIET_S = 600  # an attempt on a host that cannot be asked counts as lost after this long without a sign
TAIL_BYTES = 65_536


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run folder, read once."""

    folder: Path
    attempts: tuple[Attempt, ...]
    ends: dict[int, Outcome]  # those whose end was written down
    status: dict[str, Any]
    job: Job | None  # the one that counts: alive, or else the last
    is_alive: bool | None  # does a process or job of it live? None: that cannot be told from here
    state: State = "new"
    why: str = ""

    @property
    def newest(self) -> Attempt | None:
        """The attempt that owns the run."""
        return self.attempts[-1] if self.attempts else None

    @property
    def running(self) -> Attempt | None:
        """The attempt that runs now, as far as can be told from here."""
        attempt = self.newest
        if attempt is None or attempt.number in self.ends or self.is_alive is False:
            return None
        if self.job is not None and self.job.is_alive and (self.job.is_waiting or attempt.job != self.job.id):
            return None
        return attempt if self.is_alive or self.state == "training" else None

    @property
    def is_over(self) -> bool:
        """Will nothing more come of it by itself?"""
        return self.state not in ("queued", "training")

    @property
    def safe_step(self) -> int | None:
        """Steps that a restart would not repeat."""
        return read_step(self.folder)

    @property
    def step(self) -> int | None:
        """How far the run has come, also beyond what is safe while it trains."""
        return newest_step(self.folder) if self.state == "training" else self.safe_step

    @property
    def plan(self) -> Plan | None:
        """What the newest attempt runs, if a launcher began it."""
        return read_plan(self.folder, self.newest.number) if self.newest else None

    @property
    def changed_s(self) -> float:
        """When the folder changed last, in seconds since 1970."""
        return max(_changes(self.folder), default=0.0)


def find_run(word: str) -> Path:
    """The run folder that a path, or a name under ./runs, means; absolute.

    Raises:
        RunFolderError: there is none; with names that are near.
    """
    for folder in (Path(word).expanduser(), RUNS / word):
        if is_run(folder):
            return folder.absolute()
    path = Path(word).expanduser()
    if path.exists():
        raise RunFolderError(
            "this holds no run", where=word, fix="python -m launch ls FOLDER lists the runs in a folder"
        )
    names = [str(run.relative_to(RUNS)) for run in list_runs(RUNS)]
    near = difflib.get_close_matches(word, names, n=1) or difflib.get_close_matches(Path(word).name, names, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise RunFolderError(f"there is no such run{hint}", where=word, fix="python -m launch ls lists the runs in ./runs")


def is_run(folder: Path) -> bool:
    """Does the folder hold a run, or what is queued to become one?"""
    return any((folder / mark).exists() for mark in MARKS)


def list_runs(folder: Path) -> list[Path]:
    """The runs in a folder and one level deeper; the folder itself if it is one."""
    if is_run(folder):
        return [folder]
    return [
        run
        for child in _subfolders(folder)
        for run in ([child] if is_run(child) else filter(is_run, _subfolders(child)))
    ]


def _subfolders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:
        return []


def read_runs(folders: Iterable[Path]) -> list[Run]:
    """Read runs; the queue is asked once for all of them."""
    read = [(folder, tuple(list_attempts(folder)), _queued(folder)) for folder in folders]
    known = ask_queue({job for _, attempts, queued in read for job in _jobs(attempts, queued)})
    return [_read(folder, attempts, queued, known) for folder, attempts, queued in read]


def read_run(folder: Path) -> Run:
    """Read one run."""
    return read_runs([folder])[0]


def _queued(folder: Path) -> str:
    try:
        return queued_job(folder)
    except RunFolderError:
        return ""


def _jobs(attempts: tuple[Attempt, ...], queued: str) -> list[str]:
    return [job for job in dict.fromkeys((queued, attempts[-1].job if attempts else "")) if job]


def _read(folder: Path, attempts: tuple[Attempt, ...], queued: str, known: dict[str, Job] | None) -> Run:
    jobs = [(known or {}).get(job, Job(id=job)) for job in _jobs(attempts, queued)]
    job = next((job for job in jobs if job.is_alive), jobs[-1] if jobs else None)
    run = Run(
        folder=folder,
        attempts=attempts,
        ends={a.number: read_end(folder, a) for a in attempts if end_file(folder, a.number).exists()},
        status=_read_status(folder),
        job=job,
        is_alive=_is_alive(attempts, job, can_ask=known is not None),
    )
    state, why = judge(run)
    return dataclasses.replace(run, state=state, why=why)


def _is_alive(attempts: tuple[Attempt, ...], job: Job | None, *, can_ask: bool) -> bool | None:
    newest = attempts[-1] if attempts else None
    if (job is not None and job.is_alive) or (newest is not None and is_process_alive(newest)):
        return True
    if job is not None and not can_ask:
        return None
    if newest is not None and not newest.job and not same_host(newest.host, os.uname().nodename):
        return None
    return False


def _read_status(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / "status.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def judge(run: Run) -> tuple[State, str]:
    """The state of a run whose other fields are known, and why it is so."""
    attempt = run.newest
    end = run.ends.get(attempt.number) if attempt else None
    if run.job is not None and run.job.is_waiting:
        return "queued", run.job.reason
    lives_by_job = run.job is not None and run.job.is_alive
    if end is not None and attempt is not None and (end.kind == "done" or not lives_by_job):
        ended = _judge_end(run, attempt, end)
        # the launcher's own last moments are no training, unless it is to start the run again
        return ("training", "the next attempt begins") if ended[0] == "lost" and run.is_alive else ended
    if run.is_alive:
        job = run.job.id if run.job is not None and lives_by_job else ""
        begun = end is None and attempt is not None and attempt.job == job
        return "training", "" if begun else "the next attempt begins"
    if run.status.get("state") in TOLD:
        return TOLD[run.status["state"]], str(run.status.get("reason", ""))
    if run.is_alive is None and time.time() - run.changed_s < QUIET_S:
        return "training", f"host {attempt.host if attempt else '?'} cannot be asked from here; its files are fresh"
    if attempt is None and not run.status:
        return "new", f"job {run.job.id} ended before an attempt began" if run.job else "no attempt has begun"
    return "lost", "its processes are gone, and left no word"


def _judge_end(run: Run, attempt: Attempt, end: Outcome) -> tuple[State, str]:
    if end.kind == "done":
        return "done", str(run.status.get("reason", ""))
    plan = run.plan
    outcomes = read_outcomes(run.folder, attempt.launch)
    decision = decide(outcomes, max_restarts=plan.max_restarts if plan else 10, may_requeue=False)
    if decision.code == SAVED:
        return "saved", end.reason
    if decision.code == WRONG_INPUT:
        return "failed", end.reason
    if decision.action == "give_up":
        return "given up", decision.reason
    return "lost", f"{end.reason or end.kind}; what would have started it again is gone"


def read_plan(folder: Path, number: int) -> Plan | None:
    """The plan of an attempt, with the folder as it is called now; None if it has none."""
    try:
        plan = Plan.read(folder / "launch" / f"plan-{number:04d}.json")
    except RunFolderError:
        return None
    return dataclasses.replace(plan, run_dir=str(folder))


def is_own_script(plan: Plan) -> bool:
    """Does the plan run the project's own training, be it a frozen copy?"""
    return Path(plan.script).parts[-2:] == ("nn_train", "train.py")


def stop_file(folder: Path, number: int) -> Path:
    """The file that asks every node of an attempt to stop."""
    return folder / FOLDER / f"{number:04d}.stop"


def newest_step(folder: Path) -> int | None:
    """The last step that the run says it has made, safe or not; None if it says nothing."""
    steps = [step for step in (read_step(folder), *_tail_steps(folder / "metrics.jsonl")) if step is not None]
    return max(steps, default=None)


def _tail_steps(file: Path) -> Iterator[int]:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - TAIL_BYTES))
            lines = opened.read().decode(errors="replace").splitlines()
    except OSError:
        return
    for line in reversed(lines):
        if found := re.match(r'\{"step": (\d+),.*\}$', line):
            yield int(found[1])
            return


def _changes(folder: Path) -> Iterator[float]:
    for name in FRESH:
        try:
            yield (folder / name).stat().st_mtime
        except OSError:
            continue


def has_ended(folder: Path, attempt: Attempt) -> bool:
    """Is the end of an attempt written down, or its process on this machine gone without a word?"""
    if end_file(folder, attempt.number).exists():
        return True
    # looked at once more: it may have written its last word in between
    is_gone = not attempt.job and same_host(attempt.host, os.uname().nodename) and not is_process_alive(attempt)
    return is_gone or end_file(folder, attempt.number).exists()


def wait_for_end(folder: Path, attempt: Attempt, seconds: float) -> Outcome | None:
    """Wait until an attempt has ended; how, or None if it has not."""
    deadline_s = time.monotonic() + seconds
    while not has_ended(folder, attempt):
        if time.monotonic() > deadline_s:
            return None
        time.sleep(0.05)
    if not attempt.launch:  # no launcher wrote its end down: the run's own status is all there is
        kind = KINDS.get(_read_status(folder).get("state", ""), "lost")
        return Outcome(kind=kind, first_step=attempt.first_step, last_step=read_step(folder))
    return read_end(folder, attempt)


def describe_seconds(seconds: float) -> str:
    """A duration in one unit: `12 s`, `5 min`, `3 h`, `4 d`."""
    for limit, unit, size in ((60, "s", 1), (3600, "min", 60), (86_400, "h", 3600), (math.inf, "d", 86_400)):
        if seconds < limit:
            return f"{max(0, int(seconds / size))} {unit}"
    raise AssertionError("every number is below infinity")


def describe_bytes(count: int) -> str:
    """A size in one unit of a thousand: `1.2 MB`."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def spell_wait(words: Iterable[str], default_s: float) -> list[str]:
    """`--wait RUN` as `--wait=DEFAULT RUN`: the seconds may be left out wherever the word stands."""
    spelled = list(words)
    for at, word in enumerate(spelled):
        following = spelled[at + 1] if at + 1 < len(spelled) else ""
        if word == "--wait" and not re.fullmatch(r"\d+(\.\d+)?", following):
            spelled[at] = f"--wait={default_s:g}"
    return spelled
