"""Where numbers go: metrics.jsonl always, and wandb through Accelerate's trackers.

Only the main process writes. A tracker that fails is one warning and is left alone afterwards: it can never stop a
training, nor hold it up. wandb lives in a helper process, and a call of it waits for that one, for ever if need be: all
calls are made by a thread of their own, which the training hands its numbers and never waits for until the end.
"""

import dataclasses
import functools
import json
import logging
import math
import os
import queue
import signal
import struct
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from nn_train.attempts import Fenced
from nn_train.metrics import is_better
from nn_train.run_folder import write_file, write_json
from nn_train.settings import Config
from nn_train.tracking_media import Media, send_media

logger = logging.getLogger("nn_train")
STEP_FILE = "tracked.json"  # the last step that wandb had when it was last ended in order
# How long, and how often, wandb's server is waited for; what it did not get stays on disk for `wandb sync`.
START_S, UPLOAD_S, REQUEST_S, RETRIES, RETRY_S = 30, 30, 10, 3, 4
FINISH_S = 60  # the longest that a run waits for wandb at its end: below what a walltime's signal leaves
LINES = 10_000  # that may wait for wandb; about 10 MB
KILL_S = 5  # between the end of a helper that does not answer and that of the thread which waited for it
# wandb's own file: blocks of parts of records, each behind its checksum, size and kind
BLOCK, PART, WHOLE, LAST = 1 << 15, struct.Struct("<IHB"), 1, 4


class MetricsFile:
    """metrics.jsonl: one line per logged step or evaluation, each step once, also after a resume."""

    def __init__(self, path: Path):
        self.path = path
        self._file: int | None = None

    def rewind(self, step: int) -> int:
        """Drop the lines beyond `step` (they will be computed again) and a torn last line; the furthest step there was.

        The file is then a new one that stays open: an older attempt that is still alive has the file
        before it in its hands, and cannot write into this one.
        """
        self.close()
        lines = self._whole_lines()
        write_file(self.path, "".join(f"{line}\n" for at, line in lines if at <= step))
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._close = weakref.finalize(self, os.close, self._file)
        return max((at for at, _ in lines), default=0)

    def _whole_lines(self) -> list[tuple[int, str]]:
        """Step and text of each line that is whole."""
        if not self.path.exists():
            return []
        lines = []
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                step = json.loads(line)["step"]
            except (ValueError, KeyError, TypeError, RecursionError):
                continue
            if isinstance(step, int):
                lines.append((step, line))
        return lines

    def write(self, record: dict[str, Any]) -> None:
        """Append one line; a number that is not finite becomes null."""
        assert self._file is not None, "rewind opens the file"
        finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
        os.write(self._file, f"{json.dumps(finite)}\n".encode())

    def read(self) -> list[dict[str, Any]]:
        """The lines that are there, as `write` took them."""
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._close()
            self._file = None


class NullTracker:
    """Tracks nothing."""

    def log(self, record: dict[str, Any]) -> None:
        """Do nothing."""

    def log_report(self, summary: dict[str, float], collect: Callable[[], Media]) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""


class WandbTracker:
    """One wandb run per training run, offline or online, under one id through every resume."""

    def __init__(
        self,
        accelerator: Accelerator,
        config: Config,
        *,
        run_dir: Path,
        run_id: str,
        metric: str,
        check_owner: Callable[[], None] = lambda: None,
    ):
        # reports of wandb's own errors go to its server as the process ends, in the main thread, and may wait for it
        for name, value in (("WANDB_SILENT", "true"), ("WANDB_ERROR_REPORTING", "false")):
            os.environ.setdefault(name, value)
        self.accelerator = accelerator
        self.config = config
        self.run_dir = run_dir
        self.run_id = run_id
        self.metric = metric
        self.best: float | None = None
        self.check_owner = check_owner
        self.is_broken = False
        self.step_file = run_dir / STEP_FILE
        self.last_step = 0
        self._failure = ""  # the first thing that went wrong; the thread's word to the training
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._live, name="tracking", daemon=True)
        try:
            import wandb  # noqa: F401 - before the thread: two that import at once may meet a module that is half made

            self._thread.start()
        except Exception as error:
            self._leave_alone(_describe(error))

    # ---- in the training's thread: nothing here waits for wandb, but for the end

    def log(self, record: dict[str, Any]) -> None:
        """Log one line of metrics.jsonl under its split's name, and the best evaluation so far."""
        values = self._values(record)
        self._hand_over(lambda: self._log(values, record["step"]))
        self.last_step = record["step"]

    def _values(self, record: dict[str, Any]) -> dict[str, Any]:
        split, value = record["split"], record.get(self.metric)
        values = {f"{split}/{k}": v for k, v in record.items() if k not in ("step", "split", "epoch")}
        if split == "val" and value is not None:
            if self.best is None or is_better(self.metric, value, self.best):
                self.best = value
            # what a sweep compares: the last evaluation is not that of the weights which are kept
            values[f"best/{self.metric}"] = self.best
        return values | {"epoch": record["epoch"]}

    def catch_up(self, records: list[dict[str, Any]]) -> None:
        """Log again what came after the last orderly end: wandb may have lost it with a process that was killed.

        wandb keeps the first value of a step, so that one which did arrive is not there twice.
        """
        if not records:
            return
        safe_step = self._safe_step()
        known = [(self._values(record), record["step"]) for record in records]
        self._hand_over(lambda: [self._log(*line) for line in known if line[1] > safe_step])
        self.last_step = max(self.last_step, records[-1]["step"])

    def _safe_step(self) -> int:
        try:
            return int(json.loads(self.step_file.read_text(encoding="utf-8"))["step"])
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # not there, or damaged
            return 0

    def log_report(self, summary: dict[str, float], collect: Callable[[], Media]) -> None:
        """Send the final metrics, and what `collect` reads from the run folder: pictures, tables, page and model.

        It is read here, and not in wandb's thread: that one may be left behind at the end of the process, and Arrow,
        which reads the predictions, would then wait for it for ever.
        """
        self._look()
        if self.is_broken:
            return
        media = None
        try:
            media = collect()
        except Exception as error:  # whatever is wrong with the files, the run is finished and stays so
            logger.warning("tracking: pictures, tables and model are left out (%s)", _describe(error))
        self._hand_over(lambda: self._send_report(summary, media))

    def close(self) -> None:
        """Finish the wandb run, in a time that is bounded; an orderly end leaves the step file."""
        self._work.put(None)
        try:
            if self._thread.ident is not None:
                self._thread.join(FINISH_S)
        finally:
            if self._thread.is_alive():
                self._failure = self._failure or f"no end within {FINISH_S:g} s"
                self._kill_helper()
                self._thread.join(KILL_S)
        self._look()
        if not self.is_broken:
            try:
                self.check_owner()
                write_json(self.step_file, {"step": self.last_step})
            except Fenced:
                pass
            except OSError as error:
                self._leave_alone(_describe(error))

    def _hand_over(self, work: Callable[[], Any]) -> None:
        self._look()
        if not self.is_broken and self._work.qsize() >= LINES:
            self._leave_alone(f"{LINES} lines wait for it")
        if not self.is_broken:
            self._work.put(work)

    def _look(self) -> None:
        if self._failure:
            self._leave_alone(self._failure)

    def _leave_alone(self, why: str) -> None:
        if not self.is_broken:
            logger.warning("tracking: wandb failed and is left alone from here (%s)", why)
        self.is_broken = True

    def _kill_helper(self) -> None:
        """End wandb's process, which was started by this thread and leads a group: every call of it then fails."""
        with suppress(OSError):
            for pid in Path(f"/proc/self/task/{self._thread.native_id}/children").read_text().split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
                    os.killpg(int(pid), signal.SIGKILL)

    # ---- in the thread of its own: all that calls wandb

    def _live(self) -> None:
        import wandb

        for stage in (self._serve, self._finish, wandb.teardown, self._check_file):
            try:
                stage()
            except (Exception, SystemExit) as error:  # teardown exits where its process was killed
                self._failure = self._failure or _describe(error)

    def _serve(self) -> None:
        self._start()
        for work in iter(self._work.get, None):
            work()

    def _start(self) -> None:
        from wandb.sdk import wandb_run

        # would have every later import of some libraries, in any thread, send word of it to wandb's process, and fail
        # where that one is gone
        wandb_run.register_post_import_hook = lambda *_: None  # type: ignore[attr-defined]
        own_log = logging.getLogger("wandb")
        own_log.addHandler = functools.partial(_add_quiet_handler, own_log)
        hooks = sys.exit, sys.excepthook
        options = {
            "id": self.run_id,
            "name": self.config.name,
            "group": self.config.tracking.group,
            "dir": str(self.run_dir),
            "mode": self.config.tracking.mode,
            "resume": "allow" if self.config.tracking.mode == "online" else None,
            "settings": self._settings(),
        }
        try:
            self.accelerator.init_trackers(
                self.config.tracking.project,
                config=self.config.model_dump(mode="json"),
                init_kwargs={"wandb": options},
            )
        finally:
            sys.exit, sys.excepthook = hooks  # wandb's own would add up, one for each run of a Python process

    @staticmethod
    def _settings() -> Any:
        import wandb

        bounds = {
            "finish_timeout": UPLOAD_S,  # begins when the requests below have come to their ends
            "finish_timeout_raises": True,
            "x_graphql_timeout_seconds": REQUEST_S,
            "x_graphql_retry_max": RETRIES,
            "x_graphql_retry_wait_max_seconds": RETRY_S,
        }
        known = {name: value for name, value in bounds.items() if name in wandb.Settings.model_fields}
        # a run that is still active failed before in the same Python process: never log into that one
        return wandb.Settings(console="off", silent=True, init_timeout=START_S, reinit="finish_previous", **known)

    def _log(self, values: dict[str, Any], step: int) -> None:
        self.accelerator.log(values, step=step)

    def _send_report(self, summary: dict[str, float], media: Media | None) -> None:
        run, settings = self.accelerator.get_tracker("wandb", unwrap=True), self.config.tracking
        # under a name of their own: wandb puts the last value of what was logged while training over its like
        run.summary.update({f"final/{name}": value for name, value in summary.items()})
        if media is not None:
            model = media.model if settings.log_model else None
            folder = self.run_dir.absolute() / "wandb" / "data"
            media = dataclasses.replace(media, model=model)
            send_media(run, media, name=self.config.name, aliases=settings.aliases, folder=folder)

    def _finish(self) -> None:
        for tracker in self.accelerator.trackers:
            tracker.finish()

    def _check_file(self) -> None:
        """Raise OSError where wandb's own file is not whole: of a full disk wandb says nothing."""
        for tracker in self.accelerator.trackers:
            path = Path(tracker.tracker.settings.sync_file)
            if (self.config.tracking.mode == "offline" or path.exists()) and not is_whole(path):
                raise OSError(f"{path} is not whole; is the disk full?")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def _add_quiet_handler(own_log: logging.Logger, hdlr: logging.Handler) -> None:
    """What wandb cannot write into its own log, on a full disk, is not worth a stack trace for each line."""
    hdlr.handleError = lambda record: None
    logging.Logger.addHandler(own_log, hdlr)


def is_whole(path: Path) -> bool:
    """Does wandb's file hold all records, with that of the run's end among them?"""
    from wandb.proto import wandb_internal_pb2

    record = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
    previous, has_end = None, False
    try:
        for content in _read_records(path):
            record.ParseFromString(content)
            if previous is not None and record.num != previous + 1:
                return False
            previous, has_end = record.num, has_end or record.HasField("exit")
    except Exception:  # there is no file, or what is read is no record
        return False
    return has_end


def _read_records(path: Path) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, as far as it is not torn."""
    content = b""
    with path.open("rb") as file:
        file.seek(PART.size)  # a header of its own
        while block := file.read(BLOCK - file.tell() % BLOCK):
            position = 0
            while position + PART.size <= len(block):
                _, size, kind = PART.unpack_from(block, position)
                position += PART.size + size
                if position > len(block):
                    return
                content += block[position - size : position]
                if kind in (WHOLE, LAST):
                    yield content
                    content = b""


def open_tracker(
    accelerator: Accelerator,
    config: Config,
    *,
    run_dir: Path,
    run_id: str,
    metric: str,
    read_records: Callable[[], list[dict[str, Any]]],
    check_owner: Callable[[], None] = lambda: None,
) -> NullTracker | WandbTracker:
    """The tracker that tracking.mode asks for; nothing on processes other than the main one.

    `metric` is the one that chooses the best weights. `read_records` gives the lines of metrics.jsonl that a run which
    goes on has already. `check_owner` raises Fenced where a newer attempt owns the run.
    """
    if config.tracking.mode == "disabled" or not accelerator.is_main_process:
        return NullTracker()
    tracker = WandbTracker(accelerator, config, run_dir=run_dir, run_id=run_id, metric=metric, check_owner=check_owner)
    tracker.catch_up(read_records())
    return tracker
