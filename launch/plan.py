"""What one attempt runs and where: written once when the attempt begins, read by every node's agent."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Self

from nn_train.errors import RunFolderError
from nn_train.run_folder import write_json


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """One attempt of a run. Paths are absolute, so that any working directory will do."""

    run_dir: str
    attempt: int
    launch: str
    """Names all attempts that share a budget of restarts: Slurm's job id, or an id of a local launch."""
    script: str
    words: tuple[str, ...]
    nodes: tuple[str, ...]
    """Host names; the first is the head, where process 0 runs and all meet."""
    head_address: str = "127.0.0.1"
    port: int = 0
    job: str = ""
    processes_per_node: int | None = None
    """Processes on each node; None: one per GPU, as each node finds them."""
    threads: int | None = None
    """OMP_NUM_THREADS of a process; None: the node's CPUs shared out."""
    use_cpu: bool = False
    goes_on: bool = False
    """An earlier attempt of the same launch was there."""
    first_step: int | None = None
    """Steps that were safe when the attempt began."""
    end_time: float | None = None
    """When the allocation ends, in seconds since 1970."""
    lead_s: float = 120.0
    """Seconds before `end_time` at which the training is asked to stop."""
    grace_s: float = 600.0
    """Longest wait for an orderly end after a stop was asked for."""
    stop_signal: str = ""
    """A signal that a stop also sends to each process, for scripts that know no stop file."""
    max_restarts: int = 10
    network_interface: str = ""
    accelerate_options: tuple[str, ...] = ()
    faults: str = ""
    """Faults to inject into this attempt; see nn_train/faults.py."""
    preload: tuple[str, ...] = ()
    """Modules that each node imports once for all of its processes; see launch/preload.py."""

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run_dir)

    @property
    def log_dir(self) -> Path:
        """Logs and exit records of this attempt."""
        return self.folder / "logs" / f"attempt-{self.attempt:04d}"

    @property
    def stop_request(self) -> Path:
        """The file that asks every node of this attempt to stop; its content is the reason."""
        return self.folder / "attempts" / f"{self.attempt:04d}.stop"

    @property
    def hang_notice(self) -> Path:
        """The file that tells every node's agent that the processes hang; its content is the host that noticed."""
        return self.folder / "attempts" / f"{self.attempt:04d}.hang"

    @property
    def file(self) -> Path:
        """Where the plan itself lies."""
        return self.folder / "launch" / f"plan-{self.attempt:04d}.json"

    @property
    def rendezvous_id(self) -> str:
        """Own to each attempt: processes of an older one that knock on the same door are turned away."""
        return f"{self.launch}-{self.attempt}"

    def write(self) -> Path:
        """Write the plan into the run folder; its path."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        write_json(self.file, dataclasses.asdict(self))
        return self.file

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a plan. Raises RunFolderError if it is not one."""
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            lists = ("words", "nodes", "accelerate_options", "preload")
            fields: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in values.items()}
            return cls(**fields)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise RunFolderError(
                f"this is not the plan of an attempt: {error}", where=str(path), fix="start the run again"
            ) from None


def request_stop(file: Path, reason: str) -> None:
    """Ask every node of an attempt to stop; the first reason stays."""
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(reason)
    except FileExistsError:
        pass
