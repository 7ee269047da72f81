"""The preflight: checks one machine, every node of a job, or a cluster from its login node, before time is spent.

Each node looks at itself (`launch.doctor_node`), all of them add numbers up together (`launch.doctor_allreduce`),
and `launch.doctor_judge` turns what they found into a table with a cause and a mend for each failure. Every
multi-node job starts with the quick form: what that does not need is imported where it is used.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import secrets
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from launch import slurm
from launch.devices import count_gpus
from launch.doctor_finding import Finding, Need, Wanted
from launch.doctor_judge import judge, usable_gpus
from launch.doctor_meet import describe, remove_files
from launch.doctor_report import Collected, Request, collect, config_of, patience_s
from launch.place import Place, choose_lead_s, local_place, slurm_place
from launch.plan import Plan
from launch.request import Parser, count, split_words
from launch.target import resolve_target
from nn_train.errors import ConfigError
from nn_train.network_choice import resolve_model
from nn_train.settings import Config

WHOLE_S = 300  # the last resort, where the system itself hangs on a dead file system
STEP_S = 12.0  # for srun and Python to start on every node, beyond the nodes' patience with each other
ASSUMED_COLUMNS = 100


def check_plan(plan: Plan, *, quick: bool, reports: int | None = None) -> list[Finding]:
    """Every node of an attempt. `reports` is an open file with the nodes' reports, where others started them."""
    wanted = want_of_plan(plan, os.environ)  # while the nodes start
    place = Place(nodes=plan.nodes, head_address=plan.head_address, job=plan.job)
    try:
        if reports is None:
            collected = _ask_nodes(str(plan.file), place)
        else:
            limit_s = STEP_S + patience_s(len(plan.nodes))
            collected = collect([reports], expected=len(plan.nodes), limit_s=limit_s)
    finally:
        with contextlib.suppress(OSError):
            remove_files(plan.log_dir)
    return _judge_all(collected, wanted, place, processes=plan.processes_per_node, quick=quick)


def want_of_plan(plan: Plan, environment: Mapping[str, str]) -> Wanted:
    """What an attempt needs of its nodes."""
    config = config_of(plan.script, plan.words)
    uses_cpu = plan.use_cpu or not _may_use_gpus(environment)
    return Wanted(
        nodes=plan.nodes,
        gpus=0 if uses_cpu else plan.processes_per_node or 1,
        processes=plan.processes_per_node,
        need=predict_need(config, plan.folder),
        seconds_left=None if plan.end_time is None else plan.end_time - time.time(),
        lead_s=plan.lead_s,
        port=plan.port,
        tracking_mode=config.tracking.mode if config else "",
        network_interface=plan.network_interface,
        run_dir=plan.run_dir,
    )


def check_here(options: argparse.Namespace, words: Sequence[str]) -> list[Finding]:
    """This machine, or every node of the allocation that this shell is in."""
    config, run_dir = None, Path(options.run_dir or "runs").expanduser().absolute()
    if words:
        target = resolve_target(words, run_dir=options.run_dir)
        config, run_dir = target.config, target.run_dir
    place = slurm_place(os.environ) if _is_in_allocation(options) else local_place()
    tracking_mode = config.tracking.mode if config else ""
    with meeting_place(run_dir) as (folder, error):
        request = Request(
            run_dir=str(run_dir),
            folder=folder,
            num_nodes=len(place.nodes),
            head_address=place.head_address,
            head_name=place.nodes[0],
            tracking_mode=tracking_mode,
        )
        collected = _ask_nodes(json.dumps(dataclasses.asdict(request)), place)
    wanted = Wanted(
        nodes=place.nodes,
        processes=options.processes or 1,
        need=predict_need(config, run_dir),
        seconds_left=None if place.end_time is None else place.end_time - time.time(),
        lead_s=choose_lead_s(place, None),
        tracking_mode=tracking_mode,
        network_interface=options.network_interface,
        run_dir=str(run_dir),
        folder_error=error,
    )
    return _judge_all(collected, wanted, place, processes=options.processes, quick=options.quick)


@contextlib.contextmanager
def meeting_place(run_dir: Path) -> Iterator[tuple[str, str]]:
    """A new folder in the run folder for the nodes' files, or why there is none; nothing of it is left afterwards."""
    folder = run_dir / "launch" / f"doctor-{secrets.token_hex(4)}"
    made: list[Path] = []
    try:
        made = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True)
    except OSError as error:
        yield "", f"{error.filename}: {describe(error)}"
    else:
        yield str(folder), ""
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for place in made:
            with contextlib.suppress(OSError):  # it is not there, or somebody uses it by now
                place.rmdir()


def predict_need(config: Config | None, run_dir: Path) -> Need:
    """Space that the run's checkpoints will take, at least a floor for logs, plots and the rest.

    Two more than are kept, since one is written before the oldest goes and a killed write may leave another. Each
    holds the weights, the best weights and two moments of every weight. How large they are is known where the run has
    one already; else the number of weights is estimated for a table of `ASSUMED_COLUMNS` columns.
    """
    if config is None:
        return Need()
    number = config.checkpoint.keep_last + 2
    written = sorted((run_dir / "checkpoints").glob("step-*"))
    if written:
        one = sum(file.stat().st_size for file in written[-1].iterdir())
        number = max(2, number - len(written))
    else:
        one = 4 * 4 * _num_weights(config)
    return Need(size_bytes=max(Need.size_bytes, number * one))


def _num_weights(config: Config) -> int:
    """About as many weights as the network will have, on a device that lets `auto` choose the largest."""
    try:
        model = resolve_model(config.model, num_rows=10**9, num_numbers=ASSUMED_COLUMNS, device_type="gpu")
    except ConfigError:  # the training says it, with the table in hand
        return 0
    widths = [size for size in (model.num_embedding, model.width, model.num_blocks) if isinstance(size, int)]
    if len(widths) < 3:
        return ASSUMED_COLUMNS * config.preprocess.num_bins
    embedding, width, blocks = widths
    return ASSUMED_COLUMNS * embedding * (config.preprocess.num_bins + width) + 4 * blocks * width**2


def _ask_nodes(word: str, place: Place) -> Collected:
    from launch.doctor_steps import ask_nodes

    num_nodes = len(place.nodes)
    return ask_nodes(word, num_nodes=num_nodes, is_job=bool(place.job), limit_s=STEP_S + patience_s(num_nodes))


def _judge_all(
    collected: Collected, wanted: Wanted, place: Place, *, processes: int | None, quick: bool
) -> list[Finding]:
    """The nodes' findings, and that of an all-reduce where the nodes let it be tried."""
    reports = collected.node_reports()
    findings = judge(reports, wanted)
    if findings[0].level != "ok" and collected.said:  # srun's own words
        findings[0] = dataclasses.replace(findings[0], cause=f"{findings[0].cause}: {collected.said[-1][:200]}")
    if quick or findings[0].level != "ok":
        return findings
    from launch.doctor_allreduce import Meeting
    from launch.doctor_steps import try_allreduce

    gpus = min(map(usable_gpus, reports))
    tasks = (processes or (gpus if gpus > 1 else 2)) if len(place.nodes) == 1 else 1
    has_gpus = gpus >= tasks and (wanted.gpus > 0 or not place.job) and _may_use_gpus(os.environ)
    meeting = Meeting(
        address=place.head_address,
        port=reports[0].free_port,
        world_size=tasks * len(place.nodes),
        backend="nccl" if has_gpus else "gloo",
        network_interface=wanted.network_interface,
    )
    return [*findings, try_allreduce(meeting, is_job=bool(place.job), tasks=tasks)]


def _may_use_gpus(environment: Mapping[str, str]) -> bool:
    """May Accelerate use GPUs, whatever the machine holds?"""
    return count_gpus({**environment, "CUDA_VISIBLE_DEVICES": "0"}) > 0


def _is_in_allocation(options: argparse.Namespace) -> bool:
    return bool(os.environ.get("SLURM_JOB_NODELIST")) and slurm.is_here("srun") and not options.local


def show(findings: Sequence[Finding], *, title: str, seconds: float, brief: bool) -> int:
    """Print the table with causes and mends, or one line where all is well and `brief` is asked for; the exit code."""
    wrong = [finding for finding in findings if finding.level != "ok"]
    failures = sum(finding.level == "FAILED" for finding in findings)
    lines: list[str] = []
    if wrong or not brief:
        lines.append(f"{'check':<14} {'verdict':<8} found")
        lines += [f"{finding.check:<14} {finding.level:<8} {finding.found}" for finding in findings]
    for finding in wrong:
        lines += [f"{finding.level} {finding.check}: {finding.cause}", f"  mend: {finding.mend}"]
    counts = {"failed": failures, "warning(s)": len(wrong) - failures}
    verdict = ", ".join(f"{number} {name}" for name, number in counts.items() if number) or "all well"
    lines.append(f"preflight of {title}: {len(findings)} checks, {verdict} ({seconds:.1f} s)")
    print("\n".join(lines), flush=True)  # noqa: T201 - this is a command
    return 2 if failures else 0


def _parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    parser = Parser(
        prog="python -m launch doctor",
        usage="%(prog)s [OPTIONS] [-- WORDS]",
        description="Check this machine, every node of a job, or a cluster, before time is spent. "
        "WORDS are those of the training that is meant: --config FILE, section.key=value.",
        epilog="exit codes: 0 all well, or warnings alone; 2 something failed",
    )
    for name, metavar, text in (
        ("--run-dir", "DIR", "run folder (default: the config's, or runs)"),
        ("--network-interface", "NAME", "interface for gloo and NCCL, as ib0"),
        ("--plan", "FILE", "check the nodes of the attempt that this plan is of"),
        ("--cluster", "PROFILE", "check a cluster from its login node"),
    ):
        parser.add_argument(name, metavar=metavar, default="", help=text)
    parser.add_argument("--processes", type=count, metavar="N", help="processes of the all-reduce (one per GPU, or 2)")
    for name, text in (
        ("--local", "check this machine alone, also inside an allocation"),
        ("--reports", "with --plan: read the nodes' reports from standard input"),
        ("--quick", "no all-reduce; one line where all is well"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    own, script_words = split_words(words) if "--" in words else (list(words), [])
    options = parser.parse_args(own)
    if options.reports and not options.plan:
        parser.error("--reports needs --plan")
    return options, script_words


def _check(options: argparse.Namespace, words: Sequence[str]) -> tuple[str, list[Finding]]:
    """What was checked, and what was found."""
    if options.cluster:
        from launch.doctor_cluster import check_cluster

        run_dir = Path(options.run_dir or "runs").expanduser().absolute()
        return f"cluster '{options.cluster}'", check_cluster(options.cluster, run_dir)
    if options.plan:
        plan = Plan.read(Path(options.plan))
        findings = check_plan(plan, quick=options.quick, reports=0 if options.reports else None)
        return f"{len(plan.nodes)} node(s)", findings
    title = "all nodes of this job" if _is_in_allocation(options) else "this machine"
    return title, check_here(options, words)


def _give_up(*_: object) -> None:
    os.write(2, f"error: the preflight did not end within {WHOLE_S} s\n  mend: look for a dead file system\n".encode())
    os._exit(2)


def main(words: Sequence[str]) -> int:
    """`python -m launch doctor`: the exit code."""
    options, script_words = _parse(words)
    started_s = time.monotonic()
    signal.signal(signal.SIGALRM, _give_up)
    signal.alarm(WHOLE_S)
    title, findings = _check(options, script_words)
    signal.alarm(0)
    return show(findings, title=title, seconds=time.monotonic() - started_s, brief=options.quick)
