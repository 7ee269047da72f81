"""What the nodes' reports mean for a run: a finding of each check, with a cause and a mend where it is not ok. Pure."""

from collections.abc import Callable

from launch.doctor_finding import (
    Finding,
    Level,
    Reports,
    Wanted,
    group,
    least,
    tell_groups,
    tell_hosts,
    tell_names,
    tell_size,
)
from launch.doctor_report import NodeReport

NEEDED_PACKAGES = {"python", "torch", "accelerate"}  # of any script; the others are this project's
LEAST_SHM, LEAST_TEMP, LEAST_OPEN_FILES = 64 * 2**20, 100_000_000, 1024
CLOCK_WARNING_S, CLOCK_FAILURE_S = 1.0, 10.0
MARGIN_S = 60.0  # of walltime beyond the lead: less is hardly any training


def judge(reports: Reports, wanted: Wanted) -> list[Finding]:
    """One finding for each check that applies; the first says which nodes answered, and is alone where none did."""
    findings = [_judge_nodes(reports, wanted)]
    if reports:
        findings += [finding for check in CHECKS if (finding := check(reports, wanted)) is not None]
    return findings


def judge_time(found: str, left_s: float, lead_s: float, mend: str) -> Finding:
    """Is there time before the stop, `lead_s` before the end? Short jobs and late restarts are no mistake."""
    if left_s >= lead_s + MARGIN_S:
        return Finding("walltime", found)
    cause = f"{left_s:.0f} s are there, and the run is stopped {lead_s:.0f} s before the end"
    return Finding("walltime", found, "warning" if left_s > lead_s else "FAILED", cause, mend)


def _judge_nodes(reports: Reports, wanted: Wanted) -> Finding:
    silent = [name for rank, name in enumerate(wanted.nodes) if rank not in {report.rank for report in reports}]
    found = f"{len(reports)} of {len(wanted.nodes)} answered: {tell_hosts(reports) or 'none'}"
    if not silent:
        return Finding("nodes", found)
    mend = f"look at it: scontrol show node {silent[0]}; then sbatch --exclude={','.join(silent[:8])}"
    return Finding("nodes", found, "FAILED", f"{tell_names(silent)} sent no report", mend)


def _judge_versions(reports: Reports, wanted: Wanted) -> Finding:
    names = sorted({name for report in reports for name in report.packages}, key=lambda name: (name != "python", name))
    groups = {name: group(reports, lambda report, name=name: report.packages.get(name) or "missing") for name in names}
    differing = [f"{name} {tell_groups(groups[name])}" for name in names if len(groups[name]) > 1]
    if differing:
        mend = "use one environment on a file system that all nodes share, or install the same versions on each"
        return Finding("versions", "differ", "FAILED", "; ".join(differing), mend)
    missing = [name for name in names if "missing" in groups[name]]
    found = ", ".join(f"{name} {next(iter(groups[name]))}" for name in names if name not in missing)
    if not missing:
        return Finding("versions", found)
    mend = "activate the environment that has the project, in slurm/train.sh for jobs: pip install -e ."
    level: Level = "FAILED" if set(missing) & NEEDED_PACKAGES else "warning"
    return Finding("versions", found, level, f"not installed: {', '.join(missing)}", mend)


def _judge_code(reports: Reports, wanted: Wanted) -> Finding:
    groups = group(reports, lambda report: f"{report.code} in {report.code_path}")
    if len({report.code for report in reports}) == 1:
        return Finding("code", f"identical: {next(iter(groups))}")
    mend = "run from a folder that all nodes share; python -m launch submit freezes the code into the run folder"
    return Finding("code", "differs", "FAILED", tell_groups(groups), mend)


def _judge_devices(reports: Reports, wanted: Wanted) -> Finding:
    groups = group(reports, lambda report: str(usable_gpus(report)))
    found = f"{' or '.join(groups)} GPU(s) on each node; needed: {wanted.gpus or 'none'}"
    # one process per GPU: each node starts as many as Slurm says it gave
    asked = {r.rank: max(wanted.gpus, r.gpus_promised if wanted.processes is None else 0) for r in reports}
    lacking = [report for report in reports if wanted.gpus and usable_gpus(report) < asked[report.rank]]
    if lacking:
        first = lacking[0]
        seen = f"{tell_hosts(lacking)} sees {usable_gpus(first)} of {asked[first.rank]} GPU(s)"
        hidden = f", though the environment names {first.gpus}" if first.gpus > first.gpu_devices else ""
        mend = "sbatch --gpus-per-node=N, look at nvidia-smi on that node, or compute on the CPU: --cpu"
        return Finding("devices", found, "FAILED", seen + hidden, mend)
    if wanted.gpus and wanted.processes is None and len(groups) > 1:
        mend = "sbatch --gpus-per-node=N gives every node the same"
        return Finding(
            "devices", found, "warning", f"nodes have different numbers of GPUs: {tell_groups(groups)}", mend
        )
    return Finding("devices", found)


def usable_gpus(report: NodeReport) -> int:
    """GPUs that are both named in the environment and there."""
    return min(report.gpus, report.gpu_devices)


def _judge_cpus(reports: Reports, wanted: Wanted) -> Finding:
    found = f"{' or '.join(group(reports, lambda report: str(report.cpus)))} on each node"
    bound = [report for report in reports if report.cpus < report.cpus_promised]
    if bound:
        cause = f"a task on {tell_hosts(bound)} may use {bound[0].cpus} of the job's {bound[0].cpus_promised} CPUs"
        mend = "sbatch --exclusive, or --cpus-per-task=N; or export SLURM_CPU_BIND=none"
        return Finding("CPUs", found, "warning", cause, mend)
    crowded = [report for report in reports if report.cpus < (wanted.processes or 1)]
    if crowded:
        cause = f"{wanted.processes} processes share {crowded[0].cpus} CPU(s) on {tell_hosts(crowded)}"
        return Finding("CPUs", found, "warning", cause, "ask for fewer processes (--processes), or for more CPUs")
    return Finding("CPUs", found)


def _judge_folder(reports: Reports, wanted: Wanted) -> Finding:
    found = f"{wanted.run_dir} ({' or '.join(group(reports, lambda report: report.file_system or 'unknown'))})"
    causes = [f"cannot be made: {wanted.folder_error}"] if wanted.folder_error else []
    wrong = [report for report in reports if report.folder_error]
    causes += [f"on {tell_names(hosts)} it {error}" for error, hosts in group(wrong, lambda r: r.folder_error).items()]
    # of two that do not see each other's files; a node that wrote none, or sent no report, has been named already
    unseen = {report.rank: set(report.unseen) for report in reports if not report.folder_error}
    pairs = [(one, other) for one in unseen for other in unseen if other in unseen[one]]
    apart = [(one, other) for one, other in pairs if one < other and one in unseen[other]]
    causes += [f"{wanted.nodes[one]} and {wanted.nodes[other]} have different folders there" for one, other in apart]
    if causes:
        kind = "one that every node mounts and may write" if len(wanted.nodes) > 1 else "one that you may write"
        return Finding("run folder", found, "FAILED", "; ".join(causes[:4]), f"choose {kind}: run.dir=DIR")
    if pairs:  # the other one does see this one's: the folder is shared
        one, other = pairs[0]
        cause = f"{wanted.nodes[one]} did not see in time what {wanted.nodes[other]} wrote"
        mend = "it started late, or the file system is slow: choose a quicker one if this comes again: run.dir=DIR"
        return Finding("run folder", found, "warning", cause, mend)
    return Finding("run folder", f"{found}, written" + (" and seen by all" if len(reports) > 1 else ""))


def _judge_space(reports: Reports, wanted: Wanted) -> Finding | None:
    return _judge_room(reports, "space", wanted.need.size_bytes, lambda report: report.free_bytes, tell_size)


def _judge_inodes(reports: Reports, wanted: Wanted) -> Finding | None:
    return _judge_room(reports, "inodes", wanted.need.inodes, lambda report: report.free_inodes, lambda n: f"{n:,}")


def _judge_room(
    reports: Reports, check: str, need: int, free_of: Callable[[NodeReport], int | None], tell: Callable[[int], str]
) -> Finding | None:
    lowest = least((report for report in reports if not report.folder_error), free_of)
    if lowest is None:
        return None
    free, host = lowest
    found = f"{tell(free)} free; predicted need {tell(need)}"
    if free >= need:
        return Finding(check, found)
    cause = f"{check} of the run folder: {tell(free)} free (on {host}), {tell(need)} will be needed"
    mend = "remove old runs, keep fewer checkpoints (checkpoint.keep_last=1), or choose another folder: run.dir=DIR"
    return Finding(check, found, "FAILED", cause, mend)


def _judge_temp(reports: Reports, wanted: Wanted) -> Finding | None:
    wrong = [report for report in reports if report.temp_error]
    mend = "free space there, or export TMPDIR=DIR with space that can be written"
    if wrong:
        cause = f"{tell_hosts(wrong)} cannot write {wrong[0].temp_dir}: {wrong[0].temp_error}"
        return Finding("temp folder", wrong[0].temp_dir, "FAILED", cause, mend)
    lowest = least(reports, lambda report: report.temp_free_bytes)
    if lowest is None:
        return None
    free, host = lowest
    found = f"{reports[0].temp_dir}, {tell_size(free)} free"
    if free < LEAST_TEMP:
        return Finding("temp folder", found, "warning", f"{tell_size(free)} are free in it on {host}", mend)
    return Finding("temp folder", found)


def _judge_clocks(reports: Reports, wanted: Wanted) -> Finding | None:
    if len(reports) < 2:
        return None
    first = reports[0]
    worst = max(reports, key=lambda report: abs(report.clock_s - first.clock_s))
    apart_s = worst.clock_s - first.clock_s
    # a report's way through srun takes up to some tenths of a second, more on a busy machine
    found = f"{abs(apart_s):.1f} s apart at most (measured to some tenths of a second)"
    if abs(apart_s) <= CLOCK_WARNING_S:
        return Finding("clocks", found)
    level: Level = "FAILED" if abs(apart_s) > CLOCK_FAILURE_S else "warning"
    side = "behind" if apart_s < 0 else "before"
    cause = f"the clock of {worst.host} is {abs(apart_s):.1f} s {side} that of {first.host}"
    mend = f"have the time service mended on {worst.host} (chronyc tracking), or sbatch --exclude={worst.host}"
    return Finding("clocks", found, level, cause, mend)


def _judge_shm(reports: Reports, wanted: Wanted) -> Finding | None:
    lowest = least(reports, lambda report: report.shm_bytes)
    if lowest is None:
        return None
    size, host = lowest
    is_shared = bool(wanted.gpus) or (wanted.processes or 1) > 1
    if is_shared and size <= LEAST_SHM:  # exactly that is a container's default, and too little for NCCL
        mend = "give the container more: docker --shm-size=1g, apptainer --bind /dev/shm"
        cause = f"/dev/shm has {tell_size(size)} on {host}"
        return Finding("shared memory", tell_size(size), "warning", cause, mend)
    return Finding("shared memory", f"/dev/shm has {tell_size(size)}")


def _judge_open_files(reports: Reports, wanted: Wanted) -> Finding:
    lowest = least(reports, lambda report: report.open_files if report.open_files >= 0 else None)
    if lowest is None:
        return Finding("open files", "no limit")
    limit, host = lowest
    if limit < LEAST_OPEN_FILES:
        cause, mend = f"a process on {host} may open {limit} files", "ulimit -n 4096, before the job's first command"
        return Finding("open files", f"at most {limit}", "warning", cause, mend)
    return Finding("open files", f"at most {limit}")


def _judge_names(reports: Reports, wanted: Wanted) -> Finding | None:
    if len(wanted.nodes) < 2:
        return None
    mend = "mend the name service or /etc/hosts there, or name the interface: --network-interface=NAME"
    wrong = [report for report in reports if report.name_error]
    if wrong:
        cause = f"{tell_hosts(wrong)} cannot resolve {wrong[0].name_error}"
        return Finding("host names", "not all are known", "warning", cause, mend)
    # processes that meet by gloo tell the others the address that their own name means
    inward = [report for report in reports if report.own_address.startswith("127.")]
    if inward and not wanted.network_interface and len(inward) < len(reports):
        cause = f"on {tell_hosts(inward)} its own name means {inward[0].own_address}, which no other host reaches"
        return Finding("host names", "not all lead to a network", "warning", cause, mend)
    return Finding("host names", "resolved on every node")


def _judge_head(reports: Reports, wanted: Wanted) -> Finding | None:
    tried = [report for report in reports if report.head_error is not None]
    if not tried:
        return None
    # the head does not listen any longer for those that it gave up
    gone = {rank for report in reports if report.rank == 0 for rank in report.unseen}
    wrong = [report for report in tried if report.head_error and report.rank not in gone]
    found = f"{wanted.nodes[0]} reached by TCP from {len(tried) - len(wrong)} of {len(wanted.nodes) - 1} other nodes"
    if not wrong:
        return Finding("head", found)
    cause = f"{tell_hosts(wrong)} cannot connect to {wanted.nodes[0]}, {wrong[0].head_error}"
    mend = "have ports 20000-31999 opened between the nodes, or name the interface: --network-interface=NAME"
    return Finding("head", found, "FAILED", cause, mend)


def _judge_interface(reports: Reports, wanted: Wanted) -> Finding | None:
    name = wanted.network_interface
    if not name:
        return None
    lacking = [report for report in reports if name not in report.interfaces]
    if not lacking:
        return Finding("interface", f"{name} is on every node")
    mend = f"--network-interface is one of {', '.join(lacking[0].interfaces)} there"
    return Finding("interface", name, "FAILED", f"{tell_hosts(lacking)} has no interface '{name}'", mend)


def _judge_port(reports: Reports, wanted: Wanted) -> Finding | None:
    head = next((report for report in reports if report.is_port_free is not None), None)
    if head is None:
        return None
    if head.is_port_free:
        return Finding("port", f"{wanted.port} is free on {head.host}")
    cause = f"another process listens at port {wanted.port} of {head.host}"
    mend = f"look who it is, maybe a left-over process of yours: ss -ltnp 'sport = :{wanted.port}'"
    return Finding("port", f"{wanted.port} is taken", "FAILED", cause, mend)


def _judge_left_time(reports: Reports, wanted: Wanted) -> Finding | None:
    if wanted.seconds_left is None:
        return None
    found = f"{wanted.seconds_left:.0f} s left; the stop comes {wanted.lead_s:.0f} s before the end"
    mend = "more time (sbatch --time=T), or a shorter lead: --lead=T and sbatch --signal=USR1@T"
    return judge_time(found, wanted.seconds_left, wanted.lead_s, mend)


def _judge_tracking(reports: Reports, wanted: Wanted) -> Finding | None:
    if not wanted.tracking_mode:
        return None
    error = next((report.tracking_error for report in reports if report.tracking_error is not None), None)
    if error:
        mend = "tracking.mode=offline, and wandb sync RUN/wandb/* later, where there is a network"
        return Finding("wandb", "online, not reached", "warning", f"wandb's server is not reached: {error}", mend)
    return Finding("wandb", wanted.tracking_mode if error is None else f"{wanted.tracking_mode}, reached")


CHECKS: tuple[Callable[[Reports, Wanted], Finding | None], ...] = (
    _judge_versions, _judge_code, _judge_devices, _judge_cpus, _judge_folder, _judge_space, _judge_inodes, _judge_temp,
    _judge_clocks, _judge_shm, _judge_open_files, _judge_names, _judge_head, _judge_interface, _judge_port,
    _judge_left_time, _judge_tracking,
)  # fmt: skip
