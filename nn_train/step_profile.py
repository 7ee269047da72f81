"""A short window of the training, measured: phases of each step on every process, and a trace of the last few.

The window costs what it costs, and changes no bit; outside of it a step is what it is without a profile.
"""

import dataclasses
import gzip
import logging
import shutil
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from nn_train.run_folder import PROFILE_FILE, TRACE_FOLDER, write_file, write_json
from nn_train.runtime import Runtime
from nn_train.step_times import summarise_steps
from nn_train.terminal import print_profile

logger = logging.getLogger("nn_train")
WARM_UP = 10  # steps of a start before the window: the first ones pay for what later ones find
WINDOW = 30
TRACED = 3  # the last steps of the window; a trace of more is slow to open
Part = TypeVar("Part", bound=Callable[..., Any])


class Laps:
    """Seconds by phase, summed up over the parts that are wrapped; on a GPU each begins and ends with a wait for it."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)
        self._last: float | torch.Event | None = None
        self._hooks: list[RemovableHandle] = []

    def now_s(self) -> float:
        """The time, once the device has done what it was told to do."""
        if self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def timed(self, phase: str, part: Part) -> Part:
        """`part`, its time counted to `phase`."""

        def run(*args: Any, **options: Any) -> Any:
            started_s = self.now_s()
            found = part(*args, **options)
            self.seconds[phase] += self.now_s() - started_s
            return found

        return run  # type: ignore[return-value]

    def reducing(self, backward: Callable[[Tensor], Any], parameters: Sequence[Tensor]) -> Callable[[Tensor], None]:
        """A backward that DDP reduces in, of which what passes after the last gradient counts as communication.

        A hook of DDP would see more, and would divide the gradients at another place than DDP by itself, which is
        other bits on three processes.
        """
        self._hooks += [p.register_post_accumulate_grad_hook(self._note) for p in parameters if p.requires_grad]

        def run(loss: Tensor) -> None:
            self._last = None
            started_s = self.now_s()
            backward(loss)
            end = self._moment()
            ended_s = self.now_s()
            tail_s = min(_between_s(self._last, end), ended_s - started_s)
            self.seconds["backward"] += ended_s - started_s - tail_s
            self.seconds["communication"] += tail_s

        return run

    def _note(self, parameter: Tensor) -> None:
        self._last = self._moment()

    def _moment(self) -> "float | torch.Event":
        """Now, as the device sees it: no wait, which would keep reduction and backward apart."""
        if self.device.type == "cpu":
            return time.perf_counter()
        event = torch.Event(self.device, enable_timing=True)
        event.record()
        return event

    def close(self) -> None:
        """Leave the parameters alone."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()


def _between_s(first: "float | torch.Event | None", last: "float | torch.Event") -> float:
    if first is None:
        return 0.0
    if isinstance(first, torch.Event) and isinstance(last, torch.Event):
        return max(0.0, first.elapsed_time(last) / 1000)
    assert isinstance(first, float) and isinstance(last, float)
    return last - first


@dataclasses.dataclass(frozen=True, kw_only=True)
class Window:
    """Which updates of a start are timed, and which are traced, counted from 0."""

    timed: range
    traced: range

    @property
    def stop(self) -> int:
        """The first update behind it."""
        return self.traced.stop


def plan_window(num_steps: int) -> Window:
    """The window of a start that has so many steps before it; a short one has less of everything."""
    first = min(WARM_UP, num_steps // 4)
    stop = first + min(WINDOW, num_steps - first)
    num_traced = min(TRACED, max(1, (stop - first) // 4))
    # a single step is both timed and traced
    return Window(
        timed=range(first, max(stop - num_traced, min(first + 1, stop))), traced=range(stop - num_traced, stop)
    )


class Profile:
    """Makes the steps of the loop, and measures those of the window; every process has one and makes the same steps.

    `plain` makes a step, `watch` gives what makes the same one with its parts wrapped in Laps.
    """

    def __init__(self, runtime: Runtime, folder: Path, *, check_owner: Callable[[], None]):
        self.runtime = runtime
        self.folder = folder
        self.check_owner = check_owner
        self.window: Window | None = None
        self.count = 0
        self.first_step = 0
        self.steps: list[dict[str, float]] = []
        self.trace = b""
        self._tracer: torch.profiler.profile | None = None
        self._watched: Callable[..., Any] | None = None

    def around(
        self, plain: Callable[..., Any], watch: Callable[[Laps], Callable[..., Any]], *, num_steps: int
    ) -> Callable[..., Any]:
        """What makes the steps of a start that has `num_steps` before it."""
        self.window = plan_window(num_steps)
        self.laps = Laps(self.runtime.device)
        self.plain, self.watch = plain, watch
        return self._make

    def _make(self, step: int, **options: Any) -> Any:
        window, count = self.window, self.count
        if window is None or count < window.timed.start:
            self.count += 1
            return self.plain(step, **options)
        try:
            if count == window.traced.start:
                self._start_trace()
            found = self._time(step, **options) if count in window.timed else self.plain(step, **options)
        except BaseException:
            self._let_go()
            raise
        self.count += 1
        if self.count == window.stop:
            self.finish()
        return found

    def _time(self, step: int, **options: Any) -> Any:
        if self._watched is None:
            self._watched, self.first_step = self.watch(self.laps), step + 1
        self.laps.seconds.clear()
        started_s = self.laps.now_s()
        found = self._watched(step, **options)
        whole_s = self.laps.now_s() - started_s
        self.steps.append(dict(self.laps.seconds) | {"other": whole_s - sum(self.laps.seconds.values())})
        return found

    def _start_trace(self) -> None:
        self.laps.close()
        activities = [torch.profiler.ProfilerActivity.CPU]
        if self.runtime.device.type == "cuda":
            activities.append(torch.profiler.ProfilerActivity.CUDA)
        self._tracer = torch.profiler.profile(activities=activities)
        self._tracer.start()

    def _let_go(self) -> None:
        """End what is being measured, and keep the trace."""
        self.laps.close()
        self.window, self._watched = None, None
        tracer, self._tracer = self._tracer, None
        if tracer is not None:
            tracer.stop()
            with tempfile.TemporaryDirectory() as folder:
                tracer.export_chrome_trace(f"{folder}/trace.json")
                self.trace = gzip.compress(Path(folder, "trace.json").read_bytes(), compresslevel=6)

    def finish(self) -> None:
        """Put together what was measured, where that was not done yet; a collective."""
        if self.window is None:
            return
        self._let_go()
        processes = self.runtime.collect({"host": socket.gethostname(), "steps": self.steps})
        if not self.steps:
            return
        profile = summarise_steps(processes, first_step=self.first_step, device=str(self.runtime.device))
        self.runtime.on_main(lambda: self._publish(profile))
        if self.trace:
            name = f"trace-rank{self.runtime.rank}.json.gz"
            _try(lambda: write_file(self.folder / TRACE_FOLDER / name, self.trace))
            self.trace = b""
        if self.runtime.is_main:
            print_profile(profile)

    def _publish(self, profile: dict[str, Any]) -> None:
        self.check_owner()
        shutil.rmtree(self.folder / TRACE_FOLDER, ignore_errors=True)  # an earlier start's, of other processes perhaps
        _try(lambda: (self.folder / TRACE_FOLDER).mkdir(parents=True, exist_ok=True))
        _try(lambda: write_json(self.folder / PROFILE_FILE, profile))


def _try(write: Callable[[], object]) -> None:
    """A training does not end for want of its profile."""
    try:
        write()
    except OSError as error:
        logger.warning("warning: the profile is not whole: %s", error)
