"""`verify` names what is damaged, and reads files that are there in pieces."""

import json
import shutil
from pathlib import Path

import pytest

from launch.verify import main
from nn_train.errors import UserError
from nn_train.manifest import FILES, find_damage, read_checkpoint
from tests.launch.conftest import launch_in


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(finished_run, tmp_path / "runs" / "small"))


def newest(run: Path) -> Path:
    return max((run / "checkpoints").glob("step-*"))


def test_whole(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(list((run / "checkpoints").glob("step-*"))) > 1
    assert lines == sorted(lines)
    assert all("  ok  4 files  " in line and line.endswith(" kB") for line in lines)


def test_by_its_command_line_and_name(finished_run: Path) -> None:
    done = launch_in(finished_run.parent.parent, "verify", "small")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_byte(run: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = newest(run) / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert main([str(run)]) == 1
    assert f"{newest(run).name}  DAMAGED: {name} (checksum differs)" in capsys.readouterr().out
    with pytest.raises(ValueError, match=name):  # the trainer says the same
        read_checkpoint(newest(run))


def test_short_file_missing_file_and_manifest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (newest(run) / "best.safetensors").write_bytes(b"short")
    (newest(run) / "state.json").unlink()
    assert main([str(run)]) == 1
    said = capsys.readouterr().out
    assert "best.safetensors (5 bytes, and " in said and "state.json (missing)" in said
    (newest(run) / "manifest.json").write_text("[1, 2]")
    assert main([str(run)]) == 1
    assert "DAMAGED: manifest.json is missing or damaged" in capsys.readouterr().out


def test_manifest_that_forgets_or_lies(run: Path) -> None:
    file = newest(run) / "manifest.json"
    manifest = json.loads(file.read_text())
    manifest |= {"more.bin": {"bytes": 1, "sha256": "0"}, "state.json": "none"}
    file.write_text(json.dumps(manifest))
    assert find_damage(newest(run)) == ["state.json (the manifest does not know it)", "more.bin (missing)"]


def test_json(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (newest(run) / "state.json").unlink()
    assert main([str(run), "--json"]) == 1
    *others, last = json.loads(capsys.readouterr().out)
    assert all(one["ok"] for one in others)
    assert not last["ok"] and last["damage"] == ["state.json (missing)"]


def test_none_at_all(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        main([str(run)])
