"""Where an attempt runs: which hosts, where they meet, and until when; read late, in the job itself."""

import dataclasses
import ipaddress
import socket
from collections.abc import Iterator, Mapping

from launch.nodelist import expand
from launch.slurm import job_times, node_address
from nn_train.errors import UserError

# Below Linux's ephemeral ports, which begin at 32768: an outgoing connection cannot be there by chance.
FIRST_PORT, NUM_PORTS = 20_000, 12_000
LEAD_S = 120.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Place:
    """Hosts of one attempt; the first is the head."""

    nodes: tuple[str, ...]
    head_address: str
    job: str = ""
    end_time: float | None = None
    limit_s: float | None = None
    """The allocation's whole time."""


def local_place() -> Place:
    """This machine."""
    return Place(nodes=(socket.gethostname(),), head_address="127.0.0.1")


def slurm_place(environment: Mapping[str, str]) -> Place:
    """The allocation that this shell is the batch shell of.

    Raises:
        UserError: this is no job, or its head node's address cannot be found.
    """
    job = job_name(environment)
    if not job:
        raise UserError(
            "SLURM_JOB_ID is not set: this is no Slurm job",
            fix="sbatch slurm/train.sh on a cluster, python -m launch run here",
        )
    nodes = tuple(node_names(environment))
    start_time, end_time = job_times(job, environment)
    limit_s = None if start_time is None or end_time is None else end_time - start_time
    return Place(nodes=nodes, head_address=head_address(nodes[0]), job=job, end_time=end_time, limit_s=limit_s)


def job_name(environment: Mapping[str, str]) -> str:
    """What Slurm's commands know this job by; empty outside of one.

    Of an array it is `ARRAY_TASK`: the last task's own id is the array's too, and a command would mean all tasks.
    """
    array, task = environment.get("SLURM_ARRAY_JOB_ID"), environment.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else environment.get("SLURM_JOB_ID", "")


def node_names(environment: Mapping[str, str]) -> Iterator[str]:
    """Every host of the allocation, those of all components of a heterogeneous job in their order."""
    components = int(environment.get("SLURM_HET_SIZE", "0"))
    for index in range(components):
        yield from expand(environment[f"SLURM_JOB_NODELIST_HET_GROUP_{index}"])
    if not components:
        yield from expand(environment.get("SLURM_JOB_NODELIST", ""))


def head_address(node: str) -> str:
    """The address at which Slurm itself reaches the node, or what its name resolves to."""
    address = node_address(node) or node
    try:
        found = socket.gethostbyname(address)
        # many systems give a host's own name its loopback: the other nodes must look it up themselves
        return address if ipaddress.ip_address(found).is_loopback else found
    except OSError:
        raise UserError(
            f"the head node '{node}' has no address that can be found",
            fix="mend the name service, or set the address in the cluster's profile",
        ) from None


def choose_port(key: int, *, attempt: int) -> int:
    """A port that nobody listens on here, found from the job and the attempt; called on the head node.

    Jobs that share a node begin their search at different places, and so do attempts of one job.

    Raises:
        UserError: all are taken.
    """
    for offset in range(200):
        port = FIRST_PORT + (7 * key + 131 * attempt + offset) % NUM_PORTS
        if is_port_free(port):
            return port
    raise UserError("200 ports in a row are taken on this host", fix="look for left-over processes: ss -ltnp")


def is_port_free(port: int) -> bool:
    """Could a server listen on the port, at any address of this host?"""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("", port))
        except OSError:
            return False
    return True


def choose_lead_s(place: Place, asked_s: float | None) -> float:
    """How long before the end the agents ask for a stop by themselves, should Slurm's signal not come."""
    if asked_s is not None:
        return asked_s
    return LEAD_S if place.limit_s is None else min(LEAD_S, place.limit_s / 10)
