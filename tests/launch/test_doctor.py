"""The preflight: what made-up reports are judged to mean, and real checks of this machine."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launch import doctor, doctor_cluster
from launch.doctor import predict_need
from launch.doctor_allreduce import Meeting
from launch.doctor_cluster import check_cluster, judge_partition
from launch.doctor_finding import Finding, Need, Wanted
from launch.doctor_judge import judge
from launch.doctor_meet import meet, within
from launch.doctor_node import (
    PACKAGES as LIBRARIES,
)
from launch.doctor_node import (
    examine,
    file_system,
    find_versions,
    free_space,
    may_be_online,
    read_request,
    try_tracking,
)
from launch.doctor_report import TRAIN, Collected, NodeReport, Request, collect, split_parts
from launch.doctor_steps import judge_allreduce
from launch.plan import Plan
from launch.profile import Profile
from nn_train.config import load_config
from nn_train.errors import UserError
from nn_train.settings import TrackingConfig
from tests.conftest import ROOT
from tests.launch.shared import HEAVY, Programs, environment, imported

PACKAGES = {"python": "3.11.7", "torch": "2.13.0", "accelerate": "1.15.0"}
WANTED = Wanted(nodes=("n1", "n2"), run_dir="/runs/a", port=23_000, seconds_left=3600.0, tracking_mode="offline")


def report(rank: int, **found: Any) -> NodeReport:
    """What a node finds where all is well."""
    well: dict[str, Any] = {
        "packages": PACKAGES,
        "code": "abc def",
        "code_path": "/code",
        "gpus": 4,
        "gpu_devices": 4,
        "cpus": 8,
        "file_system": "nfs4",
        "free_bytes": 10**12,
        "free_inodes": 10**7,
        "temp_dir": "/tmp",
        "temp_free_bytes": 10**10,
        "shm_bytes": 10**10,
        "open_files": 4096,
        "own_address": f"10.0.0.{rank + 1}",
        "head_error": "" if rank else None,
        "interfaces": ("lo", "ib0"),
        "is_port_free": None if rank else True,
    }
    return NodeReport(rank=rank, host=f"n{rank + 1}", **well | found)


def judged(*reports: NodeReport, **wanted: Any) -> dict[str, Finding]:
    findings = judge(reports, dataclasses.replace(WANTED, **wanted))
    assert all(finding.cause and finding.mend for finding in findings if finding.level != "ok")
    assert not any("\n" in finding.cause + finding.mend for finding in findings)
    return {finding.check: finding for finding in findings}


def test_all_is_well() -> None:
    findings = judged(report(0), report(1), gpus=4, processes=None, network_interface="ib0")
    assert {finding.level for finding in findings.values()} == {"ok"}
    assert list(findings) == [
        *("nodes", "versions", "code", "devices", "CPUs", "run folder", "space", "inodes", "temp folder", "clocks"),
        *("shared memory", "open files", "host names", "head", "interface", "port", "walltime", "wandb"),
    ]


# what is wrong with the second node (or with what is wanted): the check, its level, words of its cause and mend
CASES: list[tuple[dict[str, Any], dict[str, Any], str, str, str, str]] = [
    ({"packages": PACKAGES | {"torch": "2.12.0"}}, {}, "versions", "FAILED", "2.13.0 on n1, 2.12.0 on n2", "one env"),
    ({"packages": PACKAGES | {"torch": ""}}, {}, "versions", "FAILED", "2.13.0 on n1, missing on n2", "one env"),
    ({"code": "abc xyz"}, {}, "code", "FAILED", "abc xyz in /code on n2", "submit freezes"),
    ({"gpus": 2}, {"gpus": 4}, "devices", "FAILED", "n2 sees 2 of 4", "--gpus-per-node"),
    ({"gpu_devices": 0}, {"gpus": 4}, "devices", "FAILED", "n2 sees 0 of 4 GPU(s), though the env", "nvidia-smi"),
    ({"gpus": 2, "gpus_promised": 4}, {"gpus": 1, "processes": None}, "devices", "FAILED", "n2 sees 2 of 4", "--cpu"),
    ({"gpus": 2}, {"gpus": 1, "processes": None}, "devices", "warning", "4 on n1, 2 on n2", "--gpus-per-node"),
    ({"cpus": 1, "cpus_promised": 8}, {}, "CPUs", "warning", "n2 may use 1 of the job's 8", "SLURM_CPU_BIND"),
    ({}, {"processes": 16}, "CPUs", "warning", "16 processes share 8 CPU(s) on n1, n2", "--processes"),
    ({"folder_error": "is not there"}, {}, "run folder", "FAILED", "on n2 it is not there", "every node mounts"),
    ({"folder_error": "cannot be written: No"}, {}, "run folder", "FAILED", "on n2 it cannot be written: No", "mounts"),
    ({"unseen": (0,)}, {}, "run folder", "warning", "n2 did not see in time what n1 wrote", "quicker one"),
    ({}, {"folder_error": "/x: denied"}, "run folder", "FAILED", "cannot be made: /x: denied", "run.dir"),
    ({"free_bytes": 10**6}, {}, "space", "FAILED", "1 MB free (on n2), 200 MB will be needed", "keep_last"),
    ({}, {"need": Need(size_bytes=2 * 10**12)}, "space", "FAILED", "1 TB free (on n1), 2 TB will", "keep_last"),
    ({"free_inodes": 10}, {}, "inodes", "FAILED", "10 free (on n2), 1,000 will be needed", "run.dir"),
    ({"temp_error": "Read-only"}, {}, "temp folder", "FAILED", "n2 cannot write /tmp: Read-only", "TMPDIR"),
    ({"temp_free_bytes": 1000}, {}, "temp folder", "warning", "1 kB are free in it on n2", "TMPDIR"),
    ({"clock_s": -2.5}, {}, "clocks", "warning", "the clock of n2 is 2.5 s behind that of n1", "chronyc"),
    ({"clock_s": 60.0}, {}, "clocks", "FAILED", "the clock of n2 is 60.0 s before that of n1", "chronyc"),
    ({"shm_bytes": 64 * 2**20}, {"gpus": 1}, "shared memory", "warning", "/dev/shm has 67.1 MB on n2", "--shm-size"),
    ({"open_files": 256}, {}, "open files", "warning", "n2 may open 256 files", "ulimit -n"),
    ({"name_error": "'n2': not known"}, {}, "host names", "warning", "n2 cannot resolve 'n2'", "/etc/hosts"),
    ({"own_address": "127.0.1.1"}, {}, "host names", "warning", "on n2 its own name means 127.0.1.1", "/etc/hosts"),
    ({"head_error": "10.0.0.1:23: no"}, {}, "head", "FAILED", "n2 cannot connect to n1, 10.0.0.1:23: no", "20000-3"),
    ({"interfaces": ("lo", "e0")}, {"network_interface": "ib0"}, "interface", "FAILED", "n2 has no interface", "lo, e"),
    ({}, {"seconds_left": 170.0}, "walltime", "warning", "170 s are there, and the run is stopped 120 s", "--time"),
    ({}, {"seconds_left": 121.0}, "walltime", "warning", "121 s are there", "--lead"),
    ({}, {"seconds_left": 120.0}, "walltime", "FAILED", "120 s are there, and the run is stopped 120 s", "--time"),
]  # fmt: skip


@pytest.mark.parametrize(("found", "wanted", "check", "level", "cause", "mend"), CASES)
def test_each_failure_by_name(
    found: dict[str, Any], wanted: dict[str, Any], check: str, level: str, cause: str, mend: str
) -> None:
    findings = judged(report(0), report(1, **found), **wanted)
    assert findings[check].level == level, findings[check]
    assert cause in findings[check].cause
    assert mend in findings[check].mend
    assert [name for name, finding in findings.items() if finding.level != "ok"] == [check]


def test_a_node_that_says_nothing() -> None:
    findings = judged(report(0))
    assert findings["nodes"].level == "FAILED"
    assert findings["nodes"].cause == "n2 sent no report"
    assert "--exclude=n2" in findings["nodes"].mend
    assert judged()["nodes"].level == "FAILED"  # not even the first


def test_a_node_that_wrote_nothing_is_named_once() -> None:
    findings = judged(report(0, unseen=(1,)), report(1, folder_error="is not there"))
    assert findings["run folder"].cause == "on n2 it is not there"


def test_nodes_with_different_folders() -> None:
    folder = judged(report(0, unseen=(1,)), report(1, unseen=(0,)))["run folder"]
    assert (folder.level, folder.cause) == ("FAILED", "n1 and n2 have different folders there")
    assert "every node mounts" in folder.mend


def test_a_head_that_gave_a_late_node_up_is_no_failure() -> None:
    findings = judged(report(0, unseen=(1,)), report(1, head_error="10.0.0.1:23: Connection refused"))
    assert findings["run folder"].level == "warning"
    assert findings["head"].level == "ok"


def test_a_port_that_is_taken() -> None:
    port = judged(report(0, is_port_free=False), report(1))["port"]
    assert (port.level, port.cause) == ("FAILED", "another process listens at port 23000 of n1")
    assert "ss -ltnp" in port.mend


def test_what_is_missing_everywhere() -> None:
    without = {"packages": PACKAGES | {"wandb": ""}}
    assert judged(report(0, **without), report(1, **without))["versions"].level == "warning"
    without = {"packages": PACKAGES | {"torch": ""}}
    versions = judged(report(0, **without), report(1, **without))["versions"]
    assert (versions.level, versions.cause) == ("FAILED", "not installed: torch")


def test_the_tracker() -> None:
    away = judged(report(0, tracking_error="api:443: timed out"), report(1), tracking_mode="online")["wandb"]
    assert (away.level, away.cause) == ("warning", "wandb's server is not reached: api:443: timed out")
    assert "tracking.mode=offline" in away.mend
    assert judged(report(0, tracking_error=""), report(1), tracking_mode="online")["wandb"].found == "online, reached"
    assert judged(report(0), report(1), tracking_mode="disabled")["wandb"].level == "ok"
    assert "wandb" not in judged(report(0), report(1), tracking_mode="")  # nothing is known of another's script


def test_one_machine_has_no_others() -> None:
    findings = judged(report(0), nodes=("n1",), seconds_left=None)
    assert not {"clocks", "head", "host names", "walltime"} & set(findings)


# ----------------------------------------------------------------------------------------------------- all-reduce

MEETING = Meeting(address="n1", port=1, world_size=2, backend="gloo")
RIGHT = {"host": "n1", "is_right": True, "latency_s": 80e-6, "bytes_per_s": 1e9}


def test_judge_allreduce() -> None:
    both = judge_allreduce({0: RIGHT, 1: RIGHT | {"latency_s": 90e-6, "bytes_per_s": 5e8}}, MEETING)
    assert (both.level, both.found) == ("ok", "gloo, 2 process(es): right; latency 90 us, bandwidth 500 MB/s")
    wrong = judge_allreduce({0: RIGHT, 1: RIGHT | {"host": "n2", "is_right": False}}, MEETING)
    assert (wrong.level, wrong.cause) == ("FAILED", "wrong sums on n2")
    broken = judge_allreduce({0: RIGHT, 1: {"host": "n2", "error": "timed out"}}, MEETING)
    assert (broken.level, broken.cause) == ("FAILED", "n2: timed out")
    silent = judge_allreduce({0: RIGHT}, MEETING, said="ModuleNotFoundError: torch")
    assert (silent.level, silent.cause) == ("FAILED", "process 1 said nothing: ModuleNotFoundError: torch")
    assert "--network-interface" in silent.mend


# ------------------------------------------------------------------------------------------------- from the nodes


def test_reports_come_whole_through_mixed_lines(tmp_path: Path) -> None:
    reports = [report(rank, folder_error="long " * 500) for rank in range(3)]
    parts = [list(split_parts(item.rank, dataclasses.asdict(item))) for item in reports]
    assert all(len(line) < 1000 for lines in parts for line in lines)
    mixed = [line for lines in zip(*parts, strict=False) for line in (*lines, "srun: a warning\n", "\n")]
    (tmp_path / "said").write_text("".join(mixed))
    with (tmp_path / "said").open() as file:
        collected = collect([file.fileno()], expected=3, limit_s=5)
    assert [dataclasses.replace(item, clock_s=0.0) for item in collected.node_reports()] == reports
    assert set(collected.said) == {"srun: a warning"}


def test_clocks_are_told_from_the_least_late_line() -> None:
    collected = Collected()
    for sent_s, came_s, text in ((100.0, 100.4, ""), (101.0, 101.1, "{}")):
        collected.take(f"@doctor 0 {sent_s} {text}", came_s)
    assert collected.clocks[0] == pytest.approx(-0.1)


def test_collect_ends_at_its_limit() -> None:
    reading, writing = os.pipe()
    started_s = time.monotonic()
    os.write(writing, b"half a line")
    assert collect([reading], expected=1, limit_s=0.3).reports == {}
    assert time.monotonic() - started_s < 2
    os.close(writing)
    os.close(reading)


def test_two_nodes_meet_though_one_comes_late(tmp_path: Path) -> None:
    request = Request(run_dir=str(tmp_path), folder=str(tmp_path), num_nodes=2)
    found: dict[int, dict[str, Any]] = {}

    def visit(rank: int) -> None:
        found[rank] = meet(request, rank=rank, deadline_s=time.monotonic() + 8)

    head = threading.Thread(target=visit, args=(0,))
    head.start()
    time.sleep(0.6)
    visit(1)
    head.join(10)
    assert found == {0: {"unseen": ()}, 1: {"unseen": (), "head_error": ""}}


def test_a_node_that_never_comes(tmp_path: Path) -> None:
    request = Request(run_dir=str(tmp_path), folder=str(tmp_path), num_nodes=2)
    started_s = time.monotonic()
    assert meet(request, rank=0, deadline_s=time.monotonic() + 0.5) == {"unseen": (1,)}
    missing = dataclasses.replace(request, folder=str(tmp_path / "absent"))
    assert meet(missing, rank=1, deadline_s=time.monotonic() + 0.5) == {"folder_error": "is not there"}
    assert time.monotonic() - started_s < 4


def test_a_head_that_is_not_reached(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    (tmp_path / "doctor-0").write_text(str(port))
    request = Request(run_dir=str(tmp_path), folder=str(tmp_path), num_nodes=2)
    found = meet(request, rank=1, deadline_s=time.monotonic() + 5)
    assert found == {"unseen": (), "head_error": f"127.0.0.1:{port}: Connection refused"}


def test_examine_sees_this_machine(tmp_path: Path) -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        found = examine(Request(run_dir=str(tmp_path), folder=str(tmp_path), port=port), rank=0, environment={})
    assert found.is_port_free is False
    assert found.free_port > 0
    assert found.packages["torch"]
    assert (found.folder_error, found.unseen, found.temp_error) == ("", (), "")
    assert found.open_files > 0
    assert "lo" in found.interfaces
    assert json.loads(json.dumps(dataclasses.asdict(found)))["rank"] == 0


def test_versions_are_read_as_pip_reads_them() -> None:
    assert find_versions() == {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in LIBRARIES
    }


def test_a_plan_is_asked_as_it_is(plan: Plan, tmp_path: Path) -> None:
    asked = read_request(str(plan.file), rank=0)
    assert (asked.folder, asked.run_dir) == (str(plan.log_dir), plan.run_dir)
    assert (asked.num_nodes, asked.head_name, asked.port) == (2, "n1", plan.port)
    for rank, mode in ((0, "online"), (1, "")):
        words = ("tracking.mode=online", f"run.dir={tmp_path / 'run'}")
        file = dataclasses.replace(plan, script=TRAIN, words=words).write()
        assert read_request(str(file), rank=rank).tracking_mode == mode
    plan.file.write_text('{"words": []}')
    with pytest.raises(UserError, match="not the plan"):
        read_request(str(plan.file), rank=0)


def test_a_config_is_read_for_the_tracker_only_where_it_may_say_online(tmp_path: Path) -> None:
    assert TrackingConfig().mode != "online"  # else nothing need say so
    assert not may_be_online(())
    assert not may_be_online(("--config", "configs/telco.yaml", "tracking.mode=offline"))
    assert may_be_online(("tracking.mode=online",))
    file = tmp_path / "own.yaml"
    file.write_text("tracking: {mode: online}\n")
    assert may_be_online(("--config", str(file))) and may_be_online((f"--config={file}",))


def test_a_quick_check_loads_little(plan: Plan) -> None:
    dataclasses.replace(plan, nodes=("n1",), head_address="127.0.0.1").write()
    for words in (["launch.doctor_node", str(plan.file)], ["launch", "doctor", "--plan", str(plan.file), "--reports"]):
        done = subprocess.run(
            [sys.executable, "-X", "importtime", "-m", *words, *(["--quick"] if len(words) > 2 else [])],
            input="".join(split_parts(0, dataclasses.asdict(report(0)))),
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        loaded = imported(done.stderr)
        assert not loaded & (HEAVY | {"rich"})
        assert len(words) > 2 or not loaded & {"pydantic", "yaml", "email"}


def test_file_system_and_space(tmp_path: Path) -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(tmp_path / "not" / "there") == file_system(tmp_path)
    assert free_space(tmp_path / "not" / "there") == free_space(tmp_path)


def test_the_tracker_is_looked_for_where_it_is() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert try_tracking({"WANDB_BASE_URL": here}) == ""
        assert try_tracking({"WANDB_BASE_URL": "http://127.0.0.1:1", "HTTPS_PROXY": here}) == ""
    assert try_tracking({"WANDB_BASE_URL": here}) == f"{here[7:]}: Connection refused"
    assert "is no address" in try_tracking({"WANDB_BASE_URL": "http://[x"})


def test_nothing_is_waited_for_beyond_its_limit() -> None:
    started_s = time.monotonic()
    assert within(0.2, lambda: time.sleep(3) or "late") is None
    assert time.monotonic() - started_s < 2


# ------------------------------------------------------------------------------------------------------ the words


def doctor_words(*words: str, cwd: Path, **more: str) -> tuple[subprocess.CompletedProcess[str], float]:
    started_s = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "launch", "doctor", *words],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT), **more),
        capture_output=True,
        text=True,
        timeout=120,
    )
    return done, time.monotonic() - started_s


def test_this_machine_in_full(tmp_path: Path) -> None:
    done, seconds = doctor_words("--run-dir", "run", "--processes", "2", cwd=tmp_path, ACCELERATE_USE_CPU="true")
    assert done.returncode == 0, done.stdout + done.stderr
    crowd = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))  # others may share this machine
    assert seconds < 15 * crowd
    line = next(line for line in done.stdout.splitlines() if line.startswith("all-reduce"))
    assert line.split()[1:6] == ["ok", "gloo,", "2", "process(es):", "right;"]
    assert "latency" in line and "bandwidth" in line
    assert done.stdout.splitlines()[-1].startswith("preflight of this machine: 12 checks, all well")
    assert not (tmp_path / "run").exists(), "nothing of the check is left"


def test_one_line_where_all_is_well(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "telco.yaml")
    done, seconds = doctor_words("--quick", "--", "--config", config, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("preflight of this machine: 12 checks, all well")
    assert len(done.stdout.splitlines()) == 1
    assert seconds < 10
    assert list(tmp_path.iterdir()) == []


def test_a_run_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done, _ = doctor_words("--quick", "--run-dir", "file/run", cwd=tmp_path)
    assert done.returncode == 2
    assert "FAILED run folder: cannot be made:" in done.stdout
    assert "Not a directory" in done.stdout
    assert "mend: choose one that you may write" in done.stdout
    assert "1 failed" in done.stdout.splitlines()[-1]


def test_wrong_words_are_told(tmp_path: Path) -> None:
    for words in (["--processes", "0"], ["--reports"], ["--plan", "absent"], ["--quik"]):
        done, _ = doctor_words(*words, cwd=tmp_path)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert "mend: " in done.stderr


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """The plan of an attempt on two nodes of a job."""
    plan = Plan(
        run_dir=str(tmp_path / "run"),
        attempt=1,
        launch="17",
        script="/other.py",
        words=(),
        nodes=("n1", "n2"),
        job="17",
        use_cpu=True,
        end_time=time.time() + 1000,
    )
    plan.log_dir.mkdir(parents=True)
    plan.write()
    return plan


def test_reports_that_others_started(plan: Plan, tmp_path: Path) -> None:
    lines = [line for rank in (0, 1) for line in split_parts(rank, dataclasses.asdict(report(rank)))]
    words = ["--plan", str(plan.file), "--reports", "--quick"]
    for given, code in ((lines, 0), (lines[: len(lines) // 2], 2)):
        done = subprocess.run(
            [sys.executable, "-m", "launch", "doctor", *words],
            input="".join(given),
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == code, done.stdout + done.stderr
    assert "FAILED nodes: n2 sent no report" in done.stdout


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Programs]:
    programs = Programs(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{programs.folder}{os.pathsep}{os.environ['PATH']}")
    yield programs


def test_a_step_that_hangs_holds_nothing_up(plan: Plan, programs: Programs, monkeypatch: pytest.MonkeyPatch) -> None:
    programs.add("srun", "echo 'srun: error: it hangs' >&2; trap '' TERM; exec sleep 1000")
    monkeypatch.setattr(doctor, "STEP_S", -7.5)  # 1 s with the nodes' patience
    monkeypatch.setenv("SLURM_NTASKS", "8")
    started_s = time.monotonic()
    findings = doctor.check_plan(plan, quick=False)
    assert time.monotonic() - started_s < 15
    assert [finding.check for finding in findings] == ["nodes"]
    assert findings[0].cause == "n1, n2 sent no report: srun: error: it hangs"
    (words,) = programs.calls("srun")
    assert words[0] == "--ntasks-per-node=1" and words[-1] == str(plan.file)


# ---------------------------------------------------------------------------------------------------- the cluster

PARTITION = {"PartitionName": "gpu", "State": "UP", "TotalNodes": "4", "MaxNodes": "UNLIMITED", "MaxTime": "1-00:00:00"}


@pytest.mark.parametrize(
    ("fields", "profile", "check", "cause"),
    [
        ({"PartitionName": "gpu"}, {}, "partition", "there is no partition 'gpu'"),
        ({}, {}, "partition", "no partition is named"),
        (PARTITION | {"State": "DOWN"}, {}, "partition", "partition 'gpu' is DOWN"),
        (PARTITION, {"nodes": 5}, "node count", "asks for 5 nodes, partition 'gpu' gives 4 at most"),
        (PARTITION | {"MaxNodes": "2"}, {"nodes": 3}, "node count", "gives 2 at most"),
        (PARTITION, {"time": "2-00:00:00"}, "walltime", "asks for 2-00:00:00, the partition gives 1-00:00:00 at most"),
        (PARTITION, {"time": "2"}, "walltime", "120 s are there, and the run is stopped 120 s"),
        (PARTITION | {"DefaultTime": "00:01:30"}, {}, "walltime", "90 s are there"),
        (PARTITION | {"DefaultTime": "00:02:30"}, {}, "", ""),  # a warning
        (PARTITION, {}, "", ""),
        (PARTITION | {"MaxTime": "UNLIMITED", "DefaultTime": "NONE"}, {}, "", ""),
    ],
)
def test_judge_partition(fields: dict[str, str], profile: dict[str, Any], check: str, cause: str) -> None:
    findings = judge_partition(fields, Profile(**profile))
    failed = [finding for finding in findings if finding.level == "FAILED"]
    assert [finding.check for finding in failed] == ([check] if check else [])
    assert all(cause in finding.cause and finding.mend for finding in failed)


def test_a_cluster_that_does_not_answer(programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.yaml").write_text("partition: gpu\n")
    for name in ("sbatch", "srun"):
        programs.add(name)
    programs.add("scontrol", "echo 'Slurmctld(primary) at head is DOWN'")
    (down,) = check_cluster(str(tmp_path / "mine.yaml"), tmp_path)
    assert (down.level, down.cause) == ("FAILED", "Slurmctld(primary) at head is DOWN")
    programs.add("scontrol", "exec sleep 1000")
    monkeypatch.setattr(doctor_cluster, "ASK_S", 0.5)
    (silent,) = check_cluster(str(tmp_path / "mine.yaml"), tmp_path)
    assert (silent.level, silent.cause) == ("FAILED", "scontrol did not answer within 0.5 s")
    monkeypatch.setenv("PATH", str(tmp_path))
    (missing,) = check_cluster(str(tmp_path / "mine.yaml"), tmp_path)
    assert missing.cause == "not on this machine: sbatch, srun, scontrol"


# ------------------------------------------------------------------------------------------------------- the need


def test_predict_need(tmp_path: Path) -> None:
    config = str(ROOT / "configs" / "telco.yaml")
    assert predict_need(None, tmp_path) == Need()
    assert predict_need(load_config(config), tmp_path) == Need()  # small: the floor
    wide = predict_need(load_config(config, ["model.width=16384"]), tmp_path).size_bytes
    assert wide > 4 * 16 * 2 * 16384**2
    kept = load_config(config, ["model.width=16384", "checkpoint.keep_last=10"])
    assert predict_need(kept, tmp_path).size_bytes == 3 * wide
    # one is there: its size is known
    (tmp_path / "checkpoints" / "step-00000010").mkdir(parents=True)
    with (tmp_path / "checkpoints" / "step-00000010" / "model.safetensors").open("wb") as file:
        file.truncate(10**9)
    assert predict_need(kept, tmp_path).size_bytes == 11 * 10**9
