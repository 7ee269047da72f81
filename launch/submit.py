"""Queue a run on a Slurm cluster: checked, frozen into its run folder, and only then handed to sbatch."""

import argparse
import contextlib
import dataclasses
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from launch import slurm
from launch.batch import Job, join_words, render, seconds_of
from launch.freeze import Frozen, freeze, parts_of, work_tree_of
from launch.history import JOB_FILE, refuse_if_alive
from launch.local import describe_plan, say
from launch.plan import Plan
from launch.profile import Profile, load_profile
from launch.request import Options, Parser, add_options, count, options_from, split_words
from launch.target import TASK_MARK, Target, resolve_target
from nn_train.config import dump_config, project_root
from nn_train.errors import ConfigError, UserError
from nn_train.run_folder import sync_folder, write_file, write_json
from nn_train.train import DEBUG_WORDS, parse_arguments, resolve_config

ARRAY = re.compile(r"(\d+)[\d,:%-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Submission:
    """All that is known before anything is written."""

    target: Target
    options: Options
    profile: Profile
    name: str
    nodes: int
    time: str | None
    array: str | None
    words: tuple[str, ...]
    """The script's words as they were given; an array's may hold `%a`."""

    @property
    def script(self) -> Path:
        """The script that the job runs: the frozen one, if it is the project's or lies in a git work tree."""
        if self.target.config is not None:
            return self.folder / "code" / "nn_train" / "train.py"
        tree = work_tree_of(self.target.script)
        return self.target.script if tree is None else self.folder / "script" / self.target.script.relative_to(tree)

    @property
    def folder(self) -> Path:
        """Where the frozen code, config and batch script lie: in the run folder, of an array in its first task's."""
        return self.target.run_dir / "launch"


def main(words: Sequence[str]) -> int:
    """`python -m launch submit`: the exit code."""
    parser = _parser()
    own, script_words = split_words(words) if "--" in words else (list(words), [])
    parsed = parser.parse_args(own)
    submission = check(parsed, script_words)
    if parsed.dry_run:
        say(describe(submission))
        say("# Slurm")
        if slurm.is_here():
            say(ask_slurm(render(job_of(submission)), submission))
        else:
            say("sbatch is not on this machine: nothing was asked")
        return 0
    job = submit(submission)
    say(f"job {job} is queued; run folder: {submission.target.run_dir}")
    say(f"  python -m launch show {submission.target.run_dir}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="python -m launch submit",
        usage="%(prog)s [--cluster PROFILE] [OPTIONS] [-- WORDS]",
        description="Queue a run; WORDS go to the script: --config FILE, section.key=value. Of an array, %%a in a word "
        "stands for the task's index.",
    )
    parser.add_argument("--cluster", metavar="PROFILE", help="YAML of the cluster, or its name in configs/clusters/")
    parser.add_argument("--nodes", type=count, metavar="N", help="nodes (default: the profile's, else 1)")
    parser.add_argument("--gpus-per-node", type=count, metavar="N", help="GPUs of each node")
    parser.add_argument("--time", metavar="T", help="walltime, as sbatch reads it: 30, 4:00:00, 2-00:00:00")
    parser.add_argument("--partition", metavar="NAME")
    parser.add_argument("--account", metavar="NAME")
    parser.add_argument("--array", metavar="LIST", help="an array of runs, as sbatch reads it: 0-7%%3")
    parser.add_argument("--sbatch", action="append", default=[], metavar="OPTION", help="one more option for sbatch")
    parser.add_argument("--dry-run", action="store_true", help="print script, command and environment; queue nothing")
    add_options(parser)
    return parser


def check(parsed: argparse.Namespace, script_words: Sequence[str]) -> Submission:
    """Everything that can be known to be wrong before Slurm is asked.

    Raises:
        UserError: a setting, size or time that makes no sense.
    """
    profile = _profile(parsed)
    options = dataclasses.replace(
        options_from(parsed),
        lead_s=profile.lead,
        network_interface=parsed.network_interface or profile.network_interface,
        cpu=parsed.cpu or not profile.gpus_per_node,
        processes=parsed.processes or profile.processes_per_node,
    )
    if options.processes and profile.gpus_per_node and options.processes > profile.gpus_per_node and not parsed.cpu:
        raise ConfigError(
            f"{options.processes} processes on a node disagree with its {profile.gpus_per_node} GPUs",
            fix=f"--processes={profile.gpus_per_node} or fewer, or --cpu",
        )
    time = parsed.time or profile.time
    limit_s = None if time is None else seconds_of(time)
    if limit_s is not None and limit_s <= profile.lead:
        raise ConfigError(
            f"--time={time} is {limit_s} s, and the signal to save comes {profile.lead:g} s before the end",
            fix="a longer --time, or a shorter --lead",
        )
    task = None
    if parsed.array is not None:
        found = ARRAY.fullmatch(parsed.array)
        if not found:
            raise ConfigError(f"--array={parsed.array} is no list of tasks", fix="--array=0-7, 1,3,5 or 0-99%10")
        task = found[1]
    target = resolve_target(script_words, script=options.script, run_dir=options.run_dir, task=task)
    return Submission(
        target=target,
        options=options,
        profile=profile,
        name=re.sub(r"[^\w.\-]", "_", target.run_dir.name),
        nodes=parsed.nodes or profile.nodes,
        time=time,
        array=parsed.array,
        words=tuple(script_words),
    )


def _profile(parsed: argparse.Namespace) -> Profile:
    given = {name: getattr(parsed, name) for name in ("partition", "account", "gpus_per_node")}
    given["lead"] = parsed.lead_s
    profile = load_profile(parsed.cluster)
    changes: dict[str, object] = {name: value for name, value in given.items() if value is not None}
    return profile.model_copy(update=changes | {"sbatch_options": (*profile.sbatch_options, *parsed.sbatch)})


def job_of(submission: Submission) -> Job:
    """What Slurm is asked for."""
    folder = submission.folder
    profile = submission.profile
    if submission.options.processes and not profile.gpus_per_node:
        profile = profile.model_copy(update={"processes_per_node": submission.options.processes})
    own = dataclasses.replace(
        submission.options,
        script=None if submission.target.config else str(submission.script),
        run_dir=None if submission.target.config else submission.options.run_dir or _foreign_dir(submission),
    )
    return Job(
        name=submission.name,
        profile=profile,
        nodes=submission.nodes,
        time=submission.time,
        array=submission.array,
        output=submission.target.run_dir / "logs",
        chdir=Path.cwd(),
        code=folder / "code",
        path="" if profile.setup or profile.container else str(Path(sys.executable).parent),
        words=join_words(own.words(), _frozen_words(submission)),
    )


def _foreign_dir(submission: Submission) -> str:
    """The run folder of another script: one for all tasks, to which each adds its index, or just the one."""
    return f"runs/{submission.target.script.stem}" if submission.array else str(submission.target.run_dir)


def _frozen_words(submission: Submission) -> tuple[str, ...]:
    """The script's words in the job: the frozen config, and what differs from task to task."""
    if submission.target.config is None:
        return submission.words
    frozen = ("--config", str(submission.folder / "config.yaml"), *_debug_words(submission))
    if submission.array:
        return (*frozen, *(word for word in submission.words if TASK_MARK in word))
    return (*frozen, f"run.dir={submission.target.run_dir}")


def _debug_words(submission: Submission) -> Iterator[str]:
    """`--debug`, and the words that it would lay its own values over."""
    if "--debug" in submission.words:
        yield "--debug"
        keys = {word.partition("=")[0] for word in DEBUG_WORDS}
        yield from (w for w in submission.words if w.partition("=")[0] in keys and TASK_MARK not in w)


def frozen_config(submission: Submission) -> str:
    """The resolved config, as YAML; without the words that differ from task to task."""
    kept = [word for word in submission.words if TASK_MARK not in word]
    config = resolve_config(parse_arguments(kept))
    return dump_config(config)


def describe(submission: Submission) -> str:
    """The batch script, and the command of one node with its environment."""
    job = job_of(submission)
    script = render(job)
    profile = submission.profile
    processes = submission.options.processes or profile.gpus_per_node or 1
    plan = Plan(
        run_dir=str(submission.target.run_dir),
        attempt=1,
        launch="JOB",
        job="JOB",
        script=str(submission.script),
        words=_frozen_words(submission),
        nodes=tuple(f"NODE_{index}" for index in range(submission.nodes)),
        head_address="HEAD_ADDRESS",
        use_cpu=submission.options.cpu,
        network_interface=submission.options.network_interface,
        accelerate_options=submission.options.accelerate_options,
    )
    node = describe_plan(plan, local_processes=processes, threads=1, worker=job.code / "launch" / "worker.py")
    return f"# {submission.folder / 'submit.sh'}\n{script}\n# node 0 of {submission.nodes}\n{node}"


def ask_slurm(script: str, submission: Submission) -> str:
    """What Slurm would do with the script. Raises UserError if it would refuse it, or never start it."""
    sizes = slurm.partition_sizes()
    partition = submission.profile.partition or slurm.default_partition()
    if submission.nodes > sizes.get(partition, submission.nodes):
        raise ConfigError(
            f"--nodes={submission.nodes}: partition '{partition}' has {sizes[partition]}",
            fix=f"--nodes={sizes[partition]} or fewer; another partition: {', '.join(sorted(sizes))}",
        )
    if partition and sizes and partition not in sizes:
        raise ConfigError(f"there is no partition '{partition}'", fix=f"--partition={' or '.join(sorted(sizes))}")
    with tempfile.NamedTemporaryFile("w", suffix=".sh", encoding="utf-8") as file:
        file.write(script)
        file.flush()
        return slurm.try_submit(file.name, [])


def submit(submission: Submission) -> str:
    """Freeze the run and queue it; the job's id. Where that fails nothing is queued, and nothing half-written.

    Raises:
        UserError: the run lives already, or Slurm refuses.
    """
    if not slurm.is_here():
        slurm.call("sbatch", "--version")  # its error says what to do
    script = render(job_of(submission))
    ask_slurm(script, submission)
    run_dir, folder = submission.target.run_dir, submission.folder
    refuse_if_alive(run_dir)
    own, above = (folder, run_dir / "logs", run_dir), run_dir.parents
    made = [path for path in (*own, *above) if not path.exists()]
    try:
        (run_dir / "logs").mkdir(parents=True, exist_ok=True)
        frozen = freeze(project_root(), folder / "code")
        if submission.script != submission.target.script and submission.target.config is None:
            tree = work_tree_of(submission.target.script)
            assert tree is not None
            freeze(tree, folder / "script", parts=parts_of(tree))
        _write(submission, script, frozen)
        job = slurm.submit(str(folder / "submit.sh"), [])
    except (OSError, UserError):
        for path in made:
            if path in own:
                shutil.rmtree(path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):  # another run may be in it by now
                    path.rmdir()
        raise
    first = f"_{ARRAY.fullmatch(submission.array)[1]}" if submission.array else ""  # type: ignore[index]
    write_json(run_dir / JOB_FILE, {"job": f"{job}{first}", "commit": frozen.commit, "code": frozen.digest})
    sync_folder(folder)
    return job


def _write(submission: Submission, script: str, frozen: Frozen) -> None:
    folder = submission.folder
    write_file(folder / "submit.sh", script)
    write_file(folder / "code.diff", frozen.diff)
    if submission.target.config is not None:
        write_file(folder / "config.yaml", frozen_config(submission))
