"""How an attempt ended, told from what its processes left: made-up folders of logs and records."""

import json
import os
from pathlib import Path

import pytest

from launch.history import read_end, read_outcomes, write_outcome
from launch.outcome import (
    TAIL_BYTES,
    TAIL_LINES,
    Failure,
    Outcome,
    describe_code,
    read_outcome,
    read_step,
    read_tail,
    same_host,
)
from launch.plan import Plan, request_stop
from nn_train.attempts import claim

PEER = "RuntimeError: [../gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41234"
NCCL = "torch.distributed.DistBackendError: NCCL error ... ncclRemoteError: A call failed, perhaps by a network error"


class Folder:
    """An attempt's folder, as its agents and workers would have left it."""

    def __init__(self, run_dir: Path, nodes: tuple[str, ...] = ("n1", "n2")):
        self.plan = Plan(
            run_dir=str(run_dir), attempt=1, launch="17", script="train.py", words=(), nodes=nodes, first_step=4
        )
        self.plan.log_dir.mkdir(parents=True)
        self.plan.stop_request.parent.mkdir(parents=True)

    def agent(self, host: str, *, code: int = 0, processes: int = 2, ended_s: float = 100) -> None:
        record = {"host": host, "node_rank": 0, "processes": processes, "code": code, "ended_s": ended_s}
        (self.plan.log_dir / f"{host}-agent.json").write_text(json.dumps(record))

    def worker(self, host: str, rank: int, *, code: int = 0, ended_s: float = 90, log: str = "") -> None:
        record = {"rank": rank, "host": host, "code": code, "started_s": 1.0, "ended_s": ended_s}
        (self.plan.log_dir / f"{host}-rank-{rank}.exit.json").write_text(json.dumps(record))
        self.log(host, rank, log)

    def log(self, host: str, rank: int, text: str) -> None:
        (self.plan.log_dir / f"{host}-rank-{rank}.log").write_text(text)

    def world(self, *codes: int) -> None:
        """Two nodes of two processes each, with these exit codes."""
        for rank, code in enumerate(codes):
            self.worker(f"n{1 + rank // 2}", rank, code=code, log=f"rank {rank} ends\n")
        for node in range(2):
            self.agent(f"n{1 + node}", code=int(any(code not in (0, 75) for code in codes)))

    def status(self, step: int) -> None:
        (self.plan.folder / "status.json").write_text(json.dumps({"state": "running", "reason": "", "step": step}))

    @property
    def outcome(self) -> Outcome:
        return read_outcome(self.plan)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "run")


def test_all_ended_with_0_is_done(folder: Folder) -> None:
    folder.world(0, 0, 0, 0)
    folder.status(30)
    assert folder.outcome == Outcome(kind="done", first_step=4, last_step=30)
    assert folder.outcome.made_progress


@pytest.mark.parametrize("codes", [(75, 75, 75, 75), (75, 0, 75, 0)])
def test_all_saved_is_stopped_with_the_reason_of_the_request(folder: Folder, codes: tuple[int, ...]) -> None:
    folder.world(*codes)
    folder.status(4)
    assert folder.outcome == Outcome(kind="stopped", reason="requested", first_step=4, last_step=4)
    assert folder.outcome.made_progress is False
    request_stop(folder.plan.stop_request, "preempted")
    request_stop(folder.plan.stop_request, "walltime")  # the first reason stays
    assert folder.outcome.reason == "preempted"


def test_a_script_without_a_status_file_says_nothing_of_its_progress(folder: Folder) -> None:
    folder.world(75, 75, 75, 75)
    assert folder.outcome.last_step is None
    assert folder.outcome.made_progress is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"step": "many"}', '{"state": "running"}'])
def test_a_damaged_status_file_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "status.json").write_text(text)
    assert read_step(tmp_path) is None


def test_a_user_error_is_not_a_crash(folder: Folder) -> None:
    folder.world(2, 2, 2, 2)
    # process 0 says it for all, and the others wait for a moment before they end
    folder.worker("n1", 0, code=2, ended_s=88, log="error: table.csv: no such column\n  mend: data.target=COLUMN\n")
    outcome = folder.outcome
    assert outcome.kind == "wrong_input"
    assert outcome.failure is not None and outcome.failure.code == 2
    assert outcome.failure.lines == ("error: table.csv: no such column", "  mend: data.target=COLUMN")


def test_the_killed_process_is_the_cause_and_its_peers_are_not(folder: Folder) -> None:
    # the clocks of the hosts differ: the killed one's record seems the latest
    folder.worker("n1", 0, code=1, ended_s=50, log=f"step 7\n{PEER}\n")
    folder.worker("n1", 1, code=1, ended_s=51, log=f"step 7\n{NCCL}\n")
    folder.worker("n2", 2, code=-9, ended_s=60, log="step 7\n")
    folder.worker("n2", 3, code=1, ended_s=52, log=f"{PEER}\n")
    for host in ("n1", "n2"):
        folder.agent(host, code=1)
    outcome = folder.outcome
    assert outcome.kind == "crashed"
    assert outcome.failure == Failure(host="n2", rank=2, code=-9, lines=("step 7",))
    assert outcome.reason == "process 2 on n2 was killed by signal 9"


def test_of_two_causes_the_earlier_one_is_first(folder: Folder) -> None:
    folder.worker("n1", 0, code=1, ended_s=50.2, log="ValueError: second\n")
    folder.worker("n1", 1, code=3, ended_s=50.1, log="ValueError: first\n")
    folder.agent("n1", code=1)
    failure = folder.outcome.failure
    assert failure is not None
    assert (failure.rank, failure.code, failure.lines) == (1, 3, ("ValueError: first",))
    folder.worker("n1", 0, code=1, ended_s=50.0, log="ValueError: second\n")
    failure = folder.outcome.failure
    assert failure is not None and failure.rank == 0


def test_a_crash_after_the_stop_request_has_the_reason_of_the_request(folder: Folder) -> None:
    request_stop(folder.plan.stop_request, "walltime")
    os.utime(folder.plan.stop_request, (80, 80))
    folder.worker("n1", 0, code=-9, ended_s=90)
    folder.agent("n1", code=1, ended_s=91)
    assert (folder.outcome.kind, folder.outcome.reason) == ("crashed", "walltime")
    # where a process failed before, the order to end came from Slurm, since one node had failed
    folder.worker("n1", 1, code=1, ended_s=79, log="MemoryError\n")
    assert folder.outcome.reason == "process 1 on n1 ended with exit code 1"


def test_a_process_without_a_record_makes_a_world_that_is_not_whole(folder: Folder) -> None:
    folder.world(0, 0, 0, 0)
    (folder.plan.log_dir / "n2-rank-3.exit.json").unlink()
    assert folder.outcome.kind == "crashed"


def test_a_host_without_a_word_was_lost(folder: Folder) -> None:
    folder.worker("n1", 0, code=1, log=f"{PEER}\n")
    folder.worker("n1", 1, code=1, log=f"{PEER}\n")
    folder.agent("n1", code=1)
    outcome = folder.outcome
    assert outcome.kind == "crashed"
    assert outcome.failure == Failure(host="n2", rank=None, code=None, lines=())
    assert outcome.reason == "host n2 left no word: it was killed, or its host was lost"


def test_a_cause_on_a_host_that_answered_comes_before_a_lost_host(folder: Folder) -> None:
    folder.worker("n1", 0, code=1, log="MemoryError\n")
    folder.agent("n1", code=1)
    failure = folder.outcome.failure
    assert failure is not None and (failure.host, failure.rank) == ("n1", 0)


def test_a_launcher_that_was_killed_is_named_with_its_log(folder: Folder) -> None:
    folder.agent("n1", code=0)
    folder.agent("n2", code=-9)
    (folder.plan.log_dir / "n2-launcher.log").write_text("launcher: out of memory\n")
    outcome = folder.outcome
    assert outcome.kind == "crashed"
    assert outcome.failure == Failure(host="n2", rank=None, code=-9, lines=("launcher: out of memory",))


def test_where_all_point_at_each_other_the_first_of_them_is_shown(folder: Folder) -> None:
    folder.worker("n1", 0, code=1, ended_s=50, log=f"{PEER}\n")
    folder.worker("n2", 1, code=1, ended_s=49, log=f"{NCCL}\n")
    folder.agent("n1", processes=1)
    folder.agent("n2", processes=1)
    failure = folder.outcome.failure
    assert failure is not None and (failure.rank, failure.lines) == (1, (NCCL,))


def test_nothing_at_all_is_the_head_that_was_lost(folder: Folder) -> None:
    assert folder.outcome.failure == Failure(host="n1", rank=None, code=None, lines=())


def test_half_written_records_count_as_none(folder: Folder) -> None:
    folder.world(0, 0, 0, 0)
    (folder.plan.log_dir / "n2-agent.json").write_text('{"host": "n2", "proc')
    failure = folder.outcome.failure
    assert failure is not None and failure.host == "n2"


def test_a_host_may_be_named_with_its_domain(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "run", nodes=("n1.cluster.example", "n2.cluster.example"))
    folder.world(0, 0, 0, 0)
    (folder.plan.log_dir / "n1-agent.json").unlink()
    failure = folder.outcome.failure
    assert failure is not None and failure.host == "n1.cluster.example"
    assert same_host("n1", "n1.cluster.example") and not same_host("n1", "n11")


def test_only_the_last_lines_of_a_log_are_shown(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_text("".join(f"line {number}  \n\n" for number in range(1000)))
    lines = read_tail(file)
    assert len(lines) == TAIL_LINES
    assert (lines[0], lines[-1]) == (f"line {1000 - TAIL_LINES}", "line 999")
    file.write_bytes(b"first\n" + b"x" * 3 * TAIL_BYTES + b"\xff\n" + "köln".encode())
    lines = read_tail(file)
    assert len(lines[0]) <= TAIL_BYTES and lines[1] == "köln"
    file.write_bytes(b"\xff\n")
    assert read_tail(file) == ("\ufffd",)
    assert read_tail(tmp_path / "none") == ()


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (None, "left no word: it was killed, or its host was lost"),
        (3, "ended with exit code 3"),
        (-9, "was killed by signal 9"),
    ],
)
def test_exit_codes_in_words(code: int | None, text: str) -> None:
    assert describe_code(code) == text
    assert str(Failure(host="n1", rank=2, code=code, lines=())) == f"process 2 on n1 {text}"
    assert str(Failure(host="n1", rank=None, code=code, lines=())) == f"host n1 {text}"


def test_what_is_written_of_an_end_reads_back(tmp_path: Path) -> None:
    failure = Failure(host="n1", rank=0, code=1, lines=("boom",))
    outcome = Outcome(kind="crashed", reason=str(failure), first_step=1, last_step=2, failure=failure)
    for launch in ("17", "17", "18"):
        claim(tmp_path, launch=launch, first_step=5)
    write_outcome(tmp_path, 1, outcome)
    kept = Outcome(kind="crashed", reason=str(failure), first_step=1, last_step=2)
    assert read_outcomes(tmp_path, "17") == [kept, Outcome(kind="lost", first_step=5)]
    assert read_outcomes(tmp_path, "19") == []
    (tmp_path / "attempts" / "0001.end.json").write_text("{")
    assert read_outcomes(tmp_path, "17")[0].kind == "lost"
    assert os.listdir(tmp_path) == ["attempts"]
    assert read_end(tmp_path, claim(tmp_path)).kind == "lost"
