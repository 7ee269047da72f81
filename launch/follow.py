"""What the processes of a run say: their logs, printed or followed through all attempts to the run's end."""

import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launch.history import end_file, read_end
from launch.request import Parser
from launch.runs import Run, find_run, read_run
from nn_train.attempts import Attempt, list_attempts
from nn_train.errors import ConfigError, RunFolderError

LOG = re.compile(r"(?P<host>.+)-(?:rank-(?P<rank>\d+)|launcher)\.log")
TICK_S, LOOK_S, QUEUE_LOOK_S = 0.2, 0.5, 5.0  # between two looks at the logs, at the run, and at the queue
CHUNK_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Which logs of an attempt are wanted; rank 0's where nothing is said."""

    rank: int | None = None
    host: str = ""
    all: bool = False
    launcher: bool = False

    def find(self, folder: Path) -> list[tuple[str, Path]]:
        """The logs there are now, with the prefix of their lines, by rank."""
        found = []
        for file in folder.glob("*.log"):
            name = LOG.fullmatch(file.name)
            if name and self._wants(name["host"], name["rank"]):
                found.append((int(name["rank"] or 0), f"{name['host']} {name['rank'] or 'launcher'}: ", file))
        return [(prefix, file) for _, prefix, file in sorted(found)]

    def _wants(self, host: str, rank: str | None) -> bool:
        if self.host and self.host not in (host, host.partition(".")[0]):
            return False
        if self.launcher or rank is None:
            return self.launcher and rank is None
        if self.rank is not None:
            return int(rank) == self.rank
        return self.all or bool(self.host) or int(rank) == 0


class Tail:
    """One log, read on from where the last look ended."""

    def __init__(self, file: Path):
        self.file = file
        self.offset = 0
        self.torn = b""

    def read(self, *, is_over: bool) -> list[str]:
        """The lines that came since; a last one that is not yet whole stays for the next look, if there is one."""
        with self.file.open("rb") as opened:
            opened.seek(self.offset)
            data = opened.read(CHUNK_BYTES)
        self.offset += len(data)
        *lines, self.torn = (self.torn + data).split(b"\n")
        if is_over and self.torn and len(data) < CHUNK_BYTES:
            lines, self.torn = [*lines, self.torn], b""
        return [line.decode(errors="replace") for line in lines]


class Printer:
    """Prints the chosen logs of one attempt, each as far as it has come."""

    def __init__(self, folder: Path, choice: Choice, num_lines: int | None):
        self.folder = folder
        self.choice = choice
        self.num_lines = num_lines
        self.tails: dict[Path, Tail] = {}

    def show(self, *, is_over: bool) -> None:
        """Print what is new. The first time, no more than the last `num_lines` of each log."""
        logs = self.choice.find(self.folder)
        for prefix, file in logs:
            self._show_one(prefix if len(logs) > 1 or self.choice.all else "", file, is_over=is_over)
        sys.stdout.flush()

    def _show_one(self, prefix: str, file: Path, *, is_over: bool) -> None:
        is_first = file not in self.tails
        tail = self.tails.setdefault(file, Tail(file))
        kept: list[str] = []
        while lines := tail.read(is_over=is_over):
            if is_first and self.num_lines is not None:
                kept = [*kept, *lines][max(0, len(kept) + len(lines) - self.num_lines) :]
            else:
                _write(prefix, lines)
        _write(prefix, kept)


def _write(prefix: str, lines: list[str]) -> None:
    sys.stdout.writelines(f"{prefix}{line}\n" for line in lines)


def logs(words: Sequence[str]) -> int:
    """`python -m launch logs`: print what the processes of a run say.

    Raises:
        UserError: there is no such log.
    """
    parser = Parser(
        prog="python -m launch logs",
        description="The log of rank 0 in the newest attempt. -f goes on to the next attempt, until the run has ended.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument("-f", "--follow", action="store_true", help="print what comes, until the run has ended")
    parser.add_argument("-n", "--lines", type=int, metavar="LINES", help="only the last ones of each log")
    parser.add_argument("--rank", type=int, metavar="R", help="the process with this rank")
    parser.add_argument("--host", default="", metavar="H", help="the processes of this host")
    parser.add_argument("--all", action="store_true", help="all processes, their lines after `HOST RANK: `")
    parser.add_argument("--launcher", action="store_true", help="what accelerate launch says, host by host")
    parser.add_argument("--attempt", type=int, metavar="K", help="an earlier attempt")
    parsed = parser.parse_args(words)
    if parsed.lines is not None and parsed.lines < 0:
        raise ConfigError(f"-n {parsed.lines} is no number of lines", fix="-n 20")
    choice = Choice(rank=parsed.rank, host=parsed.host, all=parsed.all, launcher=parsed.launcher)
    run = read_run(find_run(parsed.run))
    if parsed.follow:
        return _follow(run, choice, number=parsed.attempt, num_lines=parsed.lines)
    attempt = _pick(run, parsed.attempt)
    folder = _log_dir(run.folder, attempt.number)
    if not choice.find(folder):
        raise RunFolderError(_missing(attempt, folder), where=str(folder), fix=_there_are(folder))
    Printer(folder, choice, parsed.lines).show(is_over=True)
    return 0


def _log_dir(folder: Path, number: int) -> Path:
    return folder / "logs" / f"attempt-{number:04d}"


def _pick(run: Run, number: int | None) -> Attempt:
    """The attempt with this number, or the newest."""
    if run.newest is None:
        queued = f"; job {run.job.id} is {run.job.state} ({run.job.reason})" if run.job and run.job.is_alive else ""
        raise RunFolderError(f"no attempt has begun{queued}", where=str(run.folder), fix="-f waits for what is queued")
    for attempt in run.attempts:
        if number in (None, attempt.number) and (number is not None or attempt is run.newest):
            return attempt
    raise RunFolderError(
        f"there is no attempt {number}", where=str(run.folder), fix=f"--attempt 1 to {run.newest.number}"
    )


def _missing(attempt: Attempt, folder: Path) -> str:
    if not attempt.launch:
        return "no launcher started this attempt: what it said went to its terminal"
    return "there is no such log" if any(folder.glob("*.log")) else "its processes have said nothing yet"


def _there_are(folder: Path) -> str:
    names = sorted(file.name for file in folder.glob("*.log"))
    shown = f"{', '.join(names[:8])}{', ...' if len(names) > 8 else ''}"
    return f"there are {shown}" if names else "wait, or start it by python -m launch run"


def _follow(run: Run, choice: Choice, *, number: int | None, num_lines: int | None) -> int:
    """Print until the run has ended; attempts that end are followed by those that begin."""
    folder = run.folder
    if run.newest is None and run.is_over:
        _pick(run, number)
    current = _pick(run, number) if run.newest else None
    if current is not None and not current.launch:
        raise RunFolderError(_missing(current, folder), where=str(folder), fix=_there_are(folder))
    printer = Printer(_log_dir(folder, current.number), choice, num_lines) if current else None
    announced, looked_s = "", time.monotonic()
    while True:
        following = next((a for a in list_attempts(folder) if current is None or a.number > current.number), None)
        if following is None and time.monotonic() - looked_s > (QUEUE_LOOK_S if run.job else LOOK_S):
            run, looked_s = read_run(folder), time.monotonic()
        # looked at before the logs are read for the last time: whoever wrote them is gone
        is_over = following is None and _is_over(run, current)
        if printer is not None:
            printer.show(is_over=is_over or following is not None)
        if is_over:
            _note(f"{_end_of(folder, current)}the run is {run.state}" + (f" ({run.why})" if run.why else ""))
            return 0
        if following is not None:
            _note(f"{_end_of(folder, current)}attempt {following.number} begins")
            current, printer = following, Printer(_log_dir(folder, following.number), choice, None)
        elif run.state == "queued" and run.job is not None and announced != run.job.reason:
            announced = run.job.reason
            _note(f"{_end_of(folder, current)}job {run.job.id} is queued ({run.job.reason})")
        time.sleep(TICK_S)


def _is_over(run: Run, current: Attempt | None) -> bool:
    """Will nothing more come? Told by the run as it was read last, which knows of the attempt that is followed."""
    return run.is_over and (current is None or (run.newest is not None and run.newest.number >= current.number))


def _end_of(folder: Path, attempt: Attempt | None) -> str:
    """How an attempt ended, for the line before what follows it."""
    if attempt is None or not end_file(folder, attempt.number).exists():
        return ""
    end = read_end(folder, attempt)
    reason = f" ({end.reason})" if end.reason else ""
    step = "" if end.last_step is None else f" at step {end.last_step}"
    return f"attempt {attempt.number} {end.kind.replace('_', ' ')}{reason}{step}; "


def _note(text: str) -> None:
    """A line about the run, apart from what its processes say."""
    print(f"==> {text}", file=sys.stderr, flush=True)  # noqa: T201 - this is a command
