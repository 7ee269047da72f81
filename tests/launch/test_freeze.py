"""The frozen copy of the code, taken from real git repositories and from plain folders."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import freeze as freeze_module
from launch.freeze import digest_tree, freeze
from nn_train.errors import UserError

GIT_USER = ("-c", "user.name=Test", "-c", "user.email=test@example.org", "-c", "commit.gpgsign=false")
FILES = {
    "nn_train/__init__.py": "",
    "nn_train/train.py": "print('first')\n",
    "nn_train/page.html": "<p>page</p>\n",
    "nn_train/models/mlp.py": "width = 1\n",
    "configs/telco.yaml": "run: {}\n",
    "slurm/job.sh": "#!/bin/sh\necho job\n",
    "pyproject.toml": "[project]\n",
    "data/table.csv": "a,b\n",
    "README.md": "read me\n",
    ".gitignore": "__pycache__/\nsecret*.py\n/runs/\n",
}
CODE = sorted(name for name in FILES if name.startswith(("nn_train", "configs", "slurm", "pyproject")))


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def git(root: Path, *arguments: str, check: bool = True) -> bytes:
    return subprocess.run(["git", *GIT_USER, *arguments], cwd=root, capture_output=True, check=check).stdout


def list_copy(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink() or path.is_file())


@pytest.fixture(autouse=True)
def own_git(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No settings of whoever runs the tests, not even the name that git wants for a commit."""
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    root = tmp_path / "plain"
    write(root, FILES)
    (root / "slurm/job.sh").chmod(0o755)
    return root


@pytest.fixture
def repository(plain: Path) -> Path:
    git(plain, "init", "-q", "-b", "main")
    git(plain, "add", ".")
    git(plain, "commit", "-q", "-m", "first")
    return plain


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "one" / "code"


def head(root: Path) -> str:
    return git(root, "rev-parse", "HEAD").decode().strip()


def test_clean(repository: Path, target: Path) -> None:
    frozen = freeze(repository, target)
    assert list_copy(target) == CODE
    assert frozen.commit == head(repository)
    assert frozen.diff == b""
    assert frozen.files == len(CODE)
    assert frozen.digest == digest_tree(target)
    assert os.access(target / "slurm/job.sh", os.X_OK)
    assert os.listdir(target.parent) == ["code"]


def test_uncommitted_changes(repository: Path, target: Path) -> None:
    write(repository, {"nn_train/train.py": "print('staged')\n", "nn_train/new.py": "new = 1\n"})
    git(repository, "add", ".")
    write(repository, {"nn_train/train.py": "print('not staged')\n", "README.md": "changed\n"})
    (repository / "nn_train/page.html").unlink()
    git(repository, "rm", "-q", "configs/telco.yaml")
    frozen = freeze(repository, target)
    assert list_copy(target) == sorted({*CODE, "nn_train/new.py"} - {"nn_train/page.html", "configs/telco.yaml"})
    assert (target / "nn_train/train.py").read_text() == "print('not staged')\n"
    assert frozen.commit == head(repository)
    assert frozen.diff == git(repository, "diff", "HEAD")
    assert b"+print('not staged')" in frozen.diff


def test_untracked(repository: Path, target: Path) -> None:
    names = ["nn_train/mine.py", "configs/mine.yaml", "nn_train/sub/deep.py"]
    left_out = ["nn_train/secret.py", "nn_train/__pycache__/x.py", "nn_train/big.csv", "elsewhere.py"]
    write(repository, dict.fromkeys([*names, *left_out], "x = 1\n"))
    assert freeze(repository, target).diff == b""
    assert list_copy(target) == sorted([*CODE, *names])


def test_leaves_the_repository_alone(repository: Path, target: Path) -> None:
    write(repository, {"nn_train/train.py": "print('stashed')\n"})
    git(repository, "stash")
    write(repository, {"nn_train/train.py": "print('staged')\n"})
    git(repository, "add", ".")
    write(repository, {"nn_train/train.py": "print('dirty')\n", "nn_train/mine.py": "", "nn_train/models/mlp.py": "\n"})
    os.utime(repository / "configs/telco.yaml")  # git would note the new time in the index

    def observe() -> tuple[object, ...]:
        index = (repository / ".git/index").read_bytes()
        times = {path: path.stat().st_mtime_ns for path in repository.rglob("*") if ".git" not in path.parts}
        refs = git(repository, "for-each-ref"), (repository / ".git/HEAD").read_text()
        return index, times, refs, (repository / ".git/logs/refs/stash").read_text()

    before = observe()
    freeze(repository, target)
    assert observe() == before
    assert (target / "nn_train/train.py").read_text() == "print('dirty')\n"


def test_later_changes_do_not_reach_the_copy(repository: Path, target: Path) -> None:
    write(repository, {"nn_train/train.py": "print('submitted')\n"})
    frozen = freeze(repository, target)
    write(repository, {"nn_train/train.py": "print('later')\n"})
    git(repository, "commit", "-qam", "later")
    shutil.rmtree(repository / "configs")
    assert (target / "nn_train/train.py").read_text() == "print('submitted')\n"
    assert digest_tree(target) == frozen.digest


def make_conflict(root: Path) -> None:
    git(root, "checkout", "-q", "-b", "other")
    write(root, {"configs/telco.yaml": "other\n"})
    git(root, "commit", "-qam", "other")
    git(root, "checkout", "-q", "main")
    write(root, {"configs/telco.yaml": "main\n"})
    git(root, "commit", "-qam", "main")
    git(root, "merge", "other", check=False)


def add_by_intent(root: Path) -> None:
    write(root, {"nn_train/mine.py": ""})
    git(root, "add", "-N", "nn_train/mine.py")
    (root / "nn_train/page.html").unlink()


@pytest.mark.parametrize(("prepare", "names"), [(make_conflict, CODE), (add_by_intent, [*CODE, "nn_train/mine.py"])])
def test_git_makes_no_snapshot(
    repository: Path, target: Path, prepare: Callable[[Path], None], names: list[str]
) -> None:
    prepare(repository)
    assert subprocess.run(["git", "stash", "create"], cwd=repository, capture_output=True).returncode != 0
    frozen = freeze(repository, target)
    assert list_copy(target) == sorted(name for name in names if (repository / name).exists())
    assert frozen.commit == head(repository)
    for name in list_copy(target):
        assert (target / name).read_bytes() == (repository / name).read_bytes()


def test_names(repository: Path, target: Path) -> None:
    names = ["nn_train/a b.py", 'nn_train/it\'s "q".py', "nn_train/:(top)*[x].py", "nn_train/ä\n.py", "nn_train/-n.py"]
    write(repository, dict.fromkeys(names[:3], "tracked\n"))
    git(repository, "add", ".")
    write(repository, dict.fromkeys(names, "now\n"))
    spaced = target.with_name('the run\'s "code"')
    freeze(repository, spaced)
    assert list_copy(spaced) == sorted([*CODE, *names])
    assert all((spaced / name).read_text() == "now\n" for name in names)


def test_below_the_top_of_a_repository(
    plain: Path, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("GIT_CEILING_DIRECTORIES")
    write(tmp_path, {"nn_train/other.py": "", ".gitignore": "/runs/\n"})
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    write(plain, {"nn_train/train.py": "print('dirty')\n", "nn_train/mine.py": ""})
    frozen = freeze(plain, target)
    assert frozen.commit == head(tmp_path)
    assert list_copy(target) == sorted([*CODE, "nn_train/mine.py"])
    assert (target / "nn_train/train.py").read_text() == "print('dirty')\n"


def test_linked_work_tree(repository: Path, tmp_path: Path, target: Path) -> None:
    linked = tmp_path / "linked"
    git(repository, "worktree", "add", "-q", str(linked))
    write(linked, {"nn_train/train.py": "print('linked')\n"})
    freeze(linked, target)
    assert (target / "nn_train/train.py").read_text() == "print('linked')\n"


def test_git_variables_of_a_hook(
    repository: Path, tmp_path: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    monkeypatch.setenv("GIT_INDEX_FILE", str(tmp_path / "elsewhere/index"))
    frozen = freeze(repository, target)
    monkeypatch.undo()
    assert frozen.commit == head(repository)


def test_not_a_repository(plain: Path, target: Path) -> None:
    left_out = ["nn_train/__pycache__/train.cpython-311.pyc", "nn_train/__pycache__/x.py", "configs/table.csv"]
    write(plain, dict.fromkeys(left_out, ""))
    frozen = freeze(plain, target)
    assert list_copy(target) == CODE
    assert (frozen.commit, frozen.diff, frozen.files) == ("", b"", len(CODE))
    assert os.access(target / "slurm/job.sh", os.X_OK)


def test_same_digest_with_git_and_without(plain: Path, target: Path) -> None:
    without = freeze(plain, target)
    git(plain, "init", "-q")
    assert freeze(plain, target).commit == ""  # nothing committed yet
    git(plain, "add", ".")
    git(plain, "commit", "-q", "-m", "first")
    with_git = freeze(plain, target)
    assert with_git.commit
    assert with_git.digest == without.digest


def test_ignored_by_a_repository_around_it(repository: Path, target: Path) -> None:
    site_packages = repository / "runs/venv/site-packages"
    write(site_packages, {"nn_train/train.py": "print('installed')\n"})
    frozen = freeze(site_packages, target)
    assert (frozen.commit, list_copy(target)) == ("", ["nn_train/train.py"])


def test_without_git(repository: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert freeze(repository, target).commit == ""
    assert list_copy(target) == CODE


def link(root: Path) -> None:
    outside = root.parent / "outside.py"
    outside.write_text("")
    (root / "nn_train/inner.py").symlink_to("models/mlp.py")
    (root / "nn_train/absolute.py").symlink_to(root / "nn_train/train.py")
    (root / "nn_train/outer.py").symlink_to("../../outside.py")


def test_links_tracked(repository: Path, target: Path) -> None:
    link(repository)
    git(repository, "add", ".")
    freeze(repository, target)
    assert list_copy(target) == sorted([*CODE, "nn_train/inner.py"])
    assert os.readlink(target / "nn_train/inner.py") == "models/mlp.py"


def test_links_untracked(repository: Path, target: Path) -> None:
    link(repository)
    freeze(repository, target)
    assert list_copy(target) == sorted([*CODE, "nn_train/inner.py"])
    assert os.readlink(target / "nn_train/inner.py") == "models/mlp.py"


def test_submodule(repository: Path, tmp_path: Path, target: Path) -> None:
    other = tmp_path / "other"
    write(other, {"x.py": ""})
    git(other, "init", "-q")
    git(other, "add", ".")
    git(other, "commit", "-q", "-m", "first")
    git(repository, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "nn_train/other")
    git(repository, "commit", "-q", "-m", "submodule")
    freeze(repository, target)
    assert list_copy(target) == CODE


def test_replaces_a_target(repository: Path, target: Path) -> None:
    write(target, {"nn_train/old.py": ""})
    freeze(repository, target)
    assert list_copy(target) == CODE
    assert os.listdir(target.parent) == ["code"]


@pytest.mark.parametrize("failing", ["digest_tree", "_unpack_snapshot"])
def test_full_disk(repository: Path, target: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    write(target, {"nn_train/old.py": "old\n"})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "x.py")

    monkeypatch.setattr(freeze_module, failing, fail)
    with pytest.raises(UserError, match="No space left") as caught:
        freeze(repository, target)
    assert caught.value.where == "x.py"
    assert "run.dir=" in caught.value.fix
    assert list_copy(target) == ["nn_train/old.py"]
    assert os.listdir(target.parent) == ["code"]


def test_failed_rename_brings_the_old_target_back(
    repository: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(target, {"nn_train/old.py": "old\n"})
    rename = Path.rename

    def fail_once(self: Path, to: Path) -> Path:
        if to == target and not self.name.endswith(".old"):
            raise PermissionError(errno.EACCES, "Permission denied", str(to))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(UserError, match="Permission denied"):
        freeze(repository, target)
    assert list_copy(target) == ["nn_train/old.py"]
    assert os.listdir(target.parent) == ["code"]


def test_target_below_a_file(repository: Path, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(UserError, match="cannot be copied: Not a directory") as caught:
        freeze(repository, file / "run" / "code")
    assert str(file) in caught.value.where
    assert "run.dir=" in caught.value.fix
    assert file.read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == ["file", "plain"]


@pytest.mark.parametrize("place", [".", "..", "nn_train", "nn_train/models/code", "link/models"])
def test_target_over_the_code(repository: Path, place: str) -> None:
    (repository / "link").symlink_to("nn_train")
    with pytest.raises(UserError, match="would replace the code itself"):
        freeze(repository, repository / place)
    assert (repository / "nn_train/models/mlp.py").exists()


def test_target_inside_the_project(repository: Path) -> None:
    freeze(repository, repository / "runs/one/code")
    assert list_copy(repository / "runs/one/code") == CODE


def test_no_code(tmp_path: Path, target: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no code") as caught:
        freeze(tmp_path / "empty", target)
    assert "nn_train" in caught.value.fix
    assert os.listdir(target.parent) == []


def test_parts(repository: Path, target: Path) -> None:
    freeze(repository, target, parts=("configs", "none"))
    assert list_copy(target) == ["configs/telco.yaml"]


def test_digest_tree(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write(folder, {"x.py": "1", "sub/y.py": "2"})
    digest = digest_tree(folder)
    write(tmp_path / "other/name", {"sub/y.py": "2", "x.py": "1"})
    assert digest_tree(tmp_path / "other/name") == digest
    write(folder, {"__pycache__/x.cpython-311.pyc": "", "sub/__pycache__/deep/z": "", "z.pyc": ""})
    assert digest_tree(folder) == digest
    seen = {digest}
    for files in ({"x.py": "2"}, {"x.py": "", "1sub/y.py": "2"}, {"new.py": ""}):
        write(folder, files)
        seen.add(digest_tree(folder))
    (folder / "link").symlink_to("sub")
    seen.add(digest_tree(folder))
    assert len(seen) == 5


def test_parts_are_no_patterns(repository: Path, target: Path) -> None:
    write(repository, {"part*/a.py": "", "party/b.py": "", "part*/new.py": ""})
    git(repository, "add", "part*/a.py", "party")
    git(repository, "commit", "-q", "-m", "patterns")
    freeze(repository, target, parts=("part*",))
    assert list_copy(target) == ["part*/a.py", "part*/new.py"]
