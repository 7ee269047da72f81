"""Batch scripts: compared whole, checked by bash and shellcheck, and run with recording programs in place of Slurm's.

Golden files: UPDATE_GOLDEN=1 pytest tests/launch writes them anew; see `shared.py`.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from launch.batch import Job, join_words, render, sbatch_options, seconds_of
from launch.profile import Profile
from launch.request import read_options
from launch.submit import Submission, _parser, check, frozen_config, job_of
from nn_train.errors import ConfigError
from tests.conftest import ROOT
from tests.launch.shared import Programs, check_golden, environment

TRAIN = ROOT / "slurm" / "train.sh"
GPU_PROFILE = """\
partition: gpu
account: my project
qos: normal
constraint: a100&ib
gpus_per_node: 8
gpu_type: a100
cpus_per_process: 12
memory_per_node: 0
time: 1-00:00:00
lead: 5m
exclusive: true
network_interface: ib0
container: [apptainer, exec, --nv, "my image.sif"]
srun_options: ["--mpi=none"]
sbatch_options: ["--mail-type=END"]
setup: |
  module load python/3.11
  source ~/venvs/nn-train/bin/activate
"""
CASES: dict[str, list[str]] = {
    "one_process": [],
    "one_node_4": ["--gpus-per-node=4", "--time=4:00:00", "--partition=gpu", "--", "train.max_epochs=20"],
    "two_nodes_8": ["--cluster=gpu.yaml", "--nodes=2", "--max-restarts=3", "--accelerate=--mixed_precision bf16"],
    "cpu_only": ["--nodes=2", "--processes=4", "--threads=2", "--time=90", "--", "--debug", "train.max_steps=7"],
    "array": ["--array=0-7%3", "--account=me", "--", "run.name=seed-%a", "run.seed=%a", "model.width=64"],
    "spaces": [
        '--script=my "own" script\'s.py',
        "--run-dir=it's a run",
        "--",
        *("--name", 'two "words"', "$HOME `date` %a", "", "*"),
    ],
}


def submission(case: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Submission:
    """What `submit` knows of a case before it writes anything."""
    folder = folder / "it's a folder" if case == "spaces" else folder
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    (folder / "gpu.yaml").write_text(GPU_PROFILE)
    (folder / 'my "own" script\'s.py').touch()
    own, words = split(CASES[case])
    return check(_parser().parse_args(own), words)


def split(words: list[str]) -> tuple[list[str], list[str]]:
    """The launcher's words and the script's."""
    at = words.index("--") if "--" in words else len(words)
    return words[:at], words[at + 1 :]


@pytest.mark.parametrize("case", CASES)
def test_a_script_is_rendered_as_it_always_was(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = render(job_of(submission(case, tmp_path, monkeypatch)))
    check_golden(f"batch-{case}.sh", script, {"CWD": tmp_path})


@pytest.mark.parametrize("case", [*CASES, "train.sh"])
def test_bash_and_shellcheck_find_nothing(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = TRAIN
    if case != "train.sh":
        file = tmp_path / "submit.sh"
        file.write_text(render(job_of(submission(case, tmp_path, monkeypatch))))
    # SC1090, SC1091: files of the cluster that are not here; SC2016: a word with a `$` that is to stay as it is
    for command in (["bash", "-n"], ["shellcheck", "--exclude=SC1090,SC1091,SC2016"]):
        if shutil.which(command[0]) is None:
            assert os.environ.get("NN_TRAIN_REQUIRE_SLURM") != "1", f"no {command[0]} on this machine"
            pytest.skip(f"no {command[0]} on this machine: apt-get install shellcheck")
        done = subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


# ------------------------------------------------------------------------------------------------ run for real

PLAN = "/some run's/launch/plan-0001.json"


class Bed:
    """A shell in which python, srun, scontrol and sleep are programs that record their words."""

    def __init__(self, folder: Path):
        self.programs = Programs(folder / "the programs'")
        for name in ("srun", "scontrol", "sleep"):
            self.programs.add(name)

    def run(
        self, script: Path, *words: str, ends: Sequence[int], begins: int = 99, doctor: int = 0, **job_environment: str
    ) -> int:
        """Run a script whose attempts end with these codes, and of which so many can begin; its exit code."""
        self.programs.add(
            "python",
            f"""case "$2 $3" in
  "launch.job begin")
    begun=$(<"$here/.begun") || begun=; printf . >>"$here/.begun"
    [ "${{#begun}}" -lt {begins} ] || {{ echo "error: wrong words" >&2; exit 2; }}
    echo "{PLAN}" ;;
  "launch.job end")
    ended=$(<"$here/.ended") || ended=; printf . >>"$here/.ended"
    ends=({" ".join(map(str, ends))}); exit "${{ends[${{#ended}}]}}" ;;
  "launch doctor") exit {doctor} ;;
  *) exit 1 ;;
esac""",
        )
        for name in (".begun", ".ended"):
            (self.programs.folder / name).write_text("")
        # in a job sbatch's own flags are in the environment
        job = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4", "SLURM_CPUS_PER_TASK": "2"}
        job |= job_environment
        path = f"{self.programs.folder}:{os.environ['PATH']}"
        done = subprocess.run(
            ["bash", str(script), *words], env=environment(PATH=path, **job), capture_output=True, timeout=60
        )
        return done.returncode

    @property
    def begun(self) -> list[list[str]]:
        """The words of each `launch.job begin`."""
        return [words[3:] for words in self.programs.calls("python") if words[1:3] == ["launch.job", "begin"]]

    @property
    def ended(self) -> list[list[str]]:
        """The words of each `launch.job end`."""
        return [words[3:] for words in self.programs.calls("python") if words[1:3] == ["launch.job", "end"]]


@pytest.fixture
def bed(tmp_path: Path) -> Bed:
    return Bed(tmp_path)


@pytest.mark.parametrize("case", CASES)
def test_every_word_reaches_begin_as_it_was_given(
    case: str, bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = submission(case, tmp_path, monkeypatch)
    profile = given.profile.model_copy(update={"setup": (), "container": ()})
    job = replace(job_of(replace(given, profile=profile)), path=str(bed.programs.folder))
    script = tmp_path / "submit it.sh"
    script.write_text(render(job))
    assert bed.run(script, ends=[0]) == 0
    assert bed.begun == [list(job.words)]
    # what `begin` makes of them is what was submitted
    given.folder.mkdir(parents=True)
    if given.target.config is not None:
        (given.folder / "config.yaml").write_text(frozen_config(given))
    options, target = read_options(bed.begun[0], task="0" if given.array else None)
    assert target.run_dir == given.target.run_dir
    assert replace(options, script=None, run_dir=None) == replace(given.options, script=None, run_dir=None)
    if target.config is not None and given.target.config is not None:
        configs = [config.model_dump(exclude={"run": {"dir"}}) for config in (target.config, given.target.config)]
        assert configs[0] == configs[1]
    else:
        assert target.script == given.target.script and list(target.words) == split(CASES[case])[1]


def test_the_agents_are_one_a_node_and_know_nothing_of_sbatchs_tasks(bed: Bed, tmp_path: Path) -> None:
    bed.programs.add("srun", 'printf "%s" "${SLURM_NTASKS-} ${SLURM_NTASKS_PER_NODE-} ${SLURM_JOB_ID-}" >"$here/.seen"')
    assert bed.run(TRAIN, "--config", "my config.yaml", "a='b \"c\"'", ends=[0]) == 0
    assert bed.begun == [["--config", "my config.yaml", "a='b \"c\"'"]]
    (words,) = bed.programs.calls("srun")
    assert words[:2] == ["--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    assert words[-4:] == ["python", "-m", "launch.agent", PLAN]
    assert (bed.programs.folder / ".seen").read_text() == "  17"
    assert bed.ended == [[PLAN]]


@pytest.mark.parametrize(
    ("ends", "code", "begun"),
    [
        ([0], 0, 1),
        ([2], 2, 1),
        ([75], 75, 1),
        ([93], 93, 1),
        ([94], 94, 1),
        ([1], 1, 1),
        ([100, 0], 0, 2),
        ([100, 100, 93], 93, 3),
        ([101], 75, 1),
        ([100, 101], 75, 2),
    ],
)
def test_the_exit_code_of_end_decides_what_the_script_does(
    bed: Bed, tmp_path: Path, ends: list[int], code: int, begun: int
) -> None:
    script = tmp_path / "submit.sh"
    script.write_text(render(job(path=str(bed.programs.folder))))
    for file in (script, TRAIN):
        bed.programs.log.unlink(missing_ok=True)
        assert bed.run(file, "--", "x.y=1", ends=ends) == code
        assert len(bed.begun) == len(bed.ended) == len(bed.programs.calls("srun")) == begun
        requeued = [["requeue", "17"]] if ends[-1] == 101 else []
        assert bed.programs.calls("scontrol") == requeued
        assert bed.programs.calls("sleep") == [["60"]] * len(requeued)


@pytest.mark.parametrize(
    ("environment", "doctor", "code", "looked", "begun"),
    [
        ({}, 2, 0, 0, 2),  # one node: it would only be in the way
        ({"SLURM_JOB_NUM_NODES": "2"}, 0, 0, 1, 2),  # once, and not before each attempt
        ({"SLURM_JOB_NUM_NODES": "2"}, 1, 0, 1, 2),  # a doctor that is ill himself stops nobody
        ({"SLURM_JOB_NUM_NODES": "2"}, 2, 2, 1, 1),
        ({"SLURM_JOB_NUM_NODES": "2", "LAUNCH_DOCTOR": "0"}, 2, 0, 0, 2),
    ],
)
def test_the_doctor_looks_at_a_job_of_several_nodes_once_and_may_end_it(
    bed: Bed, environment: dict[str, str], doctor: int, code: int, looked: int, begun: int
) -> None:
    assert bed.run(TRAIN, ends=[100, 0], doctor=doctor, **environment) == code
    asked = [words for words in bed.programs.calls("python") if words[1:3] == ["launch", "doctor"]]
    assert asked == [["-m", "launch", "doctor", "--plan", PLAN, "--reports", "--quick"]] * looked
    steps = [words[-2] for words in bed.programs.calls("srun")]
    assert steps == ["launch.doctor_node"] * looked + ["launch.agent"] * (begun if code == 0 else 0)
    assert len(bed.begun) == begun


def test_where_slurm_will_not_requeue_the_script_ends_at_once(bed: Bed) -> None:
    bed.programs.add("scontrol", "exit 1")
    assert bed.run(TRAIN, ends=[101]) == 75
    assert bed.programs.calls("sleep") == []


@pytest.mark.parametrize(("begins", "ends"), [(0, []), (1, [100])])
def test_an_attempt_that_cannot_begin_ends_the_script(bed: Bed, begins: int, ends: list[int]) -> None:
    assert bed.run(TRAIN, ends=ends, begins=begins) == 2
    assert len(bed.programs.calls("srun")) == begins


def test_a_container_and_srun_options_stand_before_every_command(bed: Bed, tmp_path: Path) -> None:
    bed.programs.add("my box", 'shift; exec "$@"')
    profile = Profile(container=("my box", "--image=a b.sif"), srun_options=("--mounts=/a b:/c",))
    script = tmp_path / "submit.sh"
    script.write_text(render(job(path=str(bed.programs.folder), profile=profile)))
    assert bed.run(script, ends=[100, 0]) == 0
    boxed = bed.programs.calls("my box")
    assert [words[:4] for words in boxed] == [["--image=a b.sif", "python", "-m", "launch.job"]] * 4
    for words in bed.programs.calls("srun"):
        assert words[-7:] == ["--mounts=/a b:/c", "my box", "--image=a b.sif", "python", "-m", "launch.agent", PLAN]


def test_a_heterogeneous_job_starts_agents_in_all_of_its_parts(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_HET_SIZE", "2")
    bed.programs.add("srun")
    path = f"{bed.programs.folder}:{os.environ['PATH']}"
    bed.programs.add("python", f'[ "$3" = end ] && exit 0; echo "{PLAN}"')
    done = subprocess.run(
        ["bash", str(TRAIN)], env=environment(PATH=path, SLURM_HET_SIZE="2", SLURM_JOB_ID="17"), timeout=60
    )
    assert done.returncode == 0
    assert "--het-group=0-1" in bed.programs.calls("srun")[0]


# ------------------------------------------------------------------------------------------------------- parts


def job(*, path: str = "", profile: Profile | None = None, **changes: object) -> Job:
    base = Job(
        name="a run",
        profile=profile or Profile(),
        nodes=1,
        time=None,
        array=None,
        output=Path("/out put/logs"),
        chdir=Path("/here"),
        code=Path("/code"),
        path=path,
        words=join_words(["--cpu"], ["x.y=1"]),
    )
    return replace(base, **changes)  # type: ignore[arg-type]


def test_names_with_spaces_are_quoted_as_slurm_reads_them() -> None:
    options = sbatch_options(job())
    assert '--job-name="a run"' in options
    assert '--output="/out put/logs/slurm-%j.out"' in options
    assert "--chdir=/here" in options


@pytest.mark.parametrize("name", ['a "b"', "a\nb", "a \\b"])
def test_a_name_that_slurm_cannot_read_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="Slurm cannot read the name"):
        render(job(chdir=Path("/x") / name))


def test_cpus_are_those_of_a_task() -> None:
    gpus = Profile(gpus_per_node=4, cpus_per_process=8)
    assert {"--gpus-per-node=4", "--ntasks-per-node=1", "--cpus-per-task=32"} <= set(sbatch_options(job(profile=gpus)))
    cpus = Profile(processes_per_node=4, cpus_per_process=8)
    assert {"--ntasks-per-node=4", "--cpus-per-task=8"} <= set(sbatch_options(job(profile=cpus)))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30", 1800), ("30:15", 1815), ("2:30:15", 9015), ("1-2", 93600), ("1-2:30", 95400), ("1-2:30:15", 95415),
     ("unlimited", None), ("INFINITE", None), ("0", None)],
)  # fmt: skip
def test_walltimes_are_read_as_sbatch_reads_them(text: str, seconds: int | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "4h", "-1", "1:2:3:4", "1-", "two"])
def test_what_is_no_walltime_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is no walltime"):
        seconds_of(text)
