"""From a plan to the `accelerate launch` of one node: its words and its environment. Pure."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from launch.plan import Plan

WORKER = Path(__file__).resolve().parent / "worker.py"
# What a shell, another launcher or sbatch's copy of the caller's environment may leave behind.
LEFT_OVER = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK",
    "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT",
    "TORCHELASTIC_MAX_RESTARTS", "TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_ERROR_FILE",
)  # fmt: skip
MPI_PREFIXES = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL")


def accelerate_argv(plan: Plan, *, node_rank: int, local_processes: int, worker: Path = WORKER) -> list[str]:
    """The words that one node starts its processes with.

    Accelerate divides the number of processes by the number of machines. Each node is told its own number
    times the nodes, so that its agent starts just its own; torch's rendezvous adds up what the nodes really hold.
    """
    num_nodes = len(plan.nodes)
    words = [sys.executable, "-m", "accelerate.commands.launch"]
    if num_nodes * local_processes > 1:
        words += ["--multi_gpu"]
    words += ["--num_machines", str(num_nodes), "--num_processes", str(num_nodes * local_processes)]
    if num_nodes > 1:
        words += ["--machine_rank", str(node_rank), "--main_process_ip", plan.head_address]
    if num_nodes * local_processes > 1:
        words += ["--main_process_port", str(plan.port)]
    given = {option for option in plan.accelerate_options if option.startswith("--")}
    for option in ("--mixed_precision", "--dynamo_backend"):
        if option not in given:
            words += [option, "no"]
    return [*words, *plan.accelerate_options, str(worker), plan.script, *plan.words]


def node_environment(
    plan: Plan, *, local_processes: int, threads: int, folder: Path, inherited: Mapping[str, str]
) -> dict[str, str]:
    """The environment of one node's processes: what is inherited, less what is left over, and the contract."""
    environment = {
        name: value
        for name, value in inherited.items()
        if name not in (*LEFT_OVER, "PYTHONSAFEPATH")
        and not name.startswith(MPI_PREFIXES)
        and not name.startswith("PET_")
    }
    return environment | contract(plan, local_processes=local_processes, threads=threads, folder=folder)


def contract(plan: Plan, *, local_processes: int, threads: int, folder: Path) -> dict[str, str]:
    """What the launcher sets, and says to a script; `folder` is where agent and processes of one node meet."""
    values = {
        "LAUNCH_RUN_DIR": plan.run_dir,
        "LAUNCH_ATTEMPT": str(plan.attempt),
        "LAUNCH_GOES_ON": "1" if plan.goes_on else "0",
        "LAUNCH_STOP_FILE": str(folder / "stop"),
        "LAUNCH_PULSE_DIR": str(folder),
        "LAUNCH_LOG_DIR": str(plan.log_dir),
        "LAUNCH_ID": plan.rendezvous_id,
        "OMP_NUM_THREADS": str(threads),
        "PYTHONUNBUFFERED": "1",
        "PYTHONFAULTHANDLER": "1",
        # the id of the meeting; without it every job's is the word `none`
        "PET_RDZV_ID": plan.rendezvous_id,
        # torch's agent would pass signals on as the order to die within 30 s: ours decides who is told what
        "PET_SIGNALS_TO_HANDLE": "SIGQUIT",
        # when one process has died the others only wait for it: this long between asking them to end and killing them
        "PET_SHUTDOWN_TIMEOUT": "10",
    }
    if plan.use_cpu:
        values["ACCELERATE_USE_CPU"] = "true"
    if plan.faults:
        values["NN_TRAIN_FAULTS"] = plan.faults
    if plan.network_interface:
        values |= {"GLOO_SOCKET_IFNAME": plan.network_interface, "NCCL_SOCKET_IFNAME": plan.network_interface}
    if not plan.use_cpu:
        values |= {"TORCH_NCCL_ASYNC_ERROR_HANDLING": "1"}
    return values


def default_environment() -> dict[str, str]:
    """This process's environment."""
    return dict(os.environ)
