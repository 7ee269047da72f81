"""The cluster that the other tests use: its hosts, jobs, links and fake GPUs, and that nothing of it is left."""

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.slurm.cluster import FREEZER, Cluster

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    return start_cluster(num_nodes=2, gpus=[1, 2])


def test_two_nodes_are_two_hosts(cluster: Cluster) -> None:
    names = cluster.command("srun", "-N2", "--ntasks-per-node=1", "hostname")
    assert sorted(names.split()) == cluster.nodes
    assert cluster.address(cluster.nodes[0]) != cluster.address(cluster.nodes[1])
    assert cluster.run_on(cluster.nodes[1], "hostname", "-i").split() == [cluster.address(cluster.nodes[1])]


def test_counts_of_fake_gpus_differ(cluster: Cluster) -> None:
    script = "echo $SLURMD_NODENAME $SLURM_GPUS_ON_NODE $CUDA_VISIBLE_DEVICES"
    first, second = cluster.nodes
    counts = {first: ("1", "0"), second: ("2", "0,1")}
    for node, (count, devices) in counts.items():
        told = cluster.command("srun", "-w", node, f"--gpus-per-node={count}", "bash", "-c", script)
        assert told.split() == [node, count, devices]


def test_a_cut_link_carries_nothing_until_healed(cluster: Cluster) -> None:
    first, second = cluster.nodes
    # bash's own TCP, as the tools of a small image may lack ping; the other node's slurmd listens
    port = next(line for line in _configuration(cluster) if f"NodeName={second} " in line).split("Port=")[1].split()[0]
    connect = ("bash", "-c", f"echo -n > /dev/tcp/{cluster.address(second)}/{port}")
    # a link that came up forwards within a second, and TCP sends a lost first packet again after 1, 3 and 7 seconds
    cluster.run_on(first, "timeout", "20", *connect)
    cluster.cut(second)
    with pytest.raises(RuntimeError, match="ended with 124"):
        cluster.run_on(first, "timeout", "1", *connect)
    cluster.heal(second)
    cluster.run_on(first, "timeout", "20", *connect)


def test_requeued_job_restarts_and_ends(cluster: Cluster, tmp_path: Path) -> None:
    script = 'if [ -z "$SLURM_RESTART_COUNT" ]; then sleep 100; fi; echo again'
    job = cluster.submit("-o", "job.out", "--wrap", script, cwd=tmp_path)
    cluster.wait_state(job, "RUNNING")
    _wait_until(lambda: bool(cluster.processes(SLURM_JOB_ID=job)))
    cluster.command("scontrol", "requeue", job)
    assert cluster.wait_state(job, "COMPLETED", timeout=30) == "COMPLETED"
    assert cluster.job(job)["Restarts"] == "1"
    assert (tmp_path / "job.out").read_text() == "again\n"


def test_a_state_that_does_not_come_is_told_with_the_output(cluster: Cluster, tmp_path: Path) -> None:
    job = cluster.submit("--array=3", "-o", "job.out", "--wrap", "echo a line", cwd=tmp_path)
    cluster.wait_state(f"{job}_3", "COMPLETED")
    with pytest.raises(TimeoutError, match=r"is COMPLETED after 0 s, not FAILED(.|\n)*job.out:\na line"):
        cluster.wait_state(f"{job}_3", "FAILED", timeout=0)


def test_nothing_is_left_after_stop(cluster: Cluster, tmp_path: Path) -> None:
    orphan = "setsid sleep 1001 & env -i setsid sleep 1002 & sleep 1003"
    job = cluster.submit("-N2", "--wrap", orphan, cwd=tmp_path)
    _wait_until(lambda: len(cluster.processes(SLURM_JOB_ID=job)) >= 3)
    links = [f"slurm-c{cluster.number}", *(f"slurm-{node}" for node in cluster.nodes)]
    places = [Path("/sys/class/net") / link for link in links]
    places += [Path("/run/netns") / f"slurm-{node}" for node in cluster.nodes]
    places += [FREEZER / f"slurm_{node}" for node in cluster.nodes]
    assert all(place.exists() for place in places)
    cluster.stop()
    assert cluster.processes() == []
    sleeping = subprocess.run(["ps", "-e", "-o", "args="], capture_output=True, text=True, check=True).stdout
    assert not {"sleep 1001", "sleep 1002", "sleep 1003"} & set(sleeping.splitlines())
    assert [path for path in places if path.exists()] == []
    cluster.stop()  # and again, as at the session's end


def _configuration(cluster: Cluster) -> list[str]:
    return Path(cluster.environment["SLURM_CONF"]).read_text().splitlines()


def _wait_until(is_so: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)
