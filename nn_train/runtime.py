"""The processes of a run: their Accelerator, how they agree, and how they are asked to stop."""

import logging
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    GradientAccumulationPlugin,
    broadcast_object_list,
    gather_object,
)
from torch import nn

from nn_train.ending import is_main
from nn_train.errors import ConfigError, UserError, WorldError, error_from_os
from nn_train.pulse import pulse
from nn_train.settings import TrainConfig

T = TypeVar("T")
LOOK_EVERY_S = 0.2  # between two looks for the stop file
logger = logging.getLogger("nn_train")
MPI_PREFIXES = ("PMI_", "PMIX_", "OMPI_COMM_WORLD_", "MV2_COMM_WORLD_", "MPI_LOCAL")
SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)


class Runtime:
    """One process's view of the world: who it is, and collectives that every process must call."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator
        self.rank = accelerator.process_index
        self.num_processes = accelerator.num_processes
        self.is_main = accelerator.is_main_process
        self.device = accelerator.device

        # torch.manual_seed would also queue a seed, with a stack trace, for every kind of device that is not here
        is_cpu = self.device.type == "cpu"
        self._seed: Callable[[int], Any] = (
            torch.default_generator.manual_seed if is_cpu else torch.get_device_module(self.device).manual_seed
        )

    def wrap(self, network: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, AcceleratedOptimizer]:
        """The two as Accelerate has them train: on the device, in its precision, in DDP where there are processes."""
        with warnings.catch_warnings():
            # torch 2.13 renames DDP's broadcast_buffers, which Accelerate knows under that name
            warnings.filterwarnings("ignore", message=".*broadcast_buffers.*", category=FutureWarning)
            # told to place them, Accelerate does not import torch's split tensors (0.3 s) to see if it may
            return self.accelerator.prepare(network, optimizer, device_placement=[True, True])

    def seed_step(self, seed: int) -> None:
        """Seed what dropout on this device draws from."""
        self._seed(seed)

    def on_every_rank(self, work: Callable[[], T]) -> T:
        """Do `work`, which holds no collective, on each process; a failure on one is raised on all.

        The failure of the lowest rank is the one that everybody raises, so one message is shown and
        nobody waits for a process that has gone.
        """
        outcome, failure = _attempt(work)
        failures = [failure]
        if self.num_processes > 1:
            with pulse:
                failures = gather_object(failures)
        for rank, shared in enumerate(failures):
            if isinstance(shared, UserError):
                raise shared
            if shared is not None:
                raise failure if failure is not None else RuntimeError(f"process {rank} failed: {shared!r}")
        return outcome  # type: ignore[return-value]

    def on_main(self, work: Callable[[], T]) -> T | None:
        """Do `work`, which holds no collective, on the main process alone; a failure is raised on all."""
        return self.on_every_rank(work if self.is_main else lambda: None)

    def broadcast(self, value: T) -> T:
        """The main process's value, on every process."""
        if self.num_processes == 1:
            return value
        with pulse:
            return broadcast_object_list([value])[0]

    def collect(self, value: T) -> list[T]:
        """The plain values of all processes, by rank, on every process."""
        if self.num_processes == 1:
            return [value]
        with pulse:
            return gather_object([value])

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """The sum of `values` over all processes, on every process."""
        if self.num_processes == 1:
            return values
        with pulse:
            return self.accelerator.reduce(values, reduction="sum")  # type: ignore[return-value]

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        """`values` of all processes, one after another along the first axis, on every process."""
        if self.num_processes == 1:
            return values
        with pulse, warnings.catch_warnings():
            # torch 2.13 renames what Accelerate gathers with on GPUs
            warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
            return self.accelerator.gather(values)  # type: ignore[return-value]

    def any_rank(self, *flags: bool) -> tuple[bool, ...]:
        """For each flag: is it set on any process? The answer is the same on all."""
        if self.num_processes == 1:
            return flags
        total = self.sum(torch.tensor(flags, dtype=torch.float32, device=self.device))
        with pulse:  # on a GPU it is here that the collective is waited for
            return tuple(bool(value) for value in (total > 0).tolist())


def _attempt(work: Callable[[], T]) -> tuple[T | None, Exception | None]:
    try:
        return work(), None
    except UserError as error:
        return None, error
    except OSError as error:
        user_error = error_from_os(error)
        user_error.__cause__ = error
        return None, user_error
    except Exception as error:
        return None, error


def start_runtime(config: TrainConfig, *, log_with: str | None = None) -> Runtime:
    """Build the Accelerator for the devices that are here and check that the world is whole.

    Raises:
        ConfigError: a precision that this device does not have.
        WorldError: the processes were started together but do not see each other.
    """
    has_accelerator = torch.accelerator.is_available()
    wants_cpu = os.environ.get("ACCELERATE_USE_CPU", "").lower() in ("1", "true", "yes", "y")
    if config.mixed_precision == "fp16" and (wants_cpu or not has_accelerator):
        raise ConfigError("train.mixed_precision=fp16 needs a GPU", fix="train.mixed_precision=bf16 or no")
    check_launch(wants_cpu=wants_cpu)
    forget_mpi()
    AcceleratorState._reset_state()  # a second run in one Python process may want another precision
    GradientState._reset_state()
    with pulse:  # the processes meet
        accelerator = Accelerator(
            cpu=wants_cpu or not has_accelerator,  # without it, gloo processes would each be a world of one
            mixed_precision=config.mixed_precision,
            log_with=log_with,
            # micro-batches are ours: a number left in the launcher's environment must not scale the gradients
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            kwargs_handlers=[ddp_options(config)],
        )
    torch.set_num_threads(config.cpu_threads)  # after Accelerate, which sets a number of its own
    if accelerator.distributed_type in SHARDED:
        raise ConfigError(
            f"the launcher asks for {accelerator.distributed_type.value}, and only DDP is supported",
            fix="accelerate launch --multi_gpu --num_processes N nn_train/train.py",
        )
    check_world(accelerator.num_processes)
    return Runtime(accelerator)


def ddp_options(config: TrainConfig) -> DistributedDataParallelKwargs:
    """How DDP wraps the network.

    In fast mode the graph is static: every step uses all weights. Exact mode cannot have that: all its backwards are
    within no_sync, and under a static graph the first of all must not be.
    """
    is_fast = config.gradient_reduction == "fast"
    return DistributedDataParallelKwargs(
        static_graph=is_fast,
        # the networks' buffers are constants: sending them round before every forward would be for nothing
        broadcast_buffers=False,
        # a reduced gradient stays in its bucket instead of being copied out of it. Not in exact mode: torchrun with one
        # process wraps the network too, Accelerate's no_sync does nothing there, and DDP would then take the gradients
        # out of the buffers that exact mode sums up
        gradient_as_bucket_view=is_fast,
    )


def check_launch(*, wants_cpu: bool) -> None:
    """Refuse what the environment says of a world before anything waits for it.

    Raises:
        WorldError: more processes on this host than GPUs, or a world whose meeting point is not told.
    """
    local, world_size = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    if torch.cuda.is_available() and not wants_cpu and local > torch.cuda.device_count():
        raise WorldError(
            f"{local} processes were started on a host with {torch.cuda.device_count()} GPU(s)",
            fix="start one process per GPU, or set ACCELERATE_USE_CPU=true to train on the CPU",
        )
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK") if name not in os.environ]
    if world_size > 1 and missing:
        raise WorldError(
            f"WORLD_SIZE={world_size} says that other processes were started, and {', '.join(missing)} is not set",
            fix="start them by accelerate launch or torchrun; in a shell with a left-over WORLD_SIZE, unset it",
        )


def forget_mpi() -> None:
    """Drop what MPI says of a world, where no launcher of torch's kind says so too.

    A shell inside salloc or srun, and one below mpirun, hold such variables. Accelerate takes them for a world on the
    CPU, and would wait for processes that nobody started.
    """
    if "WORLD_SIZE" not in os.environ:
        for name in [name for name in os.environ if name.startswith(MPI_PREFIXES)]:
            del os.environ[name]


def check_world(num_processes: int) -> None:
    """Refuse to train where the launcher started more processes than train together.

    Otherwise each would believe to be alone, and all would write the same run folder.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size != num_processes:
        raise WorldError(
            f"WORLD_SIZE says that {world_size} processes were started, but {num_processes} train together",
            where=f"process {os.environ.get('RANK', '0')}",
            fix="without GPUs set ACCELERATE_USE_CPU=true; in a shell with a left-over WORLD_SIZE, unset it",
        )


def seed_everything(seed: int) -> None:
    """Seed Python, numpy and torch, the same on every process."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


class StopSignal:
    """Remembers that the process was asked to stop, by a signal or the launcher's stop file.

    The handler only sets a flag: the loop asks all processes to agree and saves a checkpoint. A
    second Ctrl-C stops at once.
    """

    def __init__(self, stop_file: Path | None = None) -> None:
        self.name = ""
        self.stop_file = stop_file
        self._looked_s = 0.0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Has a signal arrived on this process, or is the stop file there? It is looked for now and then."""
        now_s = time.monotonic()
        if not self.name and self.stop_file is not None and now_s - self._looked_s >= LOOK_EVERY_S:
            self._looked_s = now_s
            with suppress(OSError):
                self.name = self.stop_file.read_text(encoding="utf-8").strip() or "stop file"
        return bool(self.name)

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.name and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.name = signal.Signals(number).name


class _ShowHandler(logging.Handler):
    """Writes to what standard output is at that moment: a notebook and a test put another in its place."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print the line."""
        print(self.format(record), file=sys.stdout, flush=True)  # noqa: T201


def set_up_logging() -> None:
    """Plain lines of the main process on standard output, unless the caller has set up "nn_train" already.

    Other processes only show errors.
    """
    if logger.handlers:
        return
    logger.addHandler(_ShowHandler())
    logger.setLevel(logging.INFO if is_main() else logging.ERROR)
    logger.propagate = False


def leave_world() -> None:
    """End the process group, if there is one; without it some exits end in a crash."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
