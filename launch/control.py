"""Have a run save and end: for now (`stop`), or for good (`cancel`)."""

import os
import signal
import time
from collections.abc import Sequence

from launch import slurm
from launch.local import say
from launch.outcome import Outcome
from launch.plan import request_stop
from launch.request import Parser
from launch.runs import Run, find_run, has_ended, read_run, spell_wait, stop_file, wait_for_end
from nn_train.attempts import Attempt
from nn_train.errors import RunFolderError, UserError
from nn_train.run_folder import write_file

STOP_WAIT_S, CANCEL_WAIT_S = 600.0, 20.0
LOOK_S = 0.2


def stop(words: Sequence[str]) -> int:
    """`python -m launch stop`: 0 if the run was asked, 1 if it had not ended in the time that was waited.

    Raises:
        UserError: nothing of the run trains now.
    """
    parser = Parser(
        prog="python -m launch stop",
        description="Have a run save and end. A batch job is then requeued and goes on later; "
        "a run on this machine goes on when it is started again.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument("--wait", type=float, metavar="SECONDS", help="wait for its end (--wait alone: 600)")
    parsed = parser.parse_args(spell_wait(words, STOP_WAIT_S))
    run = read_run(find_run(parsed.run))
    attempt = running_attempt(run, "stop")
    say(_ask(run, attempt))
    if parsed.wait is None:
        return 0
    started_s = time.monotonic()
    outcome = wait_for_end(run.folder, attempt, parsed.wait)
    if outcome is None:
        say(f"attempt {attempt.number} has not ended in {parsed.wait:g} s; it was asked, and saves as soon as it hears")
        return 1
    say(f"{describe_end(attempt, outcome)} after {time.monotonic() - started_s:.1f} s")
    return 0


def running_attempt(run: Run, verb: str) -> Attempt:
    """The attempt that runs now.

    Raises:
        RunFolderError: none does; with what is true instead, and what can be done.
    """
    if run.running is not None:
        return run.running
    if run.job is not None and run.job.is_waiting:
        reason = run.job.reason or run.job.state
        raise RunFolderError(
            f"nothing runs that could be asked to {verb}: job {run.job.id} is queued ({reason})",
            where=str(run.folder),
            fix=f"take it from the queue: python -m launch cancel {run.folder}",
        )
    if run.is_alive:
        raise RunFolderError(
            f"nothing runs that could be asked to {verb}: the next attempt is about to begin",
            where=str(run.folder),
            fix="try again in some seconds",
        )
    raise RunFolderError(
        f"nothing of this run is queued or runs: {describe_state(run)}",
        where=str(run.folder),
        fix=f"python -m launch show {run.folder} says how it goes on",
    )


def describe_state(run: Run) -> str:
    """A run's state, its step and the reason in a few words."""
    step = "" if run.step is None else f" at step {run.step}"
    return f"it is {run.state}{step}" + (f" ({run.why})" if run.why else "")


def describe_end(attempt: Attempt, outcome: Outcome) -> str:
    """How an attempt ended, and at which step: `attempt 1 stopped (requested) at step 40`."""
    reason = f" ({outcome.reason})" if outcome.reason else ""
    step = "" if outcome.last_step is None else f" at step {outcome.last_step}"
    return f"attempt {attempt.number} {outcome.kind.replace('_', ' ')}{reason}{step}"


def _ask(run: Run, attempt: Attempt) -> str:
    """Ask an attempt to stop; what happens now."""
    who = attempt.describe()
    if not attempt.launch:
        _send_term(run, attempt)
        return f"asked {who} to stop (SIGTERM); it saves and ends; the command that started it goes on from there"
    file = stop_file(run.folder, attempt.number)
    if file.exists():
        return f"{who} was asked to stop already ({file.read_text(encoding='utf-8')}); it saves and ends"
    request_stop(file, "requested")
    if attempt.job:
        return f"asked {who} to stop; it saves and ends, and the job is requeued and goes on (cancel ends it for good)"
    return f"asked {who} to stop; it saves and ends; the same command goes on from there"


def _send_term(run: Run, attempt: Attempt) -> None:
    """A training that no launcher started reads no stop request; its id was checked to be still its own."""
    if attempt.job or not run.is_alive:
        raise RunFolderError(
            f"no launcher started {attempt.describe()}, and it cannot be asked from here",
            where=str(run.folder),
            fix=f"on {attempt.host}: kill -TERM {attempt.pid}",
        )
    os.kill(attempt.pid, signal.SIGTERM)


def cancel(words: Sequence[str]) -> int:
    """`python -m launch cancel`: 0 when the run has ended for good, or is about to.

    Raises:
        UserError: nothing of the run is queued or runs.
    """
    parser = Parser(
        prog="python -m launch cancel",
        description="Have a run save and end for good. A job that still lives after the wait is cancelled, "
        "and has Slurm's KillWait to save.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument(
        "--wait", type=float, default=CANCEL_WAIT_S, metavar="SECONDS", help="longest wait for a save (20)"
    )
    parsed = parser.parse_args(spell_wait(words, CANCEL_WAIT_S))
    folder = find_run(parsed.run)
    run = read_run(folder)
    if run.is_over:
        raise RunFolderError(
            f"there is nothing to cancel: {describe_state(run)}",
            where=str(folder),
            fix=f"python -m launch show {folder} says more",
        )
    outcome = None if run.running is None else _have_saved(run, run.running, parsed.wait)
    run = read_run(folder)
    if run.job is not None and run.job.is_alive:
        _cancel_job(run)
    elif outcome is None:
        say(f"not ended in {parsed.wait:g} s; it was asked, and ends for good as soon as it has saved")
    else:
        say(f"ended: {describe_state(run)}")
    return 0


def _have_saved(run: Run, attempt: Attempt, wait_s: float) -> Outcome | None:
    """Ask the attempt that runs, and any that follows a crash of it, to save and stay; how the last one ended."""
    deadline_s = time.monotonic() + wait_s
    say(f"asking {attempt.describe()} to save and end (for up to {wait_s:g} s)")
    while True:
        if not attempt.launch:
            _send_term(run, attempt)
        else:
            # over any reason that stands there already: a `requested` stop would be requeued
            write_file(stop_file(run.folder, attempt.number), "cancelled")
        outcome = wait_for_end(run.folder, attempt, max(0.0, deadline_s - time.monotonic()))
        if outcome is None:
            return None
        say(describe_end(attempt, outcome))
        following = _next_to_ask(run, attempt, deadline_s)
        if following is None:
            return outcome
        attempt = following


def _next_to_ask(run: Run, attempt: Attempt, deadline_s: float) -> Attempt | None:
    """The attempt that a launcher here begins in place of one that crashed on being asked; None if it begins none."""
    while time.monotonic() < deadline_s:
        now = read_run(run.folder)
        if now.is_over or now.job is not None:  # scancel ends what a job would begin again
            return None
        if now.running is not None and now.running.number > attempt.number:
            return now.running
        time.sleep(LOOK_S)
    return None


def _cancel_job(run: Run) -> None:
    """Cancel the run's job; one that ends by itself at this very moment is just as well."""
    assert run.job is not None
    job = run.job
    try:
        slurm.call("scancel", job.id)
    except UserError:
        if slurm.is_alive(job.id):
            raise
    if job.is_waiting:
        say(f"cancelled job {job.id}, which was queued")
    elif run.running is not None and not has_ended(run.folder, run.running):
        say(f"cancelled job {job.id}; its processes save within Slurm's KillWait: scontrol show config | grep KillWait")
    else:
        say(f"cancelled job {job.id}")
