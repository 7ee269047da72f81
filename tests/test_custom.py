"""A network of the user's own: the README's example on two processes, refusals, and a bundle that imports nothing."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nn_train import load_bundle
from nn_train.bundle import BundleError
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError
from nn_train.predict import main as predict_main
from tests.conftest import ROOT, SMALL, Start, make_table

EXAMPLE = (
    (ROOT / "README.md").read_text(encoding="utf-8").split("<!-- custom -->")[1].split("```python")[1].split("```")[0]
)
OWN = ("model.name=custom", "model.embedding=auto", "model.width=auto", "model.num_embedding=auto")
WRONG = {
    "Takes": ("def __init__(self): super().__init__()", "pass", "cannot be made with options {}: TypeError"),
    "Shape": (
        "def __init__(self, **_):\n        super().__init__()\n        self.w = nn.Linear(1, 1)",
        "return x_num[:, :1].sum() * self.w.weight",
        r"returned \[1, 1\] for 3 rows, not \[3, 1\]",
    ),
    "Fails": (
        "def __init__(self, **_):\n        super().__init__()\n        self.w = nn.Linear(99, 1)",
        "return self.w(x_num)",
        "fails on its inputs: RuntimeError",
    ),
    "Idle": (
        "def __init__(self, num_numbers, **_):\n        super().__init__()\n"
        "        self.w, self.idle = nn.Linear(num_numbers, 1), nn.Linear(1, 1)",
        "return self.w(x_num)",
        "weights that no logit depends on: idle.weight, idle.bias",
    ),
    "None_": (
        "def __init__(self, **_):\n        super().__init__()",
        "return x_num[:, :1]",
        "logits that depend on no weight",
    ),
    "Codes": (
        "def __init__(self, num_numbers, **_):\n        super().__init__()\n        self.w = nn.Linear(num_numbers, 1)",
        "return self.w(x_num).long()",
        "returned torch.int64",
    ),
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the README's module, a wrong one, and a table."""
    wrong = "".join(
        f"\n\nclass {name}(nn.Module):\n    {make}\n    def forward(self, x_num, x_cat):\n        {answer}\n"
        for name, (make, answer, _) in WRONG.items()
    )
    (tmp_path / "my_nets.py").write_text(EXAMPLE)
    (tmp_path / "wrong_nets.py").write_text(f"from torch import nn\n{wrong}\ndef text(**_): return 'text'\n")
    make_table(300).to_csv(tmp_path / "table.csv", index=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    for name in ("my_nets", "wrong_nets"):
        sys.modules.pop(name, None)


def words_of(target: str, *words: str) -> list[str]:
    own = ["data.path=table.csv", "data.target=y", "run.dir=run", f"model.target={target}", "train.max_steps=4"]
    return [*SMALL, *OWN, *own, *words]


def test_the_example_of_the_readme_trains_on_two_processes_and_its_bundle_imports_nothing_by_itself(
    here: Path, start: Start
) -> None:
    done = start(*words_of("my_nets:MyNet", "model.options.width=8"), processes=2)
    assert done.returncode == 0, done.stderr
    assert "network custom (my_nets:MyNet), " in done.stdout + done.stderr
    with pytest.raises(BundleError, match=r"would import 'my_nets:MyNet'.*\n.*--allow-custom"):
        load_bundle("run")
    assert "my_nets" not in sys.modules
    bundle = load_bundle("run", allow_custom=True)
    assert next(iter(bundle.network.layers.parameters())).shape[0] == 8  # type: ignore[union-attr]
    table = make_table(20)
    assert np.isfinite(bundle.predict(table)["p_yes"]).all()
    command = ["--run", "run", "--input", "table.csv", "--output", "out.csv"]
    assert predict_main(command) == 2
    assert predict_main([*command, "--allow-custom"]) == 0


def test_a_file_of_a_run_folder_leads_to_no_code(here: Path) -> None:
    words = [*SMALL, "data.path=table.csv", "data.target=y", "run.dir=run", "model.name=auto", "train.max_steps=2"]
    Engine(load_config(None, words)).run()
    model = json.loads((here / "run" / "model.json").read_text())
    custom = dict.fromkeys(model, "auto") | {"name": "custom", "target": "my_nets:MyNet", "options": {}}
    (here / "run" / "model.json").write_text(json.dumps(custom))
    Engine(load_config(None, [*words, "train.max_steps=4"])).run()
    assert "my_nets" not in sys.modules


@pytest.mark.parametrize("name", list(WRONG))
def test_a_wrong_network_is_refused_with_the_right_signature(here: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[name][2]) as caught:
        Engine(load_config(None, words_of(f"wrong_nets:{name}"))).prepare()
    assert "def forward(self, x_num, x_cat)" in caught.value.fix
    assert not (here / "run").exists()


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("no_such_module:Net", "cannot be imported: ModuleNotFoundError"),
        ("my_nets:Net", "cannot be imported: AttributeError"),
        ("wrong_nets:text", "is no torch.nn.Module"),
    ],
)
def test_a_target_that_is_no_network_is_refused(here: Path, target: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Engine(load_config(None, words_of(target))).prepare()


@pytest.mark.parametrize(
    ("words", "match"),
    [
        (["model.name=custom"], "needs a class; model.target=MODULE:CLASS"),
        (["model.target=a:B"], "are for a network of your own; model.name=custom"),
        (["model.name=custom", "model.target=a.B"], "model.target='a.B'"),
        (["model.name=custom", "model.target=a:B", "model.width=3"], "model.width is no option of custom"),
    ],
)
def test_settings_of_a_custom_network_are_checked(words: list[str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(None, words)
