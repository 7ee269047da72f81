"""What the launcher's tests share: programs in place of Slurm's, golden files, and looks at processes.

Golden files are compared whole. After a change that is meant, write them anew and read the difference:

    UPDATE_GOLDEN=1 pytest tests/launch && git diff tests/launch/golden
"""

import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from tests.conftest import ROOT

GOLDEN = Path(__file__).parent / "golden"
# What the machine or shell that runs the tests may hold, and must not change them.
FOREIGN = re.compile(
    r"(SLURM|SBATCH|SRUN|LAUNCH|PET|PMI|PMIX|OMPI|MV2|MPI|ACCELERATE|TORCHELASTIC)_.*|(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|"
    r"MASTER_(ADDR|PORT)|CUDA_VISIBLE_DEVICES|PYTHONSAFEPATH"
)
HEAVY = {"torch", "pandas", "datasets", "accelerate", "sklearn", "scipy", "numpy", "matplotlib", "wandb"}


def environment(**more: str) -> dict[str, str]:
    """This process's environment without what another launcher left in it, and with `more`."""
    return {name: value for name, value in os.environ.items() if not FOREIGN.fullmatch(name)} | more


class Programs:
    """A folder of programs for PATH, in place of real ones: each records how it was called."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder / ".calls"
        folder.mkdir(parents=True)

    def add(self, name: str, body: str = "exit 0") -> None:
        """A program; `body` is bash, and `$calls` the number of its calls so far, this one counted."""
        count, bash = self.folder / f".{name}", shutil.which("bash")
        here = shlex.quote(str(self.folder))
        file = self.folder / name
        file.write_text(
            f"#!{bash}\nhere={here}\n"
            f"printf '%s\\0' {shlex.quote(name)} \"$@\" $'\\001' >>\"$here/{self.log.name}\"\n"
            f'printf . >>"$here/{count.name}"; dots=$(<"$here/{count.name}"); calls=${{#dots}}\n{body}\n'
        )
        file.chmod(0o755)

    def link(self, *names: str) -> None:
        """Real programs of this machine."""
        for name in names:
            found = shutil.which(name)
            assert found, f"no {name} on this machine"
            (self.folder / name).symlink_to(found)

    def calls(self, name: str) -> list[list[str]]:
        """The words of each call of one program, in order."""
        records = self.log.read_bytes().split(b"\x01\0") if self.log.exists() else []
        words = [[os.fsdecode(word) for word in record.split(b"\0")[:-1]] for record in records if record]
        return [rest for first, *rest in words if first == name]


def check_golden(name: str, text: str, places: Mapping[str, Path]) -> None:
    """Compare a text with its golden file, whole; `places` names folders that differ from machine to machine."""
    text = text.replace(sys.executable, "<PYTHON>")
    text = text.replace(f"export PATH={Path(sys.executable).parent}:", "export PATH=<BIN>:")
    for mark, place in places.items():
        text = text.replace(str(place), f"<{mark}>")
    text = text.replace(str(ROOT), "<ROOT>")
    file = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN") == "1":
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8"), f"UPDATE_GOLDEN=1 writes {file} anew"


def imported(stderr: str) -> set[str]:
    """The packages that a Python with `-X importtime` imported."""
    lines = [line for line in stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


def said(stderr: str) -> str:
    """What a Python with `-X importtime` wrote to stderr besides its imports."""
    return "".join(line for line in stderr.splitlines(keepends=True) if not line.startswith("import time:"))


def is_running(pid: int) -> bool:
    """Does a process live? One that has ended and is not yet waited for does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def wait_for(condition: Callable[[], object], *, what: str, seconds: float = 60) -> float:
    """Wait until something is so; how long that took."""
    started_s = time.monotonic()
    while not condition():
        assert time.monotonic() - started_s < seconds, f"not within {seconds} s: {what}"
        time.sleep(0.02)
    return time.monotonic() - started_s


def snapshot(folder: Path) -> dict[str, tuple[int, int] | None]:
    """Every path below a folder, with size and time of the files."""
    return {
        str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        for path in folder.rglob("*")
    }


def run_launch(
    *words: str, cwd: Path, env: Mapping[str, str], flags: tuple[str, ...] = ("-X", "importtime")
) -> subprocess.CompletedProcess[str]:
    """`python -m launch WORDS`, as a process of its own that shows what it imports."""
    command = [sys.executable, *flags, "-m", "launch", *words]
    return subprocess.run(command, cwd=cwd, env=dict(env), capture_output=True, text=True, timeout=120)
