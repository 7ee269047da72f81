"""What runs there are, how one stands, and what its processes say; nothing here changes a run."""

import dataclasses
import datetime
import json
import re
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from launch import slurm
from launch.follow import logs
from launch.history import end_file
from launch.local import say
from launch.outcome import read_outcome
from launch.plan import Plan
from launch.request import Options, Parser
from launch.runs import (
    Run,
    describe_bytes,
    describe_seconds,
    find_run,
    is_own_script,
    list_runs,
    read_plan,
    read_run,
    read_runs,
)
from nn_train.attempts import Attempt
from nn_train.errors import RunFolderError, UserError
from nn_train.timeline import describe, read_events, summarise

__all__ = ["logs", "ls", "show"]
OVER = ("done", "given up")  # no command goes on from here
DEFAULT_LEAD_S = next(field.default for field in dataclasses.fields(Plan) if field.name == "lead_s")
JOB_FIELDS = {
    "JobState": "state", "Reason": "reason", "Partition": "partition", "NodeList": "nodes", "RunTime": "run_time",
    "TimeLimit": "time_limit", "Restarts": "restarts", "ExitCode": "exit_code", "StdOut": "output",
}  # fmt: skip
ACCOUNTED = ("State", "ExitCode", "Elapsed", "MaxRSS", "NNodes")


def ls(words: Sequence[str]) -> int:
    """`python -m launch ls`: one line per run, the one that changed last first."""
    parser = Parser(prog="python -m launch ls", description="The runs in a folder, the one that changed last first.")
    parser.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="folder of run folders (runs)")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parsed = parser.parse_args(words)
    folder = Path(parsed.folder).expanduser()
    if not folder.is_dir():
        raise RunFolderError("there is no such folder", where=str(folder), fix="python -m launch ls FOLDER")
    runs = sorted(read_runs(list_runs(folder)), key=lambda run: run.changed_s, reverse=True)
    if parsed.json:
        say(json.dumps([_summary(run, folder) for run in runs], indent=1))
    elif runs:
        heads = ("name", "state", "step", "attempts", "crashes", "job", "job state", "hosts", "changed")
        say(_columns([heads, *(_row(_summary(run, folder)) for run in runs)]))
    else:
        say(f"no runs in {folder}")
    return 0


def _summary(run: Run, root: Path) -> dict[str, Any]:
    """A run in plain values."""
    kinds = [end.kind for end in run.ends.values()]
    return {
        "name": run.folder.name if run.folder == root else str(run.folder.relative_to(root)),
        "folder": str(run.folder.absolute()),
        "state": run.state,
        "why": run.why,
        "step": run.step,
        "safe_step": run.safe_step,
        "attempts": len(run.attempts),
        "crashes": kinds.count("crashed"),
        "job": run.job.id if run.job else "",
        "job_state": run.job.state if run.job else "",
        "hosts": _hosts(run),
        "changed": _moment(run.changed_s),
        "age_s": round(time.time() - run.changed_s, 1),
    }


def _moment(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")


def _hosts(run: Run) -> list[str]:
    attempt, plan = run.newest, run.plan
    return list(plan.nodes) if plan else [attempt.host] if attempt and attempt.host else []


def _row(summary: dict[str, Any]) -> tuple[str, ...]:
    hosts = summary["hosts"]
    shown = {
        "step": "-" if summary["step"] is None else str(summary["step"]),
        "hosts": ",".join(hosts[:2]) + (f" +{len(hosts) - 2}" if len(hosts) > 2 else ""),
        "age_s": f"{describe_seconds(summary['age_s'])} ago",
    }
    names = ("name", "state", "step", "attempts", "crashes", "job", "job_state", "hosts", "age_s")
    return tuple(shown.get(name, str(summary[name])) or "-" for name in names)


def _columns(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def show(words: Sequence[str]) -> int:
    """`python -m launch show`: everything about one run that helps to decide what to do next."""
    parser = Parser(prog="python -m launch show", description="One run: its state, attempts, job, and what to do next.")
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parsed = parser.parse_args(words)
    run = read_run(find_run(parsed.run))
    facts = describe_run(run)
    say(json.dumps(facts, indent=1) if parsed.json else "\n".join(_lines(facts)))
    return 0


def describe_run(run: Run) -> dict[str, Any]:
    """All that `show` shows, in plain values."""
    plan = run.plan
    config = run.folder / "config.yaml"
    return _summary(run, run.folder) | {
        "script": plan.script if plan else "",
        "words": list(plan.words) if plan else [],
        "config": str(config) if config.exists() else "",
        "metrics": _metrics(run),
        "timeline": _timeline(run.folder),
        "attempts": [_attempt(run, attempt) for attempt in run.attempts],
        "job": _job(run),
        "goes_on": "" if run.state in (*OVER, "training", "queued") else goes_on_command(run),
        "wandb_sync": _wandb_command(run.folder),
        "disk_bytes": sum(file.lstat().st_size for file in run.folder.rglob("*") if file.is_file()),
    }


def _read(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _metrics(run: Run) -> dict[str, float]:
    values = _read(run.folder / "metrics.json").get("test", {}) if run.state == "done" else {}
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def _timeline(folder: Path) -> dict[str, Any] | None:
    """Where the time of the run went, in figures and in words; None where no event was written."""
    timeline = summarise(read_events(folder))
    return {"words": describe(timeline)} | timeline.to_json() if timeline.attempts else None


def _attempt(run: Run, attempt: Attempt) -> dict[str, Any]:
    """One attempt: who, where, when, how it ended, and the first error of a failed one."""
    end, plan = run.ends.get(attempt.number), read_plan(run.folder, attempt.number)
    ended_s = end_file(run.folder, attempt.number).stat().st_mtime if end else None
    is_running = run.running is not None and run.running.number == attempt.number
    facts = {
        "number": attempt.number,
        "job": attempt.job,
        "pid": attempt.pid,
        "hosts": list(plan.nodes) if plan else [attempt.host],
        "started": attempt.started,
        "ended": None
        if ended_s is None
        else datetime.datetime.fromtimestamp(ended_s, datetime.UTC).isoformat("T", "seconds"),
        "kind": end.kind if end else "running" if is_running else "no word" if attempt.launch else "no launcher",
        "reason": end.reason if end else "",
        "first_step": attempt.first_step,
        "last_step": end.last_step if end else None,
        "error": None,
    }
    if end and plan and end.kind in ("crashed", "wrong_input") and (failure := read_outcome(plan).failure):
        log = plan.log_dir / failure.file_name
        facts["error"] = {
            "host": failure.host, "rank": failure.rank, "code": failure.code, "what": str(failure),
            "log": str(log) if log.exists() else "", "lines": list(failure.lines),
        }  # fmt: skip
    return facts


def _job(run: Run) -> dict[str, str] | None:
    if run.job is None:
        return None
    fields = slurm.job_fields(run.job.id)
    known = {name: fields[field] for field, name in JOB_FIELDS.items() if fields.get(field)}
    if run.job.time_left:
        known["time_left"] = run.job.time_left
    if slurm.is_here("sacct"):
        known |= {f"sacct_{name}": value for name, value in _accounted(run.job.id).items()}
    return {"id": run.job.id, **known}


def _accounted(job: str) -> dict[str, str]:
    try:
        text = slurm.call("sacct", "-n", "-X", "-P", "-j", job, "-o", ",".join(ACCOUNTED))
    except UserError:  # a cluster without accounting
        return {}
    line = text.strip().partition("\n")[0]
    return {name: value for name, value in zip(ACCOUNTED, line.split("|"), strict=False) if value}


def goes_on_command(run: Run) -> str:
    """The command that goes on with a run, from any working directory; empty if no launcher ever began it."""
    plan = run.plan
    submitted = run.folder / "launch" / "submit.sh"
    if plan is not None and plan.job and not submitted.exists():
        # an array's lies beside the code that its tasks share: launch/code/nn_train/train.py
        submitted = Path(plan.script).parent.parent.parent / "submit.sh"
    if submitted.exists() and (plan is None or plan.job):
        return shlex.join(["sbatch", str(submitted)])
    if plan is None:
        return ""
    is_own = is_own_script(plan)
    options = Options(
        script=None if is_own else plan.script,
        run_dir=None if is_own else plan.run_dir,
        processes=plan.processes_per_node,
        threads=plan.threads,
        cpu=plan.use_cpu,
        max_restarts=plan.max_restarts,
        lead_s=None if plan.lead_s == DEFAULT_LEAD_S else plan.lead_s,
        grace_s=plan.grace_s,
        stop_signal=plan.stop_signal,
        network_interface=plan.network_interface,
        accelerate_options=plan.accelerate_options,
    ).words()
    words = _own_words(run.folder) if is_own and (run.folder / "config.yaml").exists() else list(plan.words)
    start = (
        ["sbatch", f"--nodes={len(plan.nodes)}", "slurm/train.sh"] if plan.job else ["python", "-m", "launch", "run"]
    )
    return shlex.join([*start, *options, "--", *words])


def _own_words(folder: Path) -> list[str]:
    """The run's own config says it all, with absolute paths; one that was to start over must now go on."""
    config = folder / "config.yaml"
    starts_over = re.search(r"^  resume: never$", config.read_text(encoding="utf-8"), re.MULTILINE)
    return ["--config", str(config), f"run.dir={folder}", *(["checkpoint.resume=auto"] if starts_over else [])]


def _wandb_command(folder: Path) -> str:
    """What sends the offline pieces of a run to wandb, oldest first, as one run."""
    pieces = [str(path) for path in sorted((folder / "wandb").glob("offline-run-*")) if path.is_dir()]
    run_id = _read(folder / "environment.json").get("run_id", "")
    return shlex.join(["wandb", "sync", "--id", run_id, *pieces]) if pieces and run_id else ""


def _lines(facts: dict[str, Any]) -> Iterator[str]:
    """The facts of a run for a person."""
    step = "" if facts["step"] is None else f" at step {facts['step']}"
    if facts["safe_step"] is not None and facts["safe_step"] != facts["step"]:
        step += f" (step {facts['safe_step']} is safe)"
    yield f"{facts['name']}: {facts['state']}{step}" + (f": {facts['why']}" if facts["why"] else "")
    yield f"  folder   {facts['folder']} ({describe_bytes(facts['disk_bytes'])})"
    if facts["script"]:
        yield f"  runs     {shlex.join([facts['script'], *facts['words']])}"
    if facts["config"]:
        yield f"  config   {facts['config']}"
    if facts["metrics"]:
        shown = list(facts["metrics"].items())[:6]
        yield "  test     " + ", ".join(f"{name} {value:.4f}" for name, value in shown)
    if facts["job"]:
        yield "  job      " + ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts["job"].items())
    if facts["timeline"]:
        yield "  timeline " + facts["timeline"]["words"].replace("\n", "\n           ")
    for attempt in facts["attempts"]:
        yield from _attempt_lines(attempt)
    if facts["goes_on"]:
        yield f"  goes on  {facts['goes_on']}"
    if facts["wandb_sync"]:
        yield f"  wandb    {facts['wandb_sync']}"


def _attempt_lines(facts: dict[str, Any]) -> Iterator[str]:
    owner = f"job {facts['job']}" if facts["job"] else f"process {facts['pid']}"
    steps = f"steps {_number(facts['first_step'])} -> {_number(facts['last_step'])}"
    kind = facts["kind"].replace("_", " ") + (f" ({facts['reason']})" if facts["reason"] else "")
    times = f"{facts['started']}" + (f" to {facts['ended']}" if facts["ended"] else "")
    yield f"  attempt  {facts['number']}: {kind}, {steps}, {owner} on {','.join(facts['hosts'])}, {times}"
    if facts["error"]:
        yield f"           first error: {facts['error']['what']}"
        if facts["error"]["log"]:
            yield f"           {facts['error']['log']}"
        yield from (f"           | {line[:160]}" for line in facts["error"]["lines"][-5:])


def _number(step: int | None) -> str:
    return "?" if step is None else str(step)
