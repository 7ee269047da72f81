"""What comes from somebody else cannot run code, and what is secret stays out of every file and line."""

import ast
import base64
import gzip
import io
import json
import os
import pickle
import secrets
import shlex
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from launch.__main__ import main as launch_main
from launch.freeze import unpack_inside
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError
from nn_train.manifest import FILES, make_manifest
from nn_train.report import write_report
from nn_train.train import main as train_main
from tests.conftest import PAGE, ROOT, SCRIPT, SMALL, make_table
from tests.launch.test_submit import Login

# ---- the source

CODE = sorted([*(ROOT / "nn_train").rglob("*.py"), *(ROOT / "launch").rglob("*.py")])
PICKLERS = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
NEVER = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "pty.spawn", "subprocess.getoutput",
    "subprocess.getstatusoutput", "pandas.eval", "shutil.unpack_archive", "jinja2.Template", "markupsafe.Markup",
    "torch.hub.load", "torch.jit.load", "torch.package.PackageImporter", "datasets.load_dataset",
}  # fmt: skip
NEVER_METHODS = {"read_pickle", "to_pickle", "extract", "from_string"}
# A call of the first with an option, which must have this value, and be there.
MUST: dict[str, tuple[str, object]] = {
    "torch.load": ("weights_only", True),
    "numpy.load": ("allow_pickle", False),
    "jinja2.Environment": ("autoescape", True),
}
MUST_NOT = {"shell", "trust_remote_code", "allow_pickle"}
SAFE_LOADERS = {"yaml.SafeLoader", "yaml.BaseLoader", "yaml.CSafeLoader", "yaml.CBaseLoader"}
YAML = {"yaml.safe_load", "yaml.dump", "yaml.YAMLError", "yaml.SafeLoader.yaml_implicit_resolvers.items"}
DYNAMIC = {"importlib.import_module", "runpy.run_path", "runpy.run_module", "ctypes.CDLL", "ctypes.PyDLL"}
# Calls that choose code by a value, and why that value is nobody else's.
ALLOWED = {
    ("launch/__main__.py", "importlib.import_module(module)"): "a value of COMMANDS in the same file",
    ("launch/preload.py", "importlib.import_module(module)"): "the launcher's own PRELOAD, by its own plan and agent",
    ("launch/preload.py", "runpy.run_path(script, run_name='__main__')"): "the script that the user named",
    ("launch/worker.py", "ctypes.CDLL(None, use_errno=True)"): "what the process has loaded already",
    ("nn_train/baselines.py", "importlib.import_module('lightgbm')"): "a library by its name",
    ("nn_train/baselines.py", "importlib.import_module('catboost')"): "a library by its name",
    ("nn_train/baselines.py", "importlib.import_module('xgboost')"): "a library by its name",
    ("nn_train/models/custom.py", "importlib.import_module(module)"): "what the user named, or allowed for a bundle",
    ("nn_train/own_metrics.py", "importlib.import_module(module)"): "train.selection_metric, see refuse_foreign_code",
    ("nn_train/faults.py", "ctypes.PyDLL(None)"): "what the process has loaded already",
}


class Audit:
    """What a module does that could run what a file says: `found` must be empty, `dynamic` must be known."""

    def __init__(self, text: str):
        self.names: dict[str, str] = {}
        self.loaders = set(SAFE_LOADERS)
        self.found: list[str] = []
        self.dynamic: list[str] = []
        nodes = list(ast.walk(ast.parse(text)))
        for node in nodes:
            if isinstance(node, ast.Import | ast.ImportFrom):
                self._look_at_import(node)
        for node in nodes:
            if isinstance(node, ast.ClassDef) and {self._name(base) for base in node.bases} & self.loaders:
                self.loaders.add(node.name)
        for node in nodes:
            if isinstance(node, ast.Call):
                self._look_at_call(node)

    def _look_at_import(self, node: ast.Import | ast.ImportFrom) -> None:
        module = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
        for alias in node.names:
            self.names[alias.asname or alias.name.partition(".")[0]] = (
                module + alias.name if module or alias.asname else alias.name.partition(".")[0]
            )
            if (module + alias.name).partition(".")[0] in PICKLERS:
                self.found.append(ast.unparse(node))

    def _name(self, node: ast.expr) -> str:
        """`np.load` -> `numpy.load`."""
        if isinstance(node, ast.Attribute):
            return f"{self._name(node.value)}.{node.attr}"
        return self.names.get(node.id, node.id) if isinstance(node, ast.Name) else ""

    def _look_at_call(self, node: ast.Call) -> None:
        name = self._name(node.func)
        options = {keyword.arg: keyword.value for keyword in node.keywords}
        values = {arg: value.value if isinstance(value, ast.Constant) else value for arg, value in options.items()}
        option, value = MUST.get(name, ("", ""))
        is_bad = (
            name in NEVER
            or name.startswith(("os.exec", "os.spawn"))
            or name.rpartition(".")[2] in NEVER_METHODS
            or (bool(option) and values.get(option) is not value)
            or any(values.get(arg, False) is not False for arg in MUST_NOT)
            or (name.endswith(".extractall") and "filter" not in options)
            or (name == "yaml.load" and not self._is_safe(options.get("Loader")))
            or (name.startswith("yaml.") and "load" in name and name not in {*YAML, "yaml.load"})
        )
        if is_bad:
            self.found.append(ast.unparse(node))
        if name in DYNAMIC:
            self.dynamic.append(ast.unparse(node))

    def _is_safe(self, loader: ast.expr | None) -> bool:
        if isinstance(loader, ast.IfExp):
            return self._is_safe(loader.body) and self._is_safe(loader.orelse)
        return loader is not None and self._name(loader) in self.loaders


def test_the_code_runs_nothing_that_a_file_says() -> None:
    audits = {str(path.relative_to(ROOT)): Audit(path.read_text(encoding="utf-8")) for path in CODE}
    assert {name: audit.found for name, audit in audits.items() if audit.found} == {}
    assert {(name, call) for name, audit in audits.items() for call in audit.dynamic} == set(ALLOWED)


def test_the_page_trusts_no_text() -> None:
    for path in (ROOT / "nn_train").glob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert not [word for word in ("|safe", "| safe", "autoescape", "<script") if word in text]


@pytest.mark.parametrize(
    "text",
    ["import pickle", "from joblib import load", "import a, dill as d", "eval('1')", "exec(x)", "compile(x, y, 'exec')",
     "__import__(x)", "import yaml\nyaml.load(t, Loader=yaml.Loader)", "import yaml\nyaml.load(t)",
     "import yaml\nyaml.load(t, Loader=yaml.BaseLoader if x else yaml.FullLoader)", "import yaml\nyaml.unsafe_load(t)",
     "from yaml import full_load as load\nload(t)", "import yaml\nclass L(yaml.Loader): pass\nyaml.load(t, Loader=L)",
     "import torch\ntorch.load(p)", "from torch import load\nload(p, weights_only=False)",
     "import numpy as np\nnp.load(p)", "import numpy as np\nnp.load(p, allow_pickle=x)", "a.b(c, allow_pickle=True)",
     "import pandas as pd\npd.read_pickle(p)", "import subprocess\nsubprocess.run(x, shell=True)", "f(shell=y)",
     "import os\nos.system(x)", "from os import popen as p\np(x)", "import os\nos.execvp(x, y)", "tar.extractall(p)",
     "archive.extract(m)", "import jinja2\njinja2.Environment(loader=x)", "from jinja2 import Template\nTemplate(t)",
     "import jinja2\njinja2.Environment(autoescape=False)", "f(trust_remote_code=True)"],
)  # fmt: skip
def test_the_audit_sees(text: str) -> None:
    assert Audit(text).found


def test_the_audit_lets_pass() -> None:
    text = """
import re, subprocess, torch, numpy as np, yaml
class L(yaml.SafeLoader): pass
re.compile("x"); model.eval(); torch.compile(model); yaml.safe_load(t); yaml.load(t, Loader=L)
yaml.load(t, Loader=yaml.BaseLoader if x else L); torch.load(p, weights_only=True); np.load(p, allow_pickle=False)
subprocess.run(["a"], shell=False)
"""
    assert Audit(text).found == []


# ---- files from somebody else

SCRIPTED = "<script>alert(1)</script>"
HANDLER = "\"><img src=x onerror='alert(1)'>"
FORMULA = "=cmd|'/C calc'!A0"
TEMPLATE = "{{ 7*7 }}{% include '/etc/passwd' %}"
WORDS = (
    *SMALL, *PAGE, "data.target=y", "train.global_batch_size=64",
    "train.eval_every=3", "checkpoint.every_steps=2",
)  # fmt: skip


class Payload:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {shlex.quote(str(self.marker))}",)


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """A file that must not be there in the end."""
    path = tmp_path / "marker"
    assert pickle.loads(pickle.dumps(Payload(path))) == 0  # noqa: S301 - the payload works
    path.unlink()
    yield path
    assert not path.exists(), "the payload was run"


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, beside its table and its packed rows."""
    folder = tmp_path_factory.mktemp("healthy")
    make_table(300).to_csv(folder / "table.csv", index=False)
    Engine(load_config(None, words_of(folder, folder / "run"))).run()
    return folder / "run"


def words_of(folder: Path, run: Path, *words: str) -> list[str]:
    own = [f"data.path={folder / 'table.csv'}", f"data.cache_dir={folder / 'cache'}", f"run.dir={run}"]
    return [*WORDS, *own, "train.max_steps=4", *words]


@pytest.fixture
def run(healthy: Path, tmp_path: Path) -> Path:
    """A copy of it, to be made a bad one."""
    return Path(shutil.copytree(healthy, tmp_path / "run", symlinks=True))


def outcome(command: Callable[[list[str]], int], *words: str) -> int | str:
    """What a command ends with: its code, or the error that it did not foresee."""
    try:
        return command(list(words))
    except Exception as error:
        return type(error).__name__


def go_on(healthy: Path, run: Path, *words: str) -> int | str:
    return outcome(train_main, *words_of(healthy.parent, run, "train.max_steps=8", *words))


class Page(HTMLParser):
    """What a browser would see of a page: its tags, and what could run."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: set[str] = set()
        self.active: list[tuple[str, str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            is_link = name in ("href", "src") and not (value or "").startswith(
                ("#", "data:image/png;base64,", "data:,")
            )
            if is_link or name.startswith("on") or name in ("srcdoc", "action", "formaction", "style"):
                self.active.append((tag, name, value))


def assert_inert(page: Path, healthy: Path) -> str:
    """The page holds no more than a healthy one does; its text."""
    text = page.read_text(encoding="utf-8")
    seen, expected = Page(text), Page((healthy / "report.html").read_text(encoding="utf-8"))
    assert seen.tags <= expected.tags | {"ul", "li", "table", "p", "br"}
    assert seen.active == expected.active == []
    return text


def pickles(marker: Path) -> dict[str, bytes]:
    """A pickle, and what torch.save makes of it."""
    stream = io.BytesIO()
    torch.save(Payload(marker), stream)
    return {"pickle": pickle.dumps(Payload(marker)), "torch": stream.getvalue()}


def write_objects(file: Path, marker: Path) -> None:
    objects = np.array([Payload(marker)], dtype=object)
    if file.suffix == ".npy":
        np.save(file, objects, allow_pickle=True)
    else:
        np.savez(file, train=objects, val=objects, test=objects)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_checkpoint_that_is_a_pickle_is_refused(name: str, kind: str, healthy: Path, run: Path, marker: Path) -> None:
    for step in (run / "checkpoints").glob("step-*"):
        (step / name).write_bytes(pickles(marker)[kind])
        files = {file: (step / file).read_bytes() for file in FILES}
        (step / "manifest.json").write_text(
            json.dumps(make_manifest(files))
        )  # somebody who writes files can add them up
    assert go_on(healthy, run) != 0


def test_what_is_healthy_goes_on(healthy: Path, run: Path, tmp_path: Path) -> None:
    assert go_on(healthy, run) == 0  # or the tests here would prove nothing
    cache = shutil.copytree(healthy.parent / "cache", tmp_path / "cache")
    engine = Engine(load_config(None, words_of(healthy.parent, tmp_path / "another", f"data.cache_dir={cache}")))
    engine.prepare()
    engine.close()
    assert engine.data.was_cached


def test_packed_rows_that_are_pickles_are_refused(healthy: Path, tmp_path: Path, marker: Path) -> None:
    names = (
        "preprocessor.safetensors",
        "preprocessor.json",
        "schema.json",
        "data.json",
        "train.x_num.npy",
        "val.y.npy",
    )
    for name in (*names, "objects"):
        cache = Path(shutil.copytree(healthy.parent / "cache", tmp_path / name))
        [packed] = [path.parent for path in cache.rglob("complete")]
        if name == "objects":
            write_objects(packed / "train.x_cat.npy", marker)
        else:
            (packed / name).write_bytes(pickles(marker)["pickle"])
        assert go_on(healthy, tmp_path / f"run-{name}", f"data.cache_dir={cache}") != 0, name


@pytest.mark.parametrize(
    "text",
    ["run: !!python/object/apply:os.system ['touch {}']", "run: !!python/object/new:os.system ['touch {}']",
     "run: {{name: !!python/name:os.system x}}", "!!python/module:antigravity {{}}", "run: !!map:os [x]"],
)  # fmt: skip
def test_yaml_makes_no_objects(
    text: str, healthy: Path, run: Path, marker: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "config.yaml").write_text(text.format(marker))
    assert go_on(healthy, run) == 2
    assert "could not determine a constructor" in capsys.readouterr().err
    assert outcome(train_main, "--config", str(run / "config.yaml")) == 2


def bomb(key: str) -> str:
    """A kilobyte of YAML that stands for 9 ** 9 words."""
    lists = ["&a [x, x, x, x, x, x, x, x, x]"]
    lists += [f"&{new} [{', '.join([f'*{old}'] * 9)}]" for old, new in zip("abcdefgh", "bcdefghi", strict=True)]
    return f"{key} [{', '.join(lists)}]"


@pytest.mark.parametrize(
    "text", [bomb("run:"), bomb("run:\n  seed:"), bomb("data:\n  columns:"), "run: &a [*a]", "run: " + "[" * 100_000]
)
def test_yaml_that_grows_is_a_short_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "config.yaml")
    assert len(str(caught.value)) < 10_000


def with_markup(values: Any) -> Any:
    """Every text in JSON is markup, and every list and object has one more entry that is, of the kind of the last."""
    if isinstance(values, dict):
        marked = {name: with_markup(value) for name, value in values.items()}
        return marked | dict.fromkeys([SCRIPTED, HANDLER][: len(marked)], *[*marked.values()][-1:])
    if isinstance(values, list):
        return [*(with_markup(value) for value in values), SCRIPTED]
    return SCRIPTED + HANDLER if isinstance(values, str) else values


@pytest.mark.parametrize(
    "name", ["status", "metrics", "environment", "data", "config", "metrics.jsonl", "events.jsonl"]
)
def test_markup_in_a_run_stays_text(name: str, healthy: Path, run: Path) -> None:
    if name.endswith(".jsonl"):
        lines = (run / name).read_text().splitlines()
        (run / name).write_text("".join(f"{json.dumps(with_markup(json.loads(line)))}\n" for line in lines))
    elif name == "config":
        (run / "config.yaml").write_text(f"run: {{name: '{SCRIPTED}'}}")
    else:
        values = json.loads((run / f"{name}.json").read_text())
        (run / f"{name}.json").write_text(json.dumps(with_markup(values)))
    (run / "report.html").unlink()
    write_report(run, dpi=40)
    assert_inert(run / "report.html", healthy)
    for command in ("show", "verify"):
        assert outcome(launch_main, command, str(run)) == 0


def test_a_plan_is_shown_and_not_run(
    run: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inject = f"$(touch {marker}); touch {marker}; `touch {marker}`"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')")
    attempt = {"number": 2, "launch": "x", "job": "", "host": os.uname().nodename, "started": inject}
    plan = {
        "run_dir": str(tmp_path), "attempt": 2, "launch": "x", "script": str(tmp_path / "evil.py"), "words": [inject],
        "nodes": [inject], "preload": ["evil"], "accelerate_options": [inject], "network_interface": inject,
    }  # fmt: skip
    (run / "launch").mkdir()
    (run / "attempts" / "0002.json").write_text(json.dumps(attempt))
    (run / "launch" / "plan-0002.json").write_text(json.dumps(plan))
    (run / "status.json").write_text(json.dumps({"state": "stopped", "reason": inject, "step": 2}))
    for words in (["show", str(run)], ["ls", str(tmp_path)], ["verify", str(run)], ["logs", str(run)]):
        outcome(launch_main, *words)
    said = capsys.readouterr().out
    [goes_on] = [line for line in said.splitlines() if line.startswith("  goes on")]
    assert shlex.split(goes_on)[-1] == inject  # as one word, for whoever copies the line


def test_real_commands_on_a_folder_full_of_pickles(healthy: Path, run: Path, marker: Path, tmp_path: Path) -> None:
    content = pickles(marker)["pickle"]
    for file in [*run.glob("*.safetensors"), *run.glob("*.json"), *run.glob("*.parquet"), *run.glob("attempts/*")]:
        if file.name != "schema.json":  # the page's own
            file.write_bytes(content)
    write_objects(run / "splits.npz", marker)
    report = "import sys, pathlib, nn_train.report as r; r.write_report(pathlib.Path(sys.argv[1]), dpi=40)"
    commands = [
        [str(SCRIPT), *words_of(healthy.parent, run)],
        *(["-m", "launch", command, str(run)] for command in ("show", "verify")),
        ["-m", "launch", "ls", str(tmp_path)],
        ["-c", report, str(run)],
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in commands:
        done = subprocess.run(
            [sys.executable, *command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
        )
        assert "Traceback" not in done.stderr, done.stderr
    assert_inert(run / "report.html", healthy)


def hostile_table() -> Any:
    """A table whose names, levels and classes are markup, formulas and templates."""
    table = make_table(300)
    table.columns = [SCRIPTED, HANDLER, FORMULA, TEMPLATE, "$\\input{/etc/passwd}$", "<b>y</b>"]
    table["<b>y</b>"] = table["<b>y</b>"].map({"yes": SCRIPTED, "no": HANDLER})
    table[FORMULA] = table[FORMULA].map({"red": SCRIPTED, "green": HANDLER, "blue": FORMULA, "teal": TEMPLATE})
    return table


def test_names_and_classes_of_a_table_stay_text(healthy: Path, tmp_path: Path) -> None:
    hostile_table().to_csv(tmp_path / "table.csv", index=False)
    words = words_of(tmp_path, tmp_path / "run", "data.target=<b>y</b>", "report.importance=yes")
    assert train_main(words) == 0
    text = assert_inert(tmp_path / "run" / "report.html", healthy)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert "{{ 7*7 }}" in text


def parquet_with_metadata(file: Path, marker: Path) -> None:
    """What pandas and datasets write about a table, with a pickle wherever there is room for one."""
    table = pa.Table.from_pandas(make_table(300), preserve_index=False)
    known = json.loads(table.schema.metadata[b"pandas"])
    content = pickles(marker)["pickle"]
    for column in known["columns"]:
        column |= {"numpy_type": "object", "pandas_type": "object", "metadata": {"pickle": content.decode("latin-1")}}
    known["index_columns"] = [{"kind": "serialized", "start": f"__import__('os').system('touch {marker}')"}]
    features = {"info": {"features": {"size": {"_type": "Image"}, "age": {"_type": "PackagedDatasetModule"}}}}
    texts = {b"pandas": json.dumps(known).encode(), b"huggingface": json.dumps(features).encode(), b"pickle": content}
    pq.write_table(table.replace_schema_metadata(texts), file)


def parquet_with_extension(file: Path, marker: Path) -> None:
    """An extension type that older versions of pyarrow unpickled."""
    table = pa.Table.from_pandas(make_table(300), preserve_index=False)
    kind = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickles(marker)["pickle"],
    }
    fields = [field.with_metadata(kind) if field.name == "age" else field for field in table.schema]
    pq.write_table(pa.Table.from_arrays(table.columns, schema=pa.schema(fields)), file)


@pytest.mark.parametrize("write", [parquet_with_metadata, parquet_with_extension])
def test_what_a_parquet_says_of_itself_is_not_run(
    write: Callable[[Path, Path], None], marker: Path, tmp_path: Path
) -> None:
    write(tmp_path / "table.parquet", marker)
    words = words_of(tmp_path, tmp_path / "run", f"data.path={tmp_path / 'table.parquet'}")
    engine = Engine(load_config(None, words))
    engine.prepare()
    engine.close()
    assert [column.name for column in engine.data.schema.columns][:2] == ["size", "age"]


def test_an_archive_writes_nothing(healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    file = tmp_path / "table.csv.zip"
    text = (healthy.parent / "table.csv").read_text()
    before = sorted(tmp_path.rglob("*"))
    for name in ("../../evil.csv", f"{outside}/evil.csv", "a/../../outside/evil.csv", "C:\\evil.csv"):
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr(name, text)
        engine = Engine(load_config(None, words_of(tmp_path, tmp_path / "run", f"data.path={file}")))
        assert engine.prepare().schema.num_rows == 300
        engine.close()
        file.unlink()
        shutil.rmtree(tmp_path / "run")
        shutil.rmtree(tmp_path / "cache")
    assert sorted(tmp_path.rglob("*")) == before
    with zipfile.ZipFile(file, "w") as archive:
        for number in range(20_000):
            archive.writestr(f"{number}.csv", "")
    assert outcome(train_main, *words_of(tmp_path, tmp_path / "run", f"data.path={file}")) == 2
    assert "the archive holds 20000 files" in capsys.readouterr().err


def test_the_copy_of_the_code_stays_inside(tmp_path: Path) -> None:
    outside, inside, stream = tmp_path / "outside", tmp_path / "copy" / "code", io.BytesIO()
    outside.mkdir()
    inside.mkdir(parents=True)
    with tarfile.open(fileobj=stream, mode="w") as tar:

        def add(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> None:
            member = tarfile.TarInfo(name)
            member.type, member.linkname, member.size = kind, link, 0 if link else 4
            tar.addfile(member, None if link else io.BytesIO(b"evil"))

        add("../evil.py")
        add(f"{outside}/evil.py")
        add("nn_train/../../evil.py")
        add("up", tarfile.SYMTYPE, "..")
        add("up/evil.py")
        add("away", tarfile.SYMTYPE, str(outside))
        add("away/evil.py")
        add("hard", tarfile.LNKTYPE, f"{outside}/precious")
        add("inner", tarfile.SYMTYPE, "good.py")
        add("deep/er/root", tarfile.SYMTYPE, "../..")
        add("deep/er/root/sly", tarfile.SYMTYPE, "../../../evil.py")  # outside only by way of the link before
        add("deep/er/root/sly")
        add("good.py")
    stream.seek(0)
    (outside / "precious").write_text("precious")
    with tarfile.open(fileobj=stream) as tar:
        unpack_inside(tar, inside)
    assert (inside / "inner").is_symlink() and not (inside / "away").is_symlink()
    assert (inside / "good.py").read_text() == "evil"
    assert [path.name for path in outside.iterdir()] == ["precious"]
    assert [path.name for path in (tmp_path / "copy").iterdir()] == ["code"]
    assert all(path.resolve().is_relative_to(inside) for path in inside.rglob("*"))


# ---- secrets

NAMES = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "MY_DB_PASSWORD")


@pytest.fixture(scope="module")
def planted() -> dict[str, str]:
    """Where a secret stands in the environment -> the secret."""
    return {name: f"s3cr3t{secrets.token_hex(12)}" for name in NAMES} | {
        "WANDB_API_KEY": secrets.token_hex(20),
        "HTTPS_PROXY": f"s3cr3t{secrets.token_hex(12)}",
        "a remote": f"s3cr3t{secrets.token_hex(12)}",
    }


def with_secrets(planted: dict[str, str], home: Path) -> dict[str, str]:
    own = {"HTTPS_PROXY": f"http://user:{planted['HTTPS_PROXY']}@127.0.0.1:9", "WANDB_SILENT": "true"}
    places = {"HOME": str(home), "XDG_CACHE_HOME": str(home / "cache"), "PYTHONPATH": str(ROOT)}
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "LAUNCH", "SLURM"))}
    (home / "tmp").mkdir(parents=True)
    named = {name: secret for name, secret in planted.items() if name.isupper()}
    return kept | named | own | places | {"TMPDIR": str(home / "tmp"), "OMP_NUM_THREADS": "1"}


def contents(file: Path) -> Iterator[bytes]:
    """The bytes of a file, and what is packed in them."""
    content = file.read_bytes()
    yield content
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            yield from (archive.read(member) for member in archive.infolist())
    elif content.startswith(b"\x1f\x8b"):
        yield gzip.decompress(content)
    elif content.startswith(b"PAR1"):
        table = pq.read_table(file)
        yield repr((table.schema.metadata, table.to_pylist())).encode()


def spelled(secret: str) -> set[bytes]:
    """A secret as it is, and inside of a longer text in base64."""
    raw = secret.encode()
    return {raw} | {base64.b64encode(b"x" * shift + raw)[4 : len(raw) // 3 * 4 - 4] for shift in range(3)}


def leaks(folder: Path, planted: dict[str, str], *said: str) -> list[tuple[str, str]]:
    """(where, which) for each secret below a folder or in what was said."""
    (folder / "said").write_text("\n".join(said))
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert files
    return [
        (str(file.relative_to(folder)), name)
        for file in files
        for content in contents(file)
        for name, secret in planted.items()
        if any(part in content for part in spelled(secret))
    ]


def test_the_search_finds_secrets(planted: dict[str, str], tmp_path: Path) -> None:
    for name, secret in planted.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / "a").write_bytes(b"\0" + secret.encode() + b"\0")
        (folder / "b").write_bytes(gzip.compress(secret.encode()))
        (folder / "c").write_bytes(base64.b64encode(f"api:{secret}@".encode()))
        np.savez_compressed(folder / "d.npz", a=np.frombuffer(secret.encode(), np.uint8))
        pq.write_table(pa.table({"x": [secret] * 9}), folder / "e.parquet")
        assert {file for file, _ in leaks(folder, planted, secret)} == {"a", "b", "c", "d.npz", "e.parquet", "said"}


def test_no_secret_of_the_environment_is_left_by_a_run(planted: dict[str, str], tmp_path: Path) -> None:
    for words in (["init", "-q"], ["remote", "add", "origin", f"https://user:{planted['a remote']}@127.0.0.1:9/x.git"]):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    make_table(300).to_csv(tmp_path / "table.csv", index=False)
    words = [f"data.path={tmp_path / 'table.csv'}", *WORDS, "train.max_steps=6", "report.importance=yes"]
    words += ["tracking.mode=offline", "report.baselines=yes", "run.dir=run"]
    # it crashes once with a stack trace, on process 1, and is started again
    environment = with_secrets(planted, tmp_path / "home") | {"NN_TRAIN_FAULTS": "raise@step,step=4,rank=1,attempt=1"}
    done = subprocess.run(
        [sys.executable, "-m", "launch", "run", "--processes=2", "--cpu", "--", *words],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run = tmp_path / "run"
    assert (run / "report.html").exists()
    assert list((run / "wandb").glob("offline-run-*/*.wandb"))
    assert "injected fault" in "".join(log.read_text() for log in (run / "logs").glob("attempt-0001/*.log"))
    shown = subprocess.run(
        [sys.executable, "-m", "launch", "show", "run"],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert shown.returncode == 0
    shutil.rmtree(tmp_path / ".git")
    assert leaks(tmp_path, planted, done.stdout, done.stderr, shown.stdout, shown.stderr) == []


def test_no_secret_of_the_environment_is_left_by_a_submission(
    planted: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in with_secrets(planted, tmp_path / "home").items():
        monkeypatch.setenv(name, value)
    login = Login(tmp_path / "login")
    said = []
    for words in (["submit", "--dry-run"], ["submit"], ["show", "runs/telco"]):
        done = login(*words)
        assert done.returncode == 0, done.stderr
        said += [done.stdout, done.stderr]
    assert (login.cwd / "runs" / "telco" / "launch" / "code" / "nn_train" / "train.py").exists()
    assert leaks(tmp_path, planted, *said) == []
