"""The preflight's own processes on the nodes, started and, whatever they do, ended after a limit."""

import contextlib
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from launch.doctor_allreduce import Meeting
from launch.doctor_finding import Finding, tell_names, tell_size
from launch.doctor_report import Collected, collect
from launch.worker import die_with_parent

ALLREDUCE_S = 105.0  # a little beyond what its processes allow themselves
# What sbatch was told of tasks: a step of one process on each node must not hear it.
NOT_FOR_STEPS = (
    "SLURM_NTASKS", "SLURM_NPROCS", "SLURM_NTASKS_PER_NODE", "SLURM_TASKS_PER_NODE", "SLURM_CPUS_PER_TASK",
    "SLURM_GPUS_PER_TASK", "SLURM_TRES_PER_TASK",
)  # fmt: skip


def ask_nodes(word: str, *, num_nodes: int, is_job: bool, limit_s: float) -> Collected:
    """Have every node report; `word` is what each is asked with."""
    command, environment = (_step if is_job else _here)("launch.doctor_node", word)
    with _started([command], environment) as streams:
        return collect(streams, expected=num_nodes, limit_s=limit_s)


def try_allreduce(meeting: Meeting, *, is_job: bool, tasks: int) -> Finding:
    """An all-reduce by some processes on each node of a job, or here."""
    if is_job:
        started = [_step("launch.doctor_allreduce", json.dumps(dataclasses.asdict(meeting)), tasks=tasks)]
    else:
        members = [dataclasses.asdict(dataclasses.replace(meeting, rank=rank)) for rank in range(meeting.world_size)]
        started = [_here("launch.doctor_allreduce", json.dumps(member)) for member in members]
    with _started([command for command, _ in started], started[0][1] | {"OMP_NUM_THREADS": "1"}) as streams:
        collected = collect(streams, expected=meeting.world_size, limit_s=ALLREDUCE_S)
    return judge_allreduce(collected.reports, meeting, said=collected.said[-1] if collected.said else "")


def judge_allreduce(reports: Mapping[int, Mapping[str, Any]], meeting: Meeting, said: str = "") -> Finding:
    """What the processes' reports of their all-reduce mean; `said` is the last other line that they wrote."""
    wrong = [report["host"] for report in reports.values() if report.get("is_right") is False]
    errors = [f"{report['host']}: {report['error']}" for report in reports.values() if report.get("error")]
    silent = [rank for rank in range(meeting.world_size) if rank not in reports]
    who = f"{meeting.backend}, {meeting.world_size} process(es)"
    if wrong:
        mend = "do not compute there (sbatch --exclude=NODE), and tell the administrators"
        return Finding("all-reduce", f"{who}: failed", "FAILED", f"wrong sums on {tell_names(wrong)}", mend)
    if errors or silent:
        cause = errors[0] if errors else f"process {silent[0]} said nothing" + (f": {said}" if said else "")
        mend = "open all ports between the nodes, or name the interface: --network-interface=NAME; NCCL_DEBUG=INFO"
        return Finding("all-reduce", f"{who}: failed", "FAILED", cause, f"{mend} tells more")
    latency_us = 1e6 * max(report["latency_s"] for report in reports.values())
    speed = round(min(report["bytes_per_s"] for report in reports.values()))
    return Finding("all-reduce", f"{who}: right; latency {latency_us:.0f} us, bandwidth {tell_size(speed)}/s")


def _step(module: str, word: str, *, tasks: int = 1) -> tuple[list[str], dict[str, str]]:
    """The srun of some processes on each node, beside whatever else runs in the job; and its environment."""
    components = int(os.environ.get("SLURM_HET_SIZE", "0"))
    groups = [f"--het-group=0-{components - 1}"] if components else []
    words = ["srun", f"--ntasks-per-node={tasks}", "--overlap", "--kill-on-bad-exit=0", *groups]
    words += ["--overcommit"] if tasks > 1 else []  # the job may have fewer CPUs
    environment = {name: value for name, value in os.environ.items() if name not in NOT_FOR_STEPS}
    return [*words, sys.executable, "-m", module, word], environment


def _here(module: str, word: str) -> tuple[list[str], dict[str, str]]:
    """A process here; it does not hear that this shell may be a task of a step, for it is the first and only node."""
    environment = {n: value for n, value in os.environ.items() if n not in ("SLURM_STEP_ID", "SLURM_PROCID")}
    return [sys.executable, "-m", module, word], environment


@contextlib.contextmanager
def _started(commands: Sequence[Sequence[str]], environment: Mapping[str, str]) -> Iterator[list[int]]:
    """Start processes, hand out their outputs, and see to it that they end."""
    children: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            child = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                preexec_fn=die_with_parent,
            )
            children.append(child)
        yield [child.stdout.fileno() for child in children if child.stdout]
        _wait(children, 3.0)
    finally:
        for end in (subprocess.Popen.terminate, subprocess.Popen.kill):  # srun ends its step when it is asked to end
            left = [child for child in children if child.poll() is None]
            for child in left:
                end(child)
            _wait(left, 2.0)
        for child in children:
            if child.stdout:
                child.stdout.close()


def _wait(children: Sequence[subprocess.Popen[bytes]], limit_s: float) -> None:
    deadline_s = time.monotonic() + limit_s
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline_s - time.monotonic()))
