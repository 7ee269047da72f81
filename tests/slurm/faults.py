"""The faults: each a function that lets a run on a real cluster meet one, and asks the oracle."""

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from launch.place import FIRST_PORT, NUM_PORTS
from tests.slurm.bed import STEPS, Bed, Run, assert_one_wandb_run, command_line, kill

PACED = Path(__file__).with_name("run_paced.py")
SHARING = Path(__file__).with_name("run_sharing.py")


def walltime(bed: Bed) -> None:
    """Two minutes are too short: it is requeued three times or more, under one id."""
    # 45 s for each attempt, its start among them: three of them do their share, and are stopped by the agents' own
    # clock while they rest, or on a slow machine before; the rest of the two minutes is theirs to save in
    run = bed.start("walltime", "--time=2", "--signal=USR1@5", launch=("--lead=75s",), script=SHARING)
    run.wait_end(timeout=1000)
    reasons = [run.end_of(number)["reason"] for number in range(1, run.attempts)]
    assert len(reasons) >= 3 and set(reasons) == {"walltime"}, run.output()
    assert bed.cluster.job(run.job)["Restarts"] == str(len(reasons))
    run.assert_same_as_undisturbed()


def preempted(bed: Bed, name: str = "preempted") -> None:
    """A job of a higher partition takes the nodes: the run saves within its grace and requeues itself."""
    # paced: the scheduler takes its time to preempt
    run = bed.start(name, "--partition=low", words=("tracking.mode=offline",), script=PACED)
    run.wait_step(120)
    nodes = bed.cluster.job(run.job)["NodeList"]
    size = ["--partition=high", f"--nodelist={nodes}", "--nodes=2", "--exclusive", "--wrap=sleep 2"]
    bed.cluster.submit(*size, cwd=bed.folder)
    run.wait(lambda: run.attempts >= 2, "second attempt")
    run.wait_end()
    end = run.end_of(1)
    assert (end["kind"], end["reason"]) == ("stopped", "preempted") and end["last_step"] >= 120
    run.assert_same_as_undisturbed()
    assert_one_wandb_run(run)


def stop_file(bed: Bed) -> None:
    """A person touches RUN/STOP: the run saves, ends, and is requeued."""
    run = bed.start("stop_file")
    run.wait_step(120)
    (run.folder / "STOP").touch()
    run.wait_end()
    assert run.end_of(1)["reason"] == "requested" and run.attempts == 2
    run.assert_same_as_undisturbed()


def node_set_down(bed: Bed) -> None:
    """An administrator takes a node away: Slurm requeues, the run goes on elsewhere."""
    run = bed.start("node_set_down")
    run.wait_step(120)
    node = nodes_of(bed, run)[1]
    bed.cluster.set_down(node)
    try:
        run.wait(lambda: run.attempts >= 2, "second attempt")
        run.wait_end()
    finally:
        bed.cluster.set_up(node)
    run.assert_same_as_undisturbed()


def node_killed(bed: Bed) -> None:
    """A node loses its power, all its processes at once: Slurm requeues after its time-out."""
    run = bed.start("node_killed")
    run.wait_step(120)
    node = nodes_of(bed, run)[1]
    bed.cluster.kill_node(node)
    try:
        run.wait(lambda: run.attempts >= 2, "second attempt")
        run.wait_end()
    finally:
        bed.cluster.start_node(node)
    run.assert_same_as_undisturbed()


def link_cut_for_5_seconds(bed: Bed) -> None:
    """The network is away for a moment: nothing happens but a pause."""
    run = bed.start("link_cut_for_5_seconds")
    run.wait_step(120)
    node = nodes_of(bed, run)[1]
    bed.cluster.cut(node)
    time.sleep(5)
    bed.cluster.heal(node)
    run.wait_end()
    assert run.attempts == 1
    run.assert_same_as_undisturbed()


def link_cut_for_good(bed: Bed) -> None:
    """The head's link is cut: it lives on beside the next attempt until it learns of it, and writes nothing."""
    run = bed.start("link_cut_for_good")
    run.wait_step(120)
    node = nodes_of(bed, run)[0]
    bed.cluster.cut(node)
    try:
        run.wait(lambda: run.attempts >= 2, "second attempt")
        # the old attempt's processes are out of Slurm's reach: the fence alone ends them
        run.wait(
            lambda: not bed.cluster.processes(LAUNCH_ID=f"{run.job}-1"), "end of the cut-off processes", timeout=10
        )
        run.wait(lambda: run.status()["state"] == "done", "end of the run", timeout=200)
    finally:
        bed.cluster.heal(node)
    run.wait_end()
    run.assert_same_as_undisturbed()


def cancelled(bed: Bed) -> None:
    """The owner cancels: saved, and not revived; started again by hand it goes on from there."""
    run = bed.start("cancelled")
    run.wait_step(120)
    bed.cluster.command("scancel", run.job)
    run.wait_end("CANCELLED")
    time.sleep(10)  # a requeued job would be back by now
    assert bed.cluster.job(run.job)["JobState"] == "CANCELLED" and run.attempts == 1
    status = run.status()
    assert status["state"] == "stopped" and status["step"] >= 120
    again = bed.start("cancelled")
    again.wait_end()
    assert f"from step {status['step']}" in again.output()
    again.assert_same_as_undisturbed()


def process_killed(bed: Bed, name: str = "process_killed", step: int = 120, steps: int = STEPS) -> None:
    """One training process dies: the world starts anew in the same allocation, on fresh addresses."""
    run = bed.start(name, steps=steps)
    run.wait_step(step)
    kill(run.scripts()[3])
    run.wait_end()
    assert run.attempts == 2 and run.end_of(1)["kind"] == "crashed"
    assert "process 3 on" in run.end_of(1)["failure"] and "killed by signal 9" in run.end_of(1)["failure"]
    assert run.output().count("first error:") == 1
    run.assert_same_as_undisturbed()


def process_stopped(bed: Bed) -> None:
    """One training process is stopped and says nothing: all write their stacks, and it is named over the nodes."""
    run = bed.start("process_stopped", words=("watchdog.floor=12", "watchdog.cap=90"))
    run.wait_step(120)
    stopped_s = time.time()
    os.kill(run.scripts()[2], signal.SIGSTOP)
    run.wait_end()
    assert run.attempts == 2 and run.end_of(1)["kind"] == "crashed", run.output()[-6000:]
    node = run.end_of(1)["failure"].split()[3]
    # at a step, or in what comes between two: it is stopped at any moment
    assert run.end_of(1)["failure"].startswith(f"process 2 on {node} hangs in phase "), run.end_of(1)
    assert "is stopped (SIGSTOP)" in run.output()
    stacks = sorted((run.folder / "logs" / "attempt-0001").glob("*.stacks"))
    assert [path.name.partition("-rank-")[2] for path in stacks] == [f"{rank}.stacks" for rank in range(4)]
    assert all("training.py" in path.read_text() for path in stacks)
    assert (run.folder / "attempts" / "0001.end.json").stat().st_mtime - stopped_s < 100  # and not half an hour
    run.assert_same_as_undisturbed()


def launcher_killed(bed: Bed) -> None:
    """`accelerate launch` dies on one node: its processes die with it, and the world starts anew."""
    run = bed.start("launcher_killed")
    run.wait_step(120)
    kill(run.find("accelerate.commands.launch", node=nodes_of(bed, run)[1])[0])
    run.wait_end()
    assert run.attempts == 2
    run.assert_same_as_undisturbed()


def agent_killed(bed: Bed) -> None:
    """The agent of one node dies: all below it dies with it."""
    run = bed.start("agent_killed")
    run.wait_step(120)
    kill(*(pid for pid in run.find("-m launch.agent", node=nodes_of(bed, run)[1]) if "python" in program(pid)))
    run.wait_end()
    assert run.attempts == 2
    run.assert_same_as_undisturbed()


def batch_shell_killed(bed: Bed) -> None:
    """The batch shell dies: Slurm ends the job, nothing is left, and the same command goes on."""
    run = bed.start("batch_shell_killed")
    run.wait_step(120)
    kill(run.find("slurm_script")[0])
    run.wait_end("FAILED")
    assert run.step >= 120
    again = bed.start("batch_shell_killed")
    again.wait_end()
    again.assert_same_as_undisturbed()


def crashes_at_one_step(bed: Bed) -> None:
    """A step that always kills: two attempts without progress, and no third."""
    run = bed.start("crashes_at_one_step", script=Path(__file__).with_name("run_crashing.py"))
    run.wait_end("FAILED")
    kinds = [run.end_of(number)["kind"] for number in range(1, run.attempts + 1)]
    assert kinds == ["crashed", "crashed", "crashed"]  # the first made progress: it wrote checkpoints
    assert bed.cluster.job(run.job)["ExitCode"] == "93:0"
    assert "no progress in 2 attempts in a row, at step 120" in run.output()
    assert "RuntimeError: the fault of step 130" in run.output()


def two_jobs_on_the_same_nodes(bed: Bed) -> None:
    """Two runs share two nodes: neither finds the other's port or processes."""
    free = [node for node, gpus in zip(bed.cluster.nodes, bed.cluster.gpus, strict=True) if not gpus][-2:]
    size = ("--nodes=2", "--ntasks-per-node=2", f"--nodelist={','.join(free)}", "--cpus-per-task=1")
    runs = [bed.start(f"shared-{index}", *size) for index in range(2)]
    for run in runs:
        run.wait_end()
    assert {bed.cluster.job(run.job)["NodeList"] for run in runs} == {bed.cluster.job(runs[0].job)["NodeList"]}
    for run in runs:
        run.assert_same_as_undisturbed()


def port_occupied(bed: Bed) -> None:
    """Somebody listens where the run would meet: it meets elsewhere."""
    run = bed.start("port_occupied", "--hold")
    port = FIRST_PORT + (7 * int(run.job) + 131) % NUM_PORTS
    # every node shares this machine's loopback no more: the listener must be on the node that becomes the head
    node = bed.cluster.nodes[0]
    listener = bed.cluster.start_on(node, "python3", "-c", LISTEN, str(port))
    try:
        bed.cluster.command("scontrol", "update", f"jobid={run.job}", f"ReqNodeList={','.join(bed.cluster.nodes[:2])}")
        bed.cluster.command("scontrol", "release", run.job)
        run.wait_end()
    finally:
        listener.kill()
        listener.wait()
    plan = json.loads((run.folder / "launch" / "plan-0001.json").read_text())
    assert plan["port"] == port + 1
    run.assert_same_as_undisturbed()


def array_of_runs(bed: Bed) -> None:
    """Three runs of one array, two at a time, each in a folder of its own."""
    run = bed.start("array-%a", "--array=0-2%2", words=())
    runs = [Run(bed, f"{run.job}_{task}", bed.folder / f"array-{task}") for task in range(3)]
    for one in runs:
        one.wait_end(timeout=300)
        one.assert_same_as_undisturbed()


def preempted_by_signal(bed: Bed) -> None:
    """As `preempted`, where Slurm sends the job's own signal in place of SIGTERM."""
    preempted(bed, "preempted_by_signal")


LISTEN = "import socket,sys,time; s=socket.create_server(('', int(sys.argv[1]))); time.sleep(600)"


def nodes_of(bed: Bed, run: Run) -> list[str]:
    """The nodes of a running job; the first is the head."""
    return bed.cluster.command("scontrol", "show", "hostnames", bed.cluster.job(run.job)["NodeList"]).split()


def program(pid: int) -> str:
    """The first word of a process's command line."""
    return command_line(pid).partition(" ")[0]


FAULTS: dict[str, Callable[[Bed], None]] = {
    function.__name__: function
    for function in (walltime, link_cut_for_good, node_killed, cancelled, crashes_at_one_step, array_of_runs,
                     two_jobs_on_the_same_nodes, preempted, node_set_down, batch_shell_killed, process_killed,
                     process_stopped, launcher_killed, agent_killed, stop_file, link_cut_for_5_seconds, port_occupied)
}  # fmt: skip
# What signals and the death of parents decide differently where Slurm signals every process of a step.
ALSO_WITH_LINUXPROC = ("preempted",)
