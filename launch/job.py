"""The two acts around each attempt of a batch job, called by slurm/train.sh.

python -m launch.job begin [OPTIONS --] WORDS...    claim the attempt, print the path of its plan
python -m launch.job end PLAN                       say how it ended and what follows, by exit code
"""

import argparse
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from launch import slurm
from launch.decision import FENCED, WRONG_INPUT, Decision, decide
from launch.devices import count_gpus
from launch.history import read_outcomes, refuse_if_alive, write_outcome
from launch.outcome import Failure, Outcome, read_outcome, read_step
from launch.place import Place, choose_lead_s, choose_port, slurm_place
from launch.plan import Plan
from launch.request import Options, read_options
from launch.target import Target
from nn_train.attempts import Fence, claim
from nn_train.errors import UserError, error_from_os
from nn_train.timeline import append_event

PRELOAD = ("nn_train.engine",)
FAULT_FILE = Path("launch") / "faults"
LINE_CHARS = 300  # of a log's line that is shown: a dump of an aborted process has lines of thousands


def begin(words: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """Claim the next attempt of the run for this batch job, and write its plan.

    Raises:
        UserError: wrong words, another job has the run, or tasks that disagree with devices.
    """
    options, target = read_options(words, task=environment.get("SLURM_ARRAY_TASK_ID"))
    place = slurm_place(environment)
    if environment.get("SLURM_GPUS_PER_TASK") and not environment.get("SLURM_GPUS_PER_NODE"):
        raise UserError(
            "--gpus-per-task binds one task's GPUs to it, and the one agent of a node would see no others",
            fix="sbatch --gpus-per-node=N; one process per GPU is started",
        )
    gpus = 0 if options.cpu else int(environment.get("SLURM_GPUS_ON_NODE") or count_gpus(environment))
    tasks = int(environment.get("SLURM_NTASKS_PER_NODE") or 1)
    # a task of an array was queued under the array's id, and has one of its own by now
    refuse_if_alive(target.run_dir, own=(place.job, environment.get("SLURM_ARRAY_JOB_ID", "")))
    return start_attempt(
        target,
        options,
        place,
        launch=place.job,
        processes=processes_per_node(options, gpus=gpus, tasks=tasks),
        gpus=gpus,
    )


def processes_per_node(options: Options, *, gpus: int, tasks: int) -> int | None:
    """How many processes each node starts; None: one per GPU of that node.

    On nodes without GPUs sbatch's --ntasks-per-node says how many.

    Raises:
        UserError: tasks per node and GPUs per node disagree.
    """
    if options.processes is not None:
        return options.processes
    if gpus and tasks not in (1, gpus):
        raise UserError(
            f"--ntasks-per-node={tasks} disagrees with {gpus} GPU(s) on this node",
            fix=f"--ntasks-per-node={gpus}, or leave it out: one process per GPU is started",
        )
    return None if gpus else tasks


def start_attempt(
    target: Target, options: Options, place: Place, *, launch: str, processes: int | None, gpus: int
) -> Plan:
    """Claim the next attempt and write its plan into the run folder."""
    run_dir = target.run_dir
    earlier = read_outcomes(run_dir, launch)
    attempt = claim(run_dir, launch=launch, job=place.job, first_step=read_step(run_dir) or 0)
    digits = re.sub(r"\D", "", place.job)
    key = int(digits) if digits else os.getpid()
    plan = Plan(
        run_dir=str(run_dir),
        attempt=attempt.number,
        launch=launch,
        script=str(target.script),
        words=target.words,
        nodes=place.nodes,
        head_address=place.head_address,
        port=choose_port(key, attempt=attempt.number),
        job=place.job,
        processes_per_node=processes,
        threads=options.threads,
        use_cpu=gpus == 0,
        goes_on=bool(earlier),
        first_step=attempt.first_step,
        end_time=place.end_time,
        lead_s=choose_lead_s(place, options.lead_s),
        grace_s=options.grace_s,
        stop_signal=options.stop_signal,
        max_restarts=options.max_restarts,
        network_interface=options.network_interface,
        accelerate_options=options.accelerate_options,
        faults=take_faults(run_dir),
        preload=PRELOAD if target.config is not None and gpus == 0 and options.preload else (),
    )
    plan.log_dir.mkdir(parents=True, exist_ok=True)
    plan.write()
    append_event(run_dir, "attempt", attempt=plan.attempt, job=plan.job, hosts=list(plan.nodes))
    return plan


def take_faults(run_dir: Path) -> str:
    """The faults that a rehearsal wants in the next attempt, once; empty where there are none."""
    file = run_dir / FAULT_FILE
    try:
        text = file.read_text(encoding="utf-8")
        file.unlink()
    except OSError:
        return ""
    return text


def end(plan: Plan) -> Decision:
    """Read how the attempt ended, write it down, and decide what follows."""
    if not Fence(plan.folder, plan.attempt).is_open:
        return Decision("stay", FENCED, "a newer attempt owns the run")
    outcome = read_outcome(plan)
    write_outcome(plan.folder, plan.attempt, outcome)
    # the batch shell of a cancelled job may live for a moment longer: such a job must stay cancelled
    # (the shell asks, since a container may hold none of Slurm's commands)
    may_requeue = bool(plan.job) and (os.environ.get("LAUNCH_JOB_STATE") or slurm.job_state(plan.job)) == "RUNNING"
    outcomes = [*read_outcomes(plan.folder, plan.launch)[:-1], outcome]
    decision = decide(outcomes, max_restarts=plan.max_restarts, may_requeue=may_requeue)
    _note(plan, outcome, decision)
    return decision


def _note(plan: Plan, outcome: Outcome, decision: Decision) -> None:
    """Put the end of an attempt into the run's timeline."""
    if outcome.failure is not None and (hang := outcome.failure.hang):
        append_event(plan.folder, "hang", attempt=plan.attempt, rank=hang.rank, host=hang.host, phase=hang.phase,
                     step=hang.step, silent_s=hang.silent_s)  # fmt: skip
    steps = {name: getattr(outcome, name) for name in ("first_step", "last_step", "made_step")}
    append_event(plan.folder, "end", attempt=plan.attempt, kind=outcome.kind, reason=outcome.reason, **steps,
                 action=decision.action)  # fmt: skip


def describe_end(plan: Plan, decision: Decision) -> str:
    """What a person is to know of an attempt's end: the first error first, then what follows."""
    if decision.code == FENCED:
        return f"attempt {plan.attempt}: {decision.reason}"
    outcome = read_outcome(plan)
    lines = []
    if outcome.failure is not None:
        lines += _failure_lines(plan, outcome.failure)
    steps = "" if outcome.last_step is None else f" at step {outcome.last_step}"
    kind = outcome.kind.replace("_", " ")
    lines.append(f"attempt {plan.attempt}: {kind}{steps}: {decision.reason}")
    return "\n".join(lines)


def _failure_lines(plan: Plan, failure: Failure) -> list[str]:
    file = plan.log_dir / failure.file_name
    lines = [f"first error: {failure}", *([f"  {file}"] if file.exists() else [])]
    return [*lines, *(f"  | {line[:LINE_CHARS]}" for line in failure.lines)]


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m launch.job", description=__doc__)
    parser.add_argument("act", choices=["begin", "end"])
    return parser.parse_args(arguments[:1])


def main() -> int:
    """Do the act that the batch script asks for."""
    act, words = _parse(sys.argv[1:]).act, sys.argv[2:]
    try:
        if act == "begin":
            print(begin(words, os.environ).file)  # noqa: T201 - this is a command
            return 0
        plan = Plan.read(Path(words[0]))
        decision = end(plan)
        print(describe_end(plan, decision), flush=True)  # noqa: T201
        return decision.code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)  # noqa: T201
    except OSError as error:
        print(f"error: {error_from_os(error)}", file=sys.stderr, flush=True)  # noqa: T201
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
