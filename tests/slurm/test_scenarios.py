"""Faults and ordinary jobs on a real Slurm, several at a time; the oracle is the undisturbed run's bits.

The default suite runs each fault where Slurm signals the launcher alone, as in production, and the preemption
also where it signals every process. `pytest -m campaign` runs every fault in both ways, and the
killed process twenty times.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import pytest

from tests.slurm.bed import SHORT_STEPS, STEPS, Bed
from tests.slurm.cluster import Cluster
from tests.slurm.faults import ALSO_WITH_LINUXPROC, FAULTS, preempted_by_signal, process_killed
from tests.slurm.jobs import JOBS

pytestmark = pytest.mark.slurm
Proctrack = Literal["cgroup", "linuxproc"]
AT_ONCE = 3  # most of a fault's time is waiting: for Slurm, or for a node to be given up
GPUS = (0, 0, 0, 0, 0, 0, 0, 0, 1, 3)  # of the nodes
SCENARIOS = FAULTS | JOBS

# for the long form: each has another beside it that takes the same way through the launcher
ALIKE = ("launcher_killed", "submitted_array", "stop_file", "node_set_down", "link_cut_for_5_seconds",
         "batch_shell_killed", "port_occupied", "cancelled_by_launch", "array_of_runs", "rehearsed",
         "two_jobs_on_the_same_nodes")  # fmt: skip
DEFAULT = [("cgroup", fault) for fault in SCENARIOS if fault not in ALIKE]
DEFAULT += [("linuxproc", fault) for fault in ALSO_WITH_LINUXPROC]
REST = [pair for fault in SCENARIOS for pair in (("cgroup", fault), ("linuxproc", fault)) if pair not in DEFAULT]


@pytest.fixture(scope="session")
def make_bed(start_cluster: Callable[..., Cluster], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Bed]:
    """Starts a cluster with a table on it."""

    def make(**options: object) -> Bed:
        cluster = start_cluster(**{"num_nodes": len(GPUS), "gpus": GPUS} | options)
        return Bed(cluster, tmp_path_factory.mktemp("bed"))

    return make


@pytest.fixture(scope="session")
def faults(
    request: pytest.FixtureRequest, make_bed: Callable[..., Bed]
) -> Iterator[dict[tuple[str, str], Future[None]]]:
    """The faults that this session's tests ask for, at work in the background."""
    wanted = [item.callspec.params for item in request.session.items if "fault" in getattr(item, "fixturenames", [])
              and hasattr(item, "callspec")]  # fmt: skip
    keys = [(params["proctrack"], params["fault"]) for params in wanted if {"proctrack", "fault"} <= params.keys()]
    beds: dict[str, Bed] = {}
    for proctrack in dict.fromkeys(proctrack for proctrack, _ in keys):
        beds[proctrack] = make_bed(proctrack=proctrack)
    first = next(iter(beds.values()))
    first.make_reference(STEPS)
    for bed in beds.values():
        bed.references[STEPS] = first.references[STEPS]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {(proctrack, fault): pool.submit(SCENARIOS[fault], beds[proctrack]) for proctrack, fault in keys}


def _case(proctrack: str, fault: str, *marks: pytest.MarkDecorator) -> object:
    return pytest.param(proctrack, fault, marks=marks, id=f"{fault}-{proctrack}")


@pytest.mark.parametrize(
    ("proctrack", "fault"),
    [*(_case(*pair) for pair in DEFAULT), *(_case(*pair, pytest.mark.campaign) for pair in REST)],
)
def test_scenario(proctrack: Proctrack, fault: str, faults: dict[tuple[str, str], Future[None]]) -> None:
    faults[proctrack, fault].result(timeout=1200)


@pytest.mark.campaign
@pytest.mark.parametrize("proctrack", ["cgroup", "linuxproc"])
def test_a_preemption_that_sends_the_users_signal(proctrack: Proctrack, make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(proctrack=proctrack, send_user_signal=True, num_nodes=2, gpus=None)
    bed.make_reference(STEPS)
    preempted_by_signal(bed)


@pytest.mark.campaign
def test_a_killed_process_twenty_times_out_of_twenty(make_bed: Callable[..., Bed]) -> None:
    bed = make_bed(proctrack="cgroup", num_nodes=4, gpus=None)
    bed.make_reference(SHORT_STEPS)
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(process_killed, bed, f"killed-{n}", 40 + 3 * n, SHORT_STEPS) for n in range(20)]
        for run in runs:
            run.result(timeout=900)
