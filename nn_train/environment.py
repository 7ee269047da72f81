"""What a run was started with: versions, machine, commit, command."""

import datetime
import importlib.metadata
import platform
import shlex
import subprocess
import sys
import uuid
from typing import Any

from nn_train.config import project_root

PACKAGES = ("torch", "accelerate", "datasets", "pandas", "numpy", "scikit-learn", "wandb", "pydantic", "pyarrow")
LARGEST_DIFF = 1_000_000


def _git(*arguments: str) -> str:
    try:
        result = subprocess.run(["git", *arguments], cwd=project_root(), capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    # a diff holds bytes of any encoding
    return result.stdout.decode("utf-8", errors="replace") if result.returncode == 0 else ""


def describe_environment(*, num_processes: int, device: str) -> dict[str, Any]:
    """Plain values for environment.json; `run_id` names the run for trackers, through every resume."""
    return {
        "run_id": uuid.uuid4().hex[:12],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "processes": num_processes,
        "device": device,
        "commit": _git("rev-parse", "HEAD").strip(),
        "dirty": bool(_git("status", "--porcelain", "--untracked-files=no").strip()),
    }


def git_diff() -> str:
    """Uncommitted changes of the project's own files, cut at a megabyte."""
    return _git("diff", "HEAD")[:LARGEST_DIFF]
