"""This machine as the cluster: attempts one after another until the run is done, saved, or given up."""

import os
import shlex
import signal
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from launch.command import WORKER, accelerate_argv, contract
from launch.decision import Decision
from launch.devices import Share, count_cpus, count_gpus, share_machine
from launch.history import refuse_if_alive
from launch.job import describe_end, end, start_attempt
from launch.place import local_place
from launch.plan import Plan
from launch.request import Options, Parser, add_options, options_from, split_words
from launch.target import Target, resolve_target
from launch.worker import die_with_parent


def pick(options: Options) -> Share:
    """Processes and threads for this machine.

    Raises:
        UserError: more processes than GPUs.
    """
    gpus = 0 if options.cpu else count_gpus(os.environ)
    return share_machine(processes=options.processes, threads=options.threads, gpus=gpus, cpus=count_cpus())


def run(target: Target, options: Options) -> Decision:
    """Launch the target here, and again after each crash, within the budget."""
    share = pick(options)
    say(f"launching {share.reason}")
    refuse_if_alive(target.run_dir)
    launch = uuid.uuid4().hex[:8]
    while True:
        plan = start_attempt(
            target, options, local_place(), launch=launch, processes=share.processes, gpus=0 if share.is_cpu else 1
        )
        _run_attempt(plan)
        decision = end(plan)
        if decision.code != 0 or plan.attempt > 1:
            say(describe_end(plan, decision))
        if decision.action != "restart":
            return decision


def _run_attempt(plan: Plan) -> None:
    """Run this node's agent to its end; Ctrl-C is the agent's to hear."""
    agent = subprocess.Popen([sys.executable, "-m", "launch.agent", str(plan.file)], preexec_fn=die_with_parent)
    previous = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    passed_on = {signal.SIGTERM, signal.SIGHUP}  # Ctrl-C reaches the agent through the terminal
    for number in passed_on:
        signal.signal(number, lambda number, _: agent.send_signal(number))
    try:
        agent.wait()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def describe(target: Target, options: Options) -> str:
    """What `run` would start, for --dry-run: the words and the environment."""
    share = pick(options)
    plan = Plan(
        run_dir=str(target.run_dir),
        attempt=1,
        launch="LAUNCH",
        script=str(target.script),
        words=target.words,
        nodes=local_place().nodes,
        processes_per_node=share.processes,
        use_cpu=share.is_cpu,
        accelerate_options=options.accelerate_options,
    )
    return describe_plan(plan, local_processes=share.processes, threads=share.threads)


def describe_plan(plan: Plan, *, local_processes: int, threads: int, worker: Path = WORKER) -> str:
    """The words and the environment of one node, as a shell would take them."""
    values = contract(plan, local_processes=local_processes, threads=threads, folder=Path("FOLDER"))
    lines = [f"{name}={shlex.quote(value)}" for name, value in values.items()]
    argv = accelerate_argv(plan, node_rank=0, local_processes=local_processes, worker=worker)
    return "\n".join([*lines, shlex.join(argv)])


def say(text: str) -> None:
    """One or more lines for the person at the terminal; what a foreign run folder holds may not steer it."""
    text = "".join(sign if sign.isprintable() or sign in "\n\t" else "?" for sign in text)
    print(text, flush=True)  # noqa: T201 - this is a command


def main(words: Sequence[str]) -> int:
    """`python -m launch run`: the exit code."""
    own, script_words = split_words(words)
    parser = Parser(
        prog="python -m launch run",
        usage="%(prog)s [OPTIONS] [-- WORDS]",
        description="Launch on this machine; WORDS go to the script: --config FILE, section.key=value.",
    )
    add_options(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the command and its environment, and stop")
    parsed = parser.parse_args(own if "--" in words else script_words)
    options = options_from(parsed)
    target = resolve_target(script_words if "--" in words else [], script=options.script, run_dir=options.run_dir)
    if parsed.dry_run:
        say(describe(target, options))
        return 0
    return run(target, options).code
