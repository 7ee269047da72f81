"""The attempts of a run and how they ended, as the run folder tells."""

import dataclasses
import json
import os
from collections.abc import Collection
from pathlib import Path

from launch import slurm
from launch.outcome import Outcome, same_host
from nn_train.attempts import FOLDER, Attempt, list_attempts
from nn_train.errors import RunFolderError
from nn_train.run_folder import read_json, write_json

JOB_FILE = Path("launch") / "job.json"  # the job that was queued last for this run


def end_file(run_dir: Path, number: int) -> Path:
    """Where the end of an attempt is written."""
    return run_dir / FOLDER / f"{number:04d}.end.json"


def write_outcome(run_dir: Path, number: int, outcome: Outcome) -> None:
    """Write how an attempt ended, in the words that `read_outcomes` reads."""
    values = dataclasses.asdict(outcome)
    values["failure"] = str(outcome.failure) if outcome.failure else ""
    write_json(end_file(run_dir, number), values)


def read_outcomes(run_dir: Path, launch: str) -> list[Outcome]:
    """How the attempts of one launch ended, oldest first; one without a word was lost with its host."""
    return [read_end(run_dir, attempt) for attempt in list_attempts(run_dir) if attempt.launch == launch]


def read_end(run_dir: Path, attempt: Attempt) -> Outcome:
    """How one attempt ended."""
    try:
        values = json.loads(end_file(run_dir, attempt.number).read_text(encoding="utf-8"))
        return Outcome(**(values | {"failure": None}))
    except (OSError, ValueError, TypeError, RecursionError):
        return Outcome(kind="lost", first_step=attempt.first_step)


def queued_job(run_dir: Path) -> str:
    """The job that was queued last for this run; empty if none was."""
    file = run_dir / JOB_FILE
    return str(read_json(file).get("job", "")) if file.exists() else ""


def refuse_if_alive(run_dir: Path, *, own: Collection[str] = ()) -> None:
    """Refuse a second start of a run while its first one lives; `own` are the ids of the job that asks.

    Raises:
        RunFolderError: with the job or process that has the run.
    """
    attempts = list_attempts(run_dir)
    for other in {queued_job(run_dir), attempts[-1].job if attempts else ""} - {"", *own}:
        if slurm.is_alive(other):
            raise RunFolderError(
                f"job {other} has this run ({slurm.job_state(other).lower()})",
                where=str(run_dir),
                fix=f"wait for it, or: python -m launch cancel {run_dir}; another run: run.dir=OTHER",
            )
    if attempts and is_process_alive(attempts[-1]) and attempts[-1].pid != os.getpid():
        raise RunFolderError(
            f"process {attempts[-1].pid} on this machine has this run",
            where=str(run_dir),
            fix=f"wait for it, or: python -m launch stop {run_dir}; another run: run.dir=OTHER",
        )


def is_process_alive(attempt: Attempt) -> bool:
    """Does the process that made an attempt outside Slurm still run here? Its id may be another's by now."""
    if attempt.job or not attempt.pid or not same_host(attempt.host, os.uname().nodename):
        return False
    return attempt.pid_started == Attempt.started_ticks(attempt.pid) is not None
