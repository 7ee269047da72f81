"""What a login node can tell of a cluster and its profile, before a job is queued."""

import subprocess
from collections.abc import Mapping
from pathlib import Path

from launch import slurm
from launch.batch import seconds_of
from launch.doctor_finding import Finding, tell_size
from launch.doctor_judge import judge_time
from launch.doctor_node import file_system, free_space
from launch.profile import Profile, load_profile

ASK_S = 5.0  # for one of Slurm's commands


def check_cluster(name: str, run_dir: Path) -> list[Finding]:
    """Is Slurm here and up, does its partition suit the profile's jobs, can the nodes see the run folder?

    Raises:
        ConfigError: the profile is not there, or wrong.
    """
    profile = load_profile(name)
    missing = [program for program in ("sbatch", "srun", "scontrol") if not slurm.is_here(program)]
    if missing:
        cause, mend = f"not on this machine: {', '.join(missing)}", "run this on a login node of the cluster"
        return [Finding("Slurm", "missing", "FAILED", cause, mend)]
    answer = _ask("scontrol", "ping").strip()
    if " is UP" not in answer:
        cause = answer.replace("\n", "; ") or f"scontrol did not answer within {ASK_S:g} s"
        mend = "slurmctld is down or not reached: ask who runs it"
        return [Finding("controller", "no answer", "FAILED", cause, mend)]
    settings = slurm.read_fields(_ask("scontrol", "show", "config").replace("\n", " "))
    storage = settings.get("AccountingStorageType", "").removeprefix("accounting_storage/").strip("()")
    return [
        Finding("controller", answer.splitlines()[0].strip()),
        *judge_partition(_partition(profile.partition or slurm.default_partition()), profile),
        Finding("accounting", "none: ended jobs are forgotten soon" if storage in ("", "none", "null") else storage),
        _judge_file_system(run_dir),
    ]


def _judge_file_system(run_dir: Path) -> Finding:
    kind, free = file_system(run_dir), free_space(run_dir)[0]
    found = f"{run_dir} ({kind or 'unknown'}), {'unknown space' if free is None else tell_size(free)} free"
    if kind not in ("tmpfs", "ramfs", "overlay", "squashfs"):
        return Finding("run folder", found)
    mend = "choose a folder on a shared file system: --run-dir DIR here, run.dir=DIR for the run"
    return Finding("run folder", found, "warning", f"{kind} belongs to this machine alone: no node will see it", mend)


def _partition(name: str) -> dict[str, str]:
    """A partition as scontrol shows it; the name alone where there is none."""
    lines = _ask("scontrol", "-o", "show", "partition", name).splitlines() if name else []
    fields = slurm.read_fields(lines[0]) if lines else {}
    return fields if fields.get("PartitionName") == name else {"PartitionName": name}


def judge_partition(fields: Mapping[str, str], profile: Profile) -> list[Finding]:
    """Is the partition, as scontrol shows it, there, up, and large and long enough for the profile's jobs?"""
    name = fields.get("PartitionName", "")
    mend = "sinfo -s shows the partitions; set `partition` in the profile"
    if "State" not in fields:
        cause = f"there is no partition '{name}'" if name else "no partition is named, and the cluster has no default"
        return [Finding("partition", name or "none", "FAILED", cause, mend)]
    if fields["State"] != "UP":
        return [Finding("partition", name, "FAILED", f"partition '{name}' is {fields['State']}", mend)]
    findings = [Finding("partition", f"{name} is up"), _judge_walltime(fields, profile)]
    most = min((int(fields[key]) for key in ("TotalNodes", "MaxNodes") if fields.get(key, "").isdigit()), default=None)
    if most is not None and profile.nodes > most:
        cause = f"the profile asks for {profile.nodes} nodes, partition '{name}' gives {most} at most"
        mend = "lower `nodes` in the profile, or take another partition"
        findings.append(Finding("node count", f"{most} at most", "FAILED", cause, mend))
    elif most is not None:
        findings.append(Finding("node count", f"{most} at most; the profile asks for {profile.nodes}"))
    return findings


def _judge_walltime(fields: Mapping[str, str], profile: Profile) -> Finding:
    limit = fields.get("MaxTime", "UNLIMITED")
    default = fields.get("DefaultTime", "NONE")  # none: jobs that do not say get the limit
    asked = profile.time or (limit if default == "NONE" else default)
    limit_s, asked_s = seconds_of(limit), seconds_of(asked)
    found = f"{asked} for a job; {limit} at most"
    if limit_s is not None and (asked_s is None or asked_s > limit_s):
        cause = f"the profile asks for {asked}, the partition gives {limit} at most"
        mend = "lower `time` in the profile: a run that is stopped is queued again and goes on"
        return Finding("walltime", found, "FAILED", cause, mend)
    if asked_s is None:
        return Finding("walltime", found)
    return judge_time(found, asked_s, profile.lead, "raise `time` or lower `lead` in the profile")


def _ask(*argv: str) -> str:
    """What one of Slurm's commands says, on either stream; empty if it does not within the limit."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=ASK_S, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + done.stderr
