"""What a checkpoint holds, proved by sizes and checksums; imports no torch, so that login nodes can check one."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

MANIFEST = "manifest.json"
FILES = ("model.safetensors", "best.safetensors", "optimizer.safetensors", "state.json")
CHUNK_BYTES = 1 << 20


def make_manifest(files: dict[str, bytes]) -> dict[str, dict[str, Any]]:
    """File name -> its size and SHA-256 sum."""
    return {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


def list_checkpoints(folder: Path) -> list[Path]:
    """Published checkpoints, newest first, valid or not.

    Raises:
        OSError: the folder is there and cannot be listed, which does not mean that there are none.
    """
    try:
        names = [name for name in os.listdir(folder) if re.fullmatch(r"step-\d+", name)]
    except FileNotFoundError:
        return []
    return [folder / name for name in sorted(names, key=lambda name: (len(name), name), reverse=True)]


def newest_step(folder: Path) -> int:
    """The step of the newest published checkpoint; 0 where there is none."""
    published = list_checkpoints(folder)
    return int(published[0].name.removeprefix("step-")) if published else 0


def read_manifest(path: Path) -> dict[str, Any]:
    """What a checkpoint says of its files.

    Raises:
        ValueError: it is missing or damaged.
        OSError: it cannot be read now, which does not mean that it is damaged.
    """
    try:
        return dict(json.loads((path / MANIFEST).read_text(encoding="utf-8")))
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, RecursionError):
        raise ValueError(f"{MANIFEST} is missing or damaged") from None


def read_checkpoint(path: Path) -> dict[str, bytes]:
    """Read and verify a checkpoint's files.

    Raises:
        ValueError: naming the file that is missing or damaged.
        OSError: a file cannot be read now.
    """
    manifest = read_manifest(path)
    files = {}
    for name in FILES:
        try:
            content = (path / name).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise ValueError(f"{name} is missing") from None
        if make_manifest({name: content})[name] != manifest.get(name):
            raise ValueError(f"{name} is damaged ({len(content)} bytes, checksum differs from the manifest's)")
        files[name] = content
    return files


def find_damage(path: Path, *, sums: bool = True) -> list[str]:
    """What is wrong with a checkpoint, file by file; empty if it is whole. Reads in pieces, whatever the sizes.

    Without `sums` nothing is read but the manifest: sizes alone are compared.
    """
    try:
        manifest = read_manifest(path)
    except ValueError as error:
        return [str(error)]
    except OSError as error:
        return [f"{MANIFEST} cannot be read: {error.strerror}"]
    # a name with a folder in it would lead out of the checkpoint
    names = [*FILES, *(name for name in manifest if name not in FILES and Path(name).name == name)]
    found = (_damage_of(path / name, manifest.get(name), sums=sums) for name in names)
    return [f"{name} ({damage})" for name, damage in zip(names, found, strict=True) if damage]


def _damage_of(file: Path, expected: Any, *, sums: bool) -> str:
    if not isinstance(expected, dict):
        return "the manifest does not know it"
    try:
        with file.open("rb") as opened:
            size = file.stat().st_size
            if size != expected.get("bytes"):
                return f"{size} bytes, and {expected.get('bytes')} were written"
            if not sums:
                return ""
            digest = hashlib.sha256()
            while chunk := opened.read(CHUNK_BYTES):
                digest.update(chunk)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "" if digest.hexdigest() == expected.get("sha256") else "checksum differs"
