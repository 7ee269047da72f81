"""Real Slurm clusters for tests, started when the first test asks for them."""

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.slurm.cluster import FREEZER, INSTALL, Cluster, missing_programs

REQUIRE = "NN_TRAIN_REQUIRE_SLURM"  # =1 where tests with Slurm must run, as in CI: what is missing is then a failure


def what_is_missing(proctrack: str) -> str | None:
    """Why this machine cannot run a cluster, with the mend; None where it can."""
    if programs := missing_programs():
        return f"no {', '.join(programs)}: {INSTALL}"
    if os.geteuid() != 0:
        return f"a Slurm cluster of several hosts on one machine needs root (daemons: {INSTALL})"
    if proctrack == "cgroup" and not os.access(FREEZER, os.W_OK):
        return f"proctrack/cgroup needs cgroup v1's freezer in {FREEZER} (daemons: {INSTALL})"
    return None


@pytest.fixture(scope="session")
def start_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Cluster]]:
    """Starts a cluster with the given options; all are stopped at the session's end."""
    with ExitStack() as stack:

        def start(**options: Any) -> Cluster:
            if reason := what_is_missing(options.get("proctrack", "cgroup")):
                give_up = pytest.fail if os.environ.get(REQUIRE) == "1" else pytest.skip
                give_up(reason)
            cluster = Cluster(tmp_path_factory.mktemp("slurm"), **options)
            stack.callback(cluster.stop)
            cluster.start()
            return cluster

        yield start


@pytest.fixture(scope="session")
def cgroup_cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """Four nodes as in production: Slurm signals only the first process of a task."""
    return start_cluster(proctrack="cgroup")


@pytest.fixture(scope="session")
def linuxproc_cluster(start_cluster: Callable[..., Cluster]) -> Cluster:
    """Four nodes where Slurm signals every process of a task."""
    return start_cluster(proctrack="linuxproc")
