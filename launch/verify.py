"""Check the sums of a run's checkpoints: which of them a restart could go on from."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from launch.local import say
from launch.request import Parser
from launch.runs import describe_bytes, find_run
from nn_train.errors import RunFolderError
from nn_train.manifest import find_damage, list_checkpoints


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """One checkpoint, checked."""

    name: str
    files: int
    bytes: int
    damage: tuple[str, ...]

    def __str__(self) -> str:
        if self.damage:
            return f"{self.name}  DAMAGED: {'; '.join(self.damage)}"
        return f"{self.name}  ok  {self.files} files  {describe_bytes(self.bytes)}"


def check(path: Path) -> Verdict | None:
    """Check one checkpoint; None if a run that trains has pruned it meanwhile."""
    damage = tuple(find_damage(path))
    sizes = [file.stat().st_size for file in path.glob("*") if file.is_file() and file.name != "manifest.json"]
    if not path.exists():
        return None
    return Verdict(name=path.name, files=len(sizes), bytes=sum(sizes), damage=damage)


def main(words: Sequence[str]) -> int:
    """`python -m launch verify`: 0 if all are whole, 1 if one is damaged.

    Raises:
        RunFolderError: there is none at all.
    """
    parser = Parser(prog="python -m launch verify", description="Check every checkpoint of a run against its manifest.")
    parser.add_argument("run", metavar="RUN", help="run folder, or its name under ./runs")
    parser.add_argument("--json", action="store_true", help="the same for programs")
    parsed = parser.parse_args(words)
    run = find_run(parsed.run)
    verdicts = []
    for path in reversed(list_checkpoints(run / "checkpoints")):
        verdict = check(path)
        if verdict is not None:
            verdicts.append(verdict)
            if not parsed.json:
                say(str(verdict))
    if parsed.json:
        say(json.dumps([dataclasses.asdict(v) | {"ok": not v.damage} for v in verdicts], indent=1))
    if not verdicts:
        raise RunFolderError("the run has no checkpoint yet", where=str(run), fix="it starts from the beginning")
    return int(any(verdict.damage for verdict in verdicts))
