"""What a preemption will cost, tried on a run that trains: it is stopped, and watched until it trains again."""

import dataclasses
import itertools
import json
import re
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from launch import slurm
from launch.control import running_attempt
from launch.local import say
from launch.outcome import Outcome, read_outcome
from launch.plan import Plan, request_stop
from launch.rehearse_fault import ask_for_fault, describe_ordeal, spell_fault, watch_ordeal, withdraw_fault
from launch.request import Parser
from launch.runs import find_run, has_ended, is_own_script, newest_step, read_plan, read_run, stop_file, wait_for_end
from nn_train.attempts import Attempt, newest_number
from nn_train.errors import RunFolderError, UserError
from nn_train.faults import KINDS

WAIT_S = 600.0
TICK_S = 0.05
REHEARSED = ("rehearsal", "preempted", "walltime")
FEWEST_LINES = 3  # of metrics.jsonl, from which their distance can be told
MOST_SHOWN = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limit:
    """Seconds that a save may take, and who says so; without a `fix` it is only good to know."""

    name: str
    seconds: float
    fix: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """What was seen; None: not within the time that was waited."""

    attempt: int
    outcome: Outcome | None = None
    saved_s: float | None = None
    back_s: float | None = None
    lost_steps: int = 0
    wrong_lines: str = ""


def main(words: Sequence[str]) -> int:
    """`python -m launch rehearse`: 0 if the run saved in time, came back and lost nothing, else 1.

    Raises:
        UserError: the run does not train now.
    """
    parser = Parser(
        prog="python -m launch rehearse",
        description="Stop a run that trains as a preemption would, and see it go on from its checkpoint at once.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument(
        "--wait", type=float, default=WAIT_S, metavar="SECONDS", help="longest wait for each part (600)"
    )
    parser.add_argument(
        "--signal", action="store_true", help="have Slurm send the job's signal: it is requeued, and waits its turn"
    )
    parser.add_argument(
        "--fault",
        metavar="FAULT",
        help=f"then let the next attempt meet one ({', '.join(KINDS)}), and see the run recover; in full as in "
        "nn_train/faults.py: stop@evaluate,rank=1",
    )
    parsed = parser.parse_args(words)
    folder = find_run(parsed.run)
    attempt, plan = _subject(folder, is_signal=parsed.signal)
    fault = spell_fault(parsed.fault, plan) if parsed.fault else ""
    _wait_for_step(plan, attempt, parsed.wait)
    limits = list_limits(plan)
    if fault:
        ask_for_fault(plan, fault)
    try:
        trial = _try(plan, attempt, wait_s=parsed.wait, is_signal=parsed.signal)
    finally:
        if fault and newest_number(folder) <= plan.attempt:
            withdraw_fault(plan)  # nobody has met it, and nobody is to who does not expect it
    verdict, problems = judge(trial, limits, folder=folder, wait_s=parsed.wait)
    say("\n".join([verdict, *problems]))
    if fault and not problems:
        verdict, problems = describe_ordeal(
            watch_ordeal(plan, fault, wait_s=parsed.wait), folder=folder, wait_s=parsed.wait
        )
        say("\n".join([verdict, *problems]))
    if len(limits) > 1:
        say("Slurm kills after " + ", ".join(f"{limit.seconds:g} s {limit.name}" for limit in limits[1:]))
    return int(bool(problems))


def _subject(folder: Path, *, is_signal: bool) -> tuple[Attempt, Plan]:
    """The attempt that is to be stopped, and its plan.

    Raises:
        UserError: it could not be stopped and started again now.
    """
    run = read_run(folder)
    start = "start it: python -m launch run, or python -m launch submit; and rehearse once it trains"
    if run.is_over:
        raise RunFolderError(f"the run does not train now: it is {run.state}", where=str(folder), fix=start)
    attempt = running_attempt(run, "rehearse")
    plan = read_plan(folder, attempt.number)
    if plan is None:
        raise RunFolderError(
            f"no launcher began {attempt.describe()}: nothing would start it again", where=str(folder), fix=start
        )
    if stop_file(folder, attempt.number).exists():
        raise RunFolderError(
            f"{attempt.describe()} was asked to stop already",
            where=str(folder),
            fix="rehearse when the next one trains",
        )
    if is_signal and not attempt.job:
        raise UserError("--signal needs a Slurm job, and this run is none", fix="leave --signal out")
    return attempt, plan


def _wait_for_step(plan: Plan, attempt: Attempt, wait_s: float) -> None:
    """Wait until the attempt trains: before that it does not hear a stop, and the time to save would be its start's.

    Raises:
        RunFolderError: it does not train, or has ended.
    """
    deadline_s = time.monotonic() + wait_s
    while is_own_script(plan) and (newest_step(plan.folder) or 0) <= (plan.first_step or 0):
        if has_ended(plan.folder, attempt) or time.monotonic() > deadline_s:
            raise RunFolderError(
                f"{attempt.describe()} has made no step yet", where=str(plan.folder), fix="rehearse once it trains"
            )
        time.sleep(TICK_S)


def list_limits(plan: Plan) -> list[Limit]:
    """How long a save may take: by the plan, and by what Slurm grants before it kills."""
    limits = [Limit(name="lead", seconds=plan.lead_s, fix="a longer --lead; as a batch job also --signal=USR1@SECONDS")]
    kill_wait_s = read_kill_wait(_ask("show", "config")) if plan.job else None
    if kill_wait_s is None:
        return limits
    limits.append(Limit(name="KillWait (scancel)", seconds=kill_wait_s))
    partition = slurm.job_fields(plan.job).get("Partition", "")
    fields = slurm.read_fields(_ask("-o", "show", "partition", partition)) if partition else {}
    if fields.get("PreemptMode", "OFF") != "OFF":
        grace_s = float(fields["GraceTime"]) if fields.get("GraceTime", "").isdigit() else 0.0
        limits.append(
            Limit(
                name=f"GraceTime + KillWait (preemption in partition {partition})",
                seconds=grace_s + kill_wait_s,
                fix="another partition, or a longer GraceTime of this one",
            )
        )
    return limits


def _ask(*words: str) -> str:
    try:
        return slurm.call("scontrol", *words)
    except UserError:
        return ""


def read_kill_wait(config: str) -> float | None:
    """KillWait in what `scontrol show config` prints."""
    found = re.search(r"^KillWait\s*=\s*(\d+) sec", config, re.MULTILINE)
    return float(found[1]) if found else None


def _try(plan: Plan, attempt: Attempt, *, wait_s: float, is_signal: bool) -> Trial:
    """Stop the attempt and watch."""
    folder = plan.folder
    asked_at = newest_step(folder)
    started_s = time.monotonic()
    if is_signal:
        slurm.call("scancel", "--signal=USR1", attempt.job)
    else:
        request_stop(plan.stop_request, "rehearsal")
    say(f"asked {attempt.describe()} to stop" + ("" if asked_at is None else f" at step {asked_at}"))
    outcome = wait_for_end(folder, attempt, wait_s)
    if outcome is None:
        return Trial(attempt=attempt.number)
    saved_s, seen_step = time.monotonic() - started_s, newest_step(folder)
    trial = Trial(attempt=attempt.number, outcome=outcome, saved_s=saved_s)
    if outcome.kind != "stopped" or outcome.reason not in REHEARSED:
        return trial
    step = outcome.last_step
    say(f"saved after {saved_s:.1f} s" + ("" if step is None else f" at step {step}"))
    lost_steps = max(0, (seen_step or 0) - step) if step is not None else 0
    if not _comes_back(plan, outcome, time.monotonic() + wait_s):
        return dataclasses.replace(trial, lost_steps=lost_steps)
    back_s = time.monotonic() - started_s
    wrong = "" if step is None else find_wrong_lines(_read_lines(folder / "metrics.jsonl"), saved_step=step)
    return dataclasses.replace(trial, back_s=back_s, lost_steps=lost_steps, wrong_lines=wrong)


def _comes_back(plan: Plan, outcome: Outcome, deadline_s: float) -> bool:
    """Wait until the next attempt has made a step; of a script that counts none, until it says something."""
    folder, looked_s = plan.folder, time.monotonic()
    while time.monotonic() < deadline_s:
        number = newest_number(folder)
        if number > plan.attempt:
            if outcome.last_step is not None and (newest_step(folder) or 0) > outcome.last_step:
                return True
            logs = (folder / "logs" / f"attempt-{number:04d}").glob("*-rank-0.log")
            if outcome.last_step is None and any(log.stat().st_size for log in logs):
                return True
        if time.monotonic() - looked_s > 1.0:
            looked_s = time.monotonic()
            if not plan.job and read_run(folder).is_over:  # a job's requeue takes its moment
                return (newest_step(folder) or 0) > (outcome.last_step or 0) and newest_number(folder) > plan.attempt
        time.sleep(TICK_S)
    return False


def _read_lines(file: Path) -> list[tuple[str, int]]:
    """Split and step of every line of metrics.jsonl."""
    lines = []
    try:
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                lines.append((str(record["split"]), int(record["step"])))
            except (ValueError, KeyError, TypeError):  # the last line may be on its way
                continue
    except OSError:
        pass
    return lines


def find_wrong_lines(lines: Sequence[tuple[str, int]], *, saved_step: int) -> str:
    """What is wrong with the lines of a run that was stopped at `saved_step` and went on; empty if nothing is."""
    twice = sorted({step for (_, step), count in Counter(lines).items() if count > 1})
    if twice:
        return f"steps that are there twice: {_some(twice)}"
    for split in {split for split, _ in lines}:
        steps = [step for name, step in lines if name == split]
        if steps != sorted(steps):
            return f"lines of split '{split}' that are out of order"
        before, after = [s for s in steps if s <= saved_step], [s for s in steps if s > saved_step]
        if len(before) < FEWEST_LINES or not after:
            continue
        gap = max(later - earlier for earlier, later in itertools.pairwise(before))
        if after[0] - before[-1] > gap:
            return f"no line of split '{split}' between steps {before[-1]} and {after[0]}"
    return ""


def _some(steps: Sequence[int]) -> str:
    return ", ".join(map(str, steps[:MOST_SHOWN])) + (", ..." if len(steps) > MOST_SHOWN else "")


def judge(trial: Trial, limits: Sequence[Limit], *, folder: Path, wait_s: float) -> tuple[str, list[str]]:
    """The verdict in one line, and every problem with its mend; what failed is read from the run folder."""
    look = f"python -m launch show {folder}"
    if trial.outcome is None or trial.saved_s is None:
        return f"not saved in {wait_s:g} s", _problem(
            f"attempt {trial.attempt} goes on after it was asked to stop",
            "its script must look for the file that LAUNCH_STOP_FILE names, or be given --stop-signal",
        )
    if trial.outcome.kind != "stopped" or trial.outcome.reason not in REHEARSED:
        return _other_end(trial, folder)
    problems = []
    for limit in limits:
        if trial.saved_s > limit.seconds and limit.fix:
            problems += _problem(f"saving took longer than the {limit.seconds:g} s of {limit.name}", limit.fix)
    if trial.back_s is None:
        problems += _problem(f"the run did not train again within {wait_s:g} s: {_describe(folder)}", look)
    if trial.lost_steps:
        problems += _problem("steps were made and reported that no checkpoint holds", "checkpoint on the stop request")
    if trial.wrong_lines:
        problems += _problem(
            f"metrics.jsonl has {trial.wrong_lines}", "look at that file and at the logs of both attempts"
        )
    back = "not training again" if trial.back_s is None else f"training again after {trial.back_s:.1f} s"
    lead = next(limit.seconds for limit in limits if limit.name == "lead")
    return f"saved in {trial.saved_s:.1f} s of {lead:g} s lead; {back}; {trial.lost_steps} steps lost", problems


def _other_end(trial: Trial, folder: Path) -> tuple[str, list[str]]:
    """An attempt that ended otherwise than by saving on the request."""
    assert trial.outcome is not None
    kind = trial.outcome.kind.replace("_", " ")
    if trial.outcome.kind == "done":
        return f"attempt {trial.attempt} was done first", _problem(
            "nothing was rehearsed", "rehearse a longer run, or earlier"
        )
    plan = read_plan(folder, trial.attempt)
    failure = read_outcome(plan).failure if plan else None
    lines = [f"  | {line[:160]}" for line in failure.lines[-5:]] if failure else []
    what = trial.outcome.reason or "its processes left no word"
    return f"not saved: attempt {trial.attempt} {kind}", [
        *_problem(what, f"python -m launch logs --attempt {trial.attempt} {folder}"),
        *lines,
    ]


def _describe(folder: Path) -> str:
    run = read_run(folder)
    return f"it is {run.state}" + (f" ({run.why})" if run.why else "")


def _problem(what: str, fix: str) -> list[str]:
    return [f"problem: {what}", f"  mend: {fix}"]
