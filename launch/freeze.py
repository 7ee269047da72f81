"""Copy the code that is about to be submitted, so that a job started again runs what was submitted."""

import contextlib
import hashlib
import io
import os
import secrets
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from nn_train.errors import UserError

PARTS = ("nn_train", "launch", "configs", "slurm", "pyproject.toml")
SUFFIXES = (".py", ".html", ".yaml", ".sh", ".toml")  # of code that git does not track; others may be data


@dataclass(frozen=True)
class Frozen:
    """What was copied.

    Attributes:
        commit: the commit that was checked out; empty where the code is not in git.
        diff: `git diff HEAD`, what the tracked files had beyond that commit.
        files: number of files of the copy.
        digest: of the copy's files, as `digest_tree` gives it.
    """

    commit: str
    diff: bytes
    files: int
    digest: str


def freeze(root: Path, target: Path, *, parts: tuple[str, ...] = PARTS) -> Frozen:
    """Copy the parts of the project that a run needs, as they are now, to the folder `target`.

    In a git work tree that is what git tracks, with every uncommitted change, and code files that it does not ignore;
    elsewhere the code files. The work tree and all that git holds about it stay as they are. The target is whole or
    absent, and one that is there already is replaced by a whole one.

    Args:
        root: the project's folder, that holds the parts.
        target: the copy's folder; made with the folders above it.
        parts: folders and files to copy, relative to the root; those that are missing are passed over.

    Raises:
        UserError: if there is no code, or the target cannot be written.
    """
    root, target = root.resolve(), target.absolute()
    _check_target(root, target, parts)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(4)}"
    try:
        temporary.mkdir(parents=True)
        commit, diff = _fill(root, temporary, parts)
        files = sum(1 for _ in _list_files(temporary))
        if not files:
            raise UserError("there is no code to copy", where=str(root), fix=f"it should hold {', '.join(parts)}")
        frozen = Frozen(commit, diff, files, digest_tree(temporary))
        _replace(temporary, target)
    except OSError as error:
        raise UserError(
            f"the code of the run cannot be copied: {error.strerror or error}",
            where=str(error.filename or target),
            fix="free space, or choose a run folder that can be written: run.dir=DIR",
        ) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return frozen


def digest_tree(folder: Path) -> str:
    """Digest the paths and contents of a folder's files; what Python compiled is left out.

    Two folders with the same digest hold the same code, on whatever machine and under whatever name.
    """
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(_list_files(folder), key=os.fsencode):
        link = (folder / path).is_symlink()
        content = os.fsencode(os.readlink(folder / path)) if link else (folder / path).read_bytes()
        name = os.fsencode(path)
        digest.update(b"%s %d %d\n" % (b"link" if link else b"file", len(name), len(content)) + name + content)
    return digest.hexdigest()


def work_tree_of(file: Path) -> Path | None:
    """The git work tree that a file lies in; None if it lies in none, or is ignored there."""
    folder = file.resolve().parent
    try:
        asked = [["rev-parse", "--show-toplevel"], ["check-ignore", "--quiet", str(file.resolve())]]
        top, ignored = (
            subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True) for words in asked
        )
    except OSError:
        return None
    return Path(top.stdout.strip()) if top.returncode == 0 and ignored.returncode != 0 else None


def parts_of(tree: Path) -> tuple[str, ...]:
    """The top level of a work tree, as far as git tracks it or would: what `freeze` copies of another project."""
    words = ["git", "-C", str(tree), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(words, capture_output=True, text=True, check=True).stdout.split("\0")
    return tuple(sorted({name.partition("/")[0] for name in names if name}))


def _check_target(root: Path, target: Path, parts: tuple[str, ...]) -> None:
    """Refuse a target whose replacement would delete the code that is to be copied."""
    place = target.resolve()
    if root.is_relative_to(place) or any(place.is_relative_to(root / part) for part in parts):
        raise UserError(
            "the copy of the code would replace the code itself",
            where=str(target),
            fix="choose a run folder apart from the code: run.dir=DIR",
        )


def _fill(root: Path, folder: Path, parts: tuple[str, ...]) -> tuple[str, bytes]:
    """Copy the parts; returns the commit and the diff."""
    with tempfile.TemporaryDirectory() as scratch:
        git = _Git(root, Path(scratch) / "index")
        commit = (git.run("rev-parse", "--verify", "--quiet", "HEAD^{commit}") or b"").decode().strip()
        tracked = git.list_files("--cached", parts=parts) if commit else []
        if not tracked:  # no git, or a repository that holds the code without tracking it, as one with a .venv does
            _copy(root, folder, _walk(root, parts))
            return "", b""
        # without a snapshot (a merge with conflicts, a file that is added by intent only, a read-only repository) the
        # same files are taken one by one
        if not _unpack_snapshot(git, commit, folder, parts):
            _copy(root, folder, tracked)
        untracked = git.list_files("--others", "--exclude-standard", parts=parts)
        _copy(root, folder, (path for path in untracked if path.endswith(SUFFIXES)))
        return commit, git.run("diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD") or b""


class _Git:
    """Asks the git of a work tree with a copy of its index: git refreshes, and so writes, the one it works with."""

    def __init__(self, root: Path, index: Path):
        # started from a git hook, these would point to another repository
        own = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
        self.environment = {name: value for name, value in os.environ.items() if name not in own}
        self.root = root
        original = self.run("rev-parse", "--git-path", "index")
        with contextlib.suppress(OSError):
            if original:
                shutil.copyfile(root / os.fsdecode(original.removesuffix(b"\n")), index)
        self.environment["GIT_INDEX_FILE"] = str(index)

    def run(self, *arguments: str) -> bytes | None:
        """What git prints, or None where it fails or is missing; paths are relative to the root, and literal."""
        command = ["git", "--literal-pathspecs", *arguments]
        try:
            result = subprocess.run(
                command, cwd=self.root, env=self.environment, stdin=subprocess.DEVNULL, capture_output=True
            )
        except FileNotFoundError:
            return None
        return result.stdout if result.returncode == 0 else None

    def list_files(self, *which: str, parts: tuple[str, ...]) -> list[str]:
        output = self.run("ls-files", "-z", *which, "--", *parts) or b""
        return sorted({os.fsdecode(name) for name in output.split(b"\0") if name})


def _unpack_snapshot(git: _Git, commit: str, folder: Path, parts: tuple[str, ...]) -> bool:
    """Unpack the tracked files as they are in the work tree; False where git can make no commit of them."""
    stash = git.run("stash", "create")
    if stash is None:
        return False
    snapshot = stash.decode().strip() or commit  # nothing to stash
    names = (git.run("ls-tree", "-z", "--name-only", snapshot, "--", *parts) or b"").split(b"\0")
    present = [os.fsdecode(name) for name in names if name]  # git archive refuses a part that is missing
    archive = git.run("archive", "--format=tar", snapshot, "--", *present) if present else None
    if archive is None:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        unpack_inside(tar, folder)
    return True


def unpack_inside(tar: tarfile.TarFile, folder: Path) -> None:
    """Unpack what stays in `folder`, without links out of it: their ends may change, and are not on every node.

    By hand, since tarfile's own filter came with Python 3.11.4, and Debian 12 has 3.11.2.
    """
    root = Path(os.path.realpath(folder))
    for member in tar:
        place = root / member.name
        end = place.parent / member.linkname if member.issym() else place
        if not all(Path(os.path.realpath(path)).is_relative_to(root) for path in (place.parent, end)):
            continue
        if member.isdir():
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if member.issym():
            place.symlink_to(member.linkname)
        elif (content := tar.extractfile(member) if member.isreg() else None) is not None:
            place.write_bytes(content.read())
            place.chmod(0o755 if member.mode & 0o100 else 0o644)


def _walk(root: Path, parts: tuple[str, ...]) -> Iterator[str]:
    """Code files of the parts, outside git."""
    for part in parts:
        found = [part] if (root / part).is_file() else [f"{part}/{path}" for path in _list_files(root / part)]
        yield from (path for path in found if path.endswith(SUFFIXES))


def _copy(root: Path, folder: Path, paths: Iterable[str]) -> None:
    for path in paths:
        source, copy = root / path, folder / path
        if source.is_symlink():
            link = os.readlink(source)
            if os.path.isabs(link) or not (source.parent / link).resolve().is_relative_to(root):
                continue  # as in `_keep_inside`
        elif not source.is_file():
            continue  # deleted in the work tree, or a submodule
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy, follow_symlinks=False)


def _list_files(folder: Path) -> Iterator[str]:
    """Paths of the files and links below a folder, relative to it, without what Python compiled."""
    for place, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(place, name))]
        folders[:] = [name for name in folders if name != "__pycache__"]
        for name in [*files, *links]:
            if not name.endswith(".pyc"):
                yield Path(place, name).relative_to(folder).as_posix()


def _replace(temporary: Path, target: Path) -> None:
    """Rename the whole copy to its place; a folder that is there is set aside first, and comes back on failure."""
    if not os.path.lexists(target):
        temporary.rename(target)
        return
    aside = target.parent / f"{temporary.name}.old"
    target.rename(aside)
    try:
        temporary.rename(target)
    except OSError:
        aside.rename(target)
        raise
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside, ignore_errors=True)
    else:
        aside.unlink()
