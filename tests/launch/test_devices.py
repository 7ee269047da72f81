"""GPUs from the environment and device files, CPUs from affinity and control groups, and how a machine is shared."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.devices import MOST_THREADS, Share, count_cpus, count_gpus, share_machine
from nn_train.errors import UserError


def fake_dev(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


NVIDIA = ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps/nvidia-cap1", "null")
ROCM = ("kfd", "dri/card0", "dri/renderD128", "dri/renderD129")


@pytest.mark.parametrize(
    ("environment", "names", "gpus"),
    [
        ({}, (), 0),
        ({}, NVIDIA, 3),
        ({}, ROCM, 2),
        ({}, ROCM[1:], 0),  # a screen's GPU, that no ROCm computes on
        ({}, ("kfd",), 0),
        ({"CUDA_VISIBLE_DEVICES": ""}, NVIDIA, 0),
        ({"CUDA_VISIBLE_DEVICES": "-1"}, NVIDIA, 0),
        ({"CUDA_VISIBLE_DEVICES": "NoDevFiles"}, NVIDIA, 0),
        ({"CUDA_VISIBLE_DEVICES": "0"}, NVIDIA, 1),
        ({"CUDA_VISIBLE_DEVICES": "0, 1"}, NVIDIA, 2),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, (), 2),
        ({"CUDA_VISIBLE_DEVICES": "0,-1,1"}, NVIDIA, 1),
        ({"CUDA_VISIBLE_DEVICES": "0,0"}, NVIDIA, 0),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8932f937-d72c,GPU-5b1a"}, NVIDIA, 2),
        ({"CUDA_VISIBLE_DEVICES": "MIG-5c89852c-d268"}, NVIDIA, 1),
        ({"CUDA_VISIBLE_DEVICES": "MIG-GPU-8932/1/0,MIG-GPU-8932/2/0"}, NVIDIA, 1),
        ({"ACCELERATE_USE_CPU": "true"}, NVIDIA, 0),
        ({"ACCELERATE_USE_CPU": "True"}, NVIDIA, 0),
        ({"ACCELERATE_USE_CPU": "1", "CUDA_VISIBLE_DEVICES": "0"}, NVIDIA, 0),
        ({"ACCELERATE_USE_CPU": "yes"}, NVIDIA, 0),
        ({"ACCELERATE_USE_CPU": "false"}, NVIDIA, 3),
        ({"ACCELERATE_USE_CPU": ""}, NVIDIA, 3),
        ({"HIP_VISIBLE_DEVICES": "0"}, ROCM, 1),
        ({"ROCR_VISIBLE_DEVICES": "0,1", "HIP_VISIBLE_DEVICES": "1"}, ROCM, 1),
        ({"ROCR_VISIBLE_DEVICES": ""}, ROCM, 0),
        ({"HIP_VISIBLE_DEVICES": "0"}, NVIDIA, 3),  # says nothing about another maker's
    ],
)
def test_count_gpus(tmp_path: Path, environment: dict[str, str], names: tuple[str, ...], gpus: int) -> None:
    assert count_gpus(environment, dev=fake_dev(tmp_path, *names)) == gpus


def test_no_dev(tmp_path: Path) -> None:
    assert count_gpus({}, dev=tmp_path / "none") == 0


def fake_machine(root: Path, groups: str, files: dict[str, str]) -> Path:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


CGROUP = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("", {}, 16),
        ("0::/\n", {}, 16),
        ("0::/\n", {f"{CGROUP}/cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {f"{CGROUP}/cpu.max": "200000 100000\n"}, 2),
        ("0::/\n", {f"{CGROUP}/cpu.max": "3200000 100000\n"}, 16),
        ("0::/\n", {f"{CGROUP}/cpu.max": "150000 100000\n"}, 1),
        ("0::/\n", {f"{CGROUP}/cpu.max": "20000 100000\n"}, 1),
        ("0::/\n", {f"{CGROUP}/cpu.max": "nonsense"}, 16),
        ("0::/job/step\n", {f"{CGROUP}/job/step/cpu.max": "max 100000", f"{CGROUP}/job/cpu.max": "400000 100000"}, 4),
        ("0::/only/outside\n", {f"{CGROUP}/cpu.max": "300000 100000"}, 3),
        (
            "5:cpu,cpuacct:/job\n4:cpuset:/job\n0::/\n",
            {
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_quota_us": "500000\n",
                f"{CGROUP}/cpu,cpuacct/job/cpu.cfs_period_us": "100000\n",
                f"{CGROUP}/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
                f"{CGROUP}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
    ],
)
def test_count_cpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, groups: str, files: dict[str, str], cpus: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    assert count_cpus(root=fake_machine(tmp_path, groups, files)) == cpus


def test_count_cpus_here() -> None:
    assert 1 <= count_cpus() <= (os.cpu_count() or 1)


def test_count_cpus_without_affinity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 6)
    assert count_cpus(root=tmp_path) == 6


@pytest.mark.parametrize(
    ("asked", "share"),
    [
        ((None, None, 0, 2), Share(1, 2, True, "1 process x 2 threads: 2 CPUs, no GPU")),
        ((None, None, 0, 1), Share(1, 1, True, "1 process x 1 thread: 1 CPU, no GPU")),
        ((None, None, 0, 64), Share(1, 8, True, "1 process x 8 threads: 64 CPUs, no GPU")),
        ((2, None, 0, 2), Share(2, 1, True, "2 processes x 1 thread: 2 CPUs, no GPU")),
        (
            (4, None, 0, 2),
            Share(4, 1, True, "4 processes x 1 thread: 2 CPUs, no GPU; more processes than CPUs, so they take turns"),
        ),
        (
            (1, 4, 0, 2),
            Share(1, 4, True, "1 process x 4 threads: 2 CPUs, no GPU; more threads than CPUs, so they take turns"),
        ),
        ((None, None, 4, 18), Share(4, 4, False, "4 processes x 4 threads: 18 CPUs, 4 GPUs")),
        ((None, None, 1, 64), Share(1, 8, False, "1 process x 8 threads: 64 CPUs, 1 GPU")),
        ((2, 1, 4, 18), Share(2, 1, False, "2 processes x 1 thread: 18 CPUs, 4 GPUs (2 unused)")),
    ],
)
def test_share_machine(asked: tuple[int | None, int | None, int, int], share: Share) -> None:
    processes, threads, gpus, cpus = asked
    assert share_machine(processes=processes, threads=threads, gpus=gpus, cpus=cpus) == share


def test_more_processes_than_gpus() -> None:
    with pytest.raises(UserError, match="3 processes were asked for") as caught:
        share_machine(processes=3, threads=None, gpus=2, cpus=8)
    assert "ACCELERATE_USE_CPU" in caught.value.fix
    assert "--cpu" in caught.value.fix
    assert caught.value.where


@pytest.mark.parametrize("asked", [{"processes": 0, "threads": None}, {"processes": None, "threads": -1}])
def test_less_than_one(asked: dict[str, int | None]) -> None:
    with pytest.raises(UserError, match="at least 1"):
        share_machine(**asked, gpus=0, cpus=8)


@given(
    processes=st.none() | st.integers(1, 40), gpus=st.integers(0, 16), cpus=st.integers(1, 300), by_hand=st.booleans()
)
def test_defaults_fit_the_cpus(processes: int | None, gpus: int, cpus: int, by_hand: bool) -> None:
    if gpus and processes:
        processes = min(processes, gpus)
    share = share_machine(processes=processes, threads=3 if by_hand else None, gpus=gpus, cpus=cpus)
    assert share.processes == (processes or max(gpus, 1))
    assert share.is_cpu == (gpus == 0)
    assert "\n" not in share.reason
    if by_hand:
        assert share.threads == 3
    else:
        assert 1 <= share.threads <= MOST_THREADS
        assert share.threads == 1 or share.processes * share.threads <= cpus
    assert ("take turns" in share.reason) == (share.processes * share.threads > cpus)


def test_does_not_import_torch() -> None:
    code = "import sys, launch.devices, launch.freeze, launch.nodelist; sys.exit('torch' in sys.modules)"
    root = Path(__file__).resolve().parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, timeout=60).returncode == 0
