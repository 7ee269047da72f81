"""The notebook, executed: no error, no warning, the outputs that are stored in it, one process or two."""

import ast
import base64
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

NOTEBOOK = ROOT / "notebooks" / "NeuralNetwork.ipynb"
NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*\.?\d*(?:e-?\d+)?")
# what the table says is exact; what training gives moves a little with processor and library versions
EXACT = {
    "install",
    "setup",
    "table",
    "missing",
    "classes",
    "prepare",
    "kinds",
    "encoded",
    "network",
    "untrained-answers",
}
LARGEST_PICTURES = 200_000  # bytes, all together

Notebook = dict[str, Any]


def run_notebook(folder: Path, *words: str) -> Notebook:
    """Execute it in `folder` from a process of its own; the executed notebook by cell id."""
    out = folder / "executed.ipynb"
    done = subprocess.run(
        [sys.executable, "-m", "tests.run_notebook", "--folder", str(folder), "--out", str(out), *words],
        cwd=ROOT,
        env=os.environ | {"XDG_CACHE_HOME": str(folder / "cache"), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return read_notebook(out)


def read_notebook(path: Path) -> Notebook:
    """Its code cells by their ids."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return {cell["id"]: cell for cell in cells if cell["cell_type"] == "code"}


def text_of(cell: dict[str, Any]) -> str:
    """What a cell printed and showed, as text; a picture is `<picture>`."""
    shown = []
    for output in cell["outputs"]:
        if output["output_type"] == "stream":
            shown.append("".join(output["text"]))
        elif "image/png" in output["data"]:
            shown.append("<picture>\n")
        else:
            shown.append("".join(output["data"]["text/plain"]) + "\n")
    # on what it trained is said by Accelerate, and differs between machines
    return re.sub(r"^Launching training on .*\n", "", "".join(shown), flags=re.MULTILINE)


def numbers_of(text: str) -> list[float]:
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]


@pytest.fixture(scope="module")
def stored() -> Notebook:
    return read_notebook(NOTEBOOK)


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Notebook:
    return run_notebook(tmp_path_factory.mktemp("notebook"))


def test_it_runs_to_its_end_without_a_word_on_stderr(fresh: Notebook) -> None:
    assert list(fresh)[-1] == "numbers"
    for name, cell in fresh.items():
        streams = [output for output in cell["outputs"] if output.get("name") == "stderr"]
        assert not streams, (name, streams)
        assert "warning" not in text_of(cell).lower(), name


def test_the_stored_outputs_are_those_of_a_fresh_execution(fresh: Notebook, stored: Notebook) -> None:
    assert list(fresh) == list(stored)
    for name, cell in stored.items():
        old, new = text_of(cell), text_of(fresh[name])
        if name in EXACT:
            assert new == old, f"{name}: python -m tests.run_notebook stores fresh outputs"
        else:
            assert re.sub(r"\s+|-+", " ", NUMBER.sub("#", new)) == re.sub(r"\s+|-+", " ", NUMBER.sub("#", old)), name
            assert numbers_of(new) == pytest.approx(numbers_of(old), abs=0.06, rel=0.06), name


def test_the_key_numbers_are_those_of_a_network_that_has_learned(fresh: Notebook) -> None:
    numbers = ast.literal_eval(text_of(fresh["numbers"]))
    assert numbers["customers"] == 7043
    assert numbers["total charges missing"] == 11
    assert numbers["share who left"] == 0.2654
    assert numbers["largest difference, ten lines and Engine"] <= 1e-4
    assert 0.85 < numbers["network, test roc_auc"] < 0.88
    assert 0.38 < numbers["network, test log_loss"] < 0.405
    assert numbers["network, test accuracy"] > numbers["always No, test accuracy"] + 0.02
    assert numbers["she leaves, as she is"] > numbers["she leaves, a contract of two years"] + 0.15
    assert numbers["she leaves, as she is"] > numbers["she leaves, a customer for five years"] + 0.3


def test_two_processes_of_the_notebook_train_the_network_of_the_ten_lines(tmp_path: Path) -> None:
    cells = run_notebook(tmp_path, "--num-processes", "2", "--until", "same")
    assert text_of(cells["same"]) == "largest difference between two weights: 0.0000\n"
    environment = json.loads((tmp_path / "runs" / "by-engine" / "environment.json").read_text())
    assert environment["processes"] == 2


def test_the_stored_outputs_are_small_and_say_nothing_of_the_machine(stored: Notebook) -> None:
    pictures = 0
    for name, cell in stored.items():
        assert not cell["metadata"], name  # timestamps stand here
        text = json.dumps(cell["outputs"])
        assert not re.search(r"/(?:home|root|tmp|Users|usr|opt|work)/", text), name
        for output in cell["outputs"]:
            png = output.get("data", {}).get("image/png")
            pictures += len(base64.b64decode(png)) if png else 0
    assert 0 < pictures < LARGEST_PICTURES
    assert NOTEBOOK.stat().st_size < 2 * LARGEST_PICTURES


FAKE_PIP = """
import json, sys
with open("pip.json", "w") as file:
    json.dump(sys.argv[1:], file)
"""


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """A Python with nothing installed, whose pip notes what it is asked for."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare")], check=True, timeout=60)
    site = tmp_path / "pip"
    site.mkdir()
    (site / "pip.py").write_text(FAKE_PIP)
    return tmp_path / "bare" / "bin" / "python"


def start_install(python: Path, cell: dict[str, Any], *, cwd: Path, repository: str = "") -> Any:
    source = "".join(cell["source"])
    assert 'REPOSITORY = ""' in source
    source = source.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")
    source += "\nimport nn_train\nprint(nn_train.__file__)"
    env = os.environ | {"PYTHONPATH": str(python.parents[2] / "pip")}
    return subprocess.run([str(python), "-c", source], cwd=cwd, env=env, capture_output=True, text=True, timeout=60)


def test_the_first_cell_installs_the_project_around_it_or_clones_it(
    bare_python: Path, tmp_path: Path, stored: Notebook
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    done = start_install(bare_python, stored["install"], cwd=alone)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].startswith("RuntimeError: write the project's git address into REPOSITORY")

    done = start_install(bare_python, stored["install"], cwd=alone, repository=ROOT.as_uri())
    assert done.returncode == 0, done.stderr
    assert json.loads((alone / "pip.json").read_text()) == ["install", "--quiet", "-e", "nn-train"]
    assert Path(done.stdout.strip()) == alone / "nn-train" / "nn_train" / "__init__.py"

    inside = alone / "nn-train" / "notebooks"
    inside.mkdir(exist_ok=True)
    done = start_install(bare_python, stored["install"], cwd=inside)
    assert done.returncode == 0, done.stderr
    assert json.loads((inside / "pip.json").read_text()) == ["install", "--quiet", "-e", ".."]
