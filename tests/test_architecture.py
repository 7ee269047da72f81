"""The shape of the code: layers, names, lint, types, and a README whose picture is true."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from nn_train.preparation import CODE
from tests.conftest import ROOT, make_table

PACKAGE = ROOT / "nn_train"
# A module imports from its own layer and from those above it in this list, never from one below.
LAYERS: list[tuple[str, ...]] = [
    ("errors", "ending", "schema", "tensors"),
    ("settings", "network_choice", "config", "config_help", "attempts", "faults", "pulse", "timeline", "sweep_space",
     "crew", "together"),
    ("update_rules",),
    ("batch_plan", "metrics", "calibration", "curves", "costs", "verdict", "placement", "sampling",
     "score_bins", "streamed_metrics", "streamed_values", "step_times"),
    ("objective", "optim", "averaging"),
    ("own_metrics",),
    ("models", "models.options", "models.numeric", "models.categories", "models.inputs", "models.members", "models.mlp",
     "models.resnet", "models.transformer", "models.tabm", "models.realmlp", "models.custom"),
    ("baselines", "run_folder", "eager_torch", "runtime", "tracking_media", "tracking", "terminal", "environment",
     "manifest"),
    ("table_files", "table_text", "text_spans", "table", "table_stream", "values", "inference_target", "row_weights",
     "inference"),
    ("row_hash", "splits", "splitting", "preprocessor", "preprocessing", "packed", "doubts", "building"),
    ("shards", "survey", "shard_splits", "shard_plan", "shard_fit", "building_shards", "shard_helper"),
    ("preparation",),
    ("decision", "incoming", "bundle", "whole_file", "parquet_rows", "predictions_file", "scoring",
     "table_prediction"),
    ("source_table", "known_target", "table_shards", "big_table"),
    ("batching", "serve_rows", "serve_app"),
    ("export_graph", "export_torch", "export_onnx", "export_check", "export_file"),
    ("plots", "plots_run", "plots_binary", "plots_multiclass", "plots_regression", "plots_explain", "plots_compare"),
    ("report_run", "report_table", "report_page", "report_errors", "report_media", "report"),
    ("resampling", "comparison", "compare_run", "compare_tables", "compare_page", "compare"),
    ("batches", "step_profile", "gradients", "stepping", "loop", "checkpoint", "saving", "evaluation", "streaming",
     "importance", "overfit", "training", "streamed_results", "baseline_sample", "judging"),
    ("dependence", "attributions", "explanation", "lr_range"),
    ("engine",),
    ("fitting", "estimator", "ensemble_bundle"),
    ("train", "find_lr", "predict", "export", "serve", "sweep", "ensemble", "make_table", "__init__"),
]  # fmt: skip
LEVEL = {module: level for level, modules in enumerate(LAYERS) for module in modules}
TORCH_FREE = ["errors", "ending", "schema", "settings", "network_choice", "config", "config_help", "train", "find_lr",
              "predict", "export", "serve", "batch_plan", "metrics", "calibration", "curves", "costs", "verdict",
              "sampling", "score_bins", "streamed_metrics", "streamed_values", "parquet_rows", "step_times",
              "baselines", "run_folder", "report", "manifest", "attempts", "faults", "pulse", "timeline",
              "sweep_space", "crew", "sweep", "ensemble", "resampling", "comparison", "compare", "source_table",
              "known_target", "table_shards", "big_table", "make_table"]  # fmt: skip


def module_name(path: Path) -> str:
    """`models/mlp.py` -> `models.mlp`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


FILES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def read_imports(path: Path, *, package: str, files: dict[str, Path]) -> set[str]:
    """The package's own modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == package:
            base = (node.module or "").removeprefix(package).lstrip(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".lstrip(".")
                found.add(inner if inner in files else base)
        elif isinstance(node, ast.Import):
            found |= {
                alias.name.removeprefix(f"{package}.") for alias in node.names if alias.name.startswith(f"{package}.")
            }
    return found


IMPORTS = {name: read_imports(path, package="nn_train", files=FILES) for name, path in FILES.items()}
LAUNCH_FILES = {path.stem: path for path in sorted((ROOT / "launch").glob("*.py"))}
LAUNCH_IMPORTS = {name: read_imports(path, package="launch", files=LAUNCH_FILES) for name, path in LAUNCH_FILES.items()}


def test_every_module_has_a_layer() -> None:
    assert sorted(FILES) == sorted(LEVEL)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_lead_upwards(module: str) -> None:
    wrong = {other for other in IMPORTS[module] if LEVEL[other] > LEVEL[module]}
    assert not wrong, f"{module} imports {wrong} from a lower layer"


@pytest.mark.parametrize("imports", [IMPORTS, LAUNCH_IMPORTS], ids=["nn_train", "launch"])
def test_there_is_no_import_cycle(imports: dict[str, set[str]]) -> None:
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for other in imports[module]:
                visit(other, (*path, module))
            done.add(module)

    for module in imports:
        visit(module, ())


def test_the_training_knows_no_launcher() -> None:
    for path in FILES.values():
        assert not re.search(r"^\s*(from|import) launch\b", path.read_text(encoding="utf-8"), re.MULTILINE), path


def test_the_launcher_imports_no_torch() -> None:
    own = {"doctor_allreduce"}  # a script of its own process, that measures torch's all-reduce
    modules = [f"launch.{name}" for name in LAUNCH_FILES if name not in {"__init__", "__main__", *own}]
    code = f"import sys, {', '.join(modules)}; sys.exit(bool({{'torch', 'pandas', 'sklearn'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


@pytest.mark.parametrize("module", TORCH_FREE)
def test_light_modules_import_no_torch(module: str) -> None:
    code = f"import sys, nn_train.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


def test_the_cache_of_packed_rows_is_keyed_by_all_code_that_makes_them() -> None:
    found = {"preparation"}  # which chooses the key
    ahead = ["building", "building_shards"]
    while ahead:
        module = ahead.pop()
        if module not in found and LEVEL[module] >= LEVEL["table"]:
            found.add(module)
            ahead += IMPORTS[module]
    assert set(CODE) == found
    assert len(CODE) == len(found)


HEAVY = ("datasets", "jinja2", "matplotlib", "pandas", "scipy", "sklearn", "sympy", "torch._dynamo.eval_frame",
         "torch.distributed.tensor", "wandb")  # fmt: skip
FIRST_STEP = """
import sys
from nn_train import loop
from nn_train.train import main

def start(*_):
    print("at the first step:", sorted(set({heavy!r}) & set(sys.modules)), flush=True)
    sys.exit(0)

loop.Trainer.run = start
main(sys.argv[1:])
"""


@pytest.mark.parametrize("task", ["binary", "regression"])
def test_a_start_that_finds_its_rows_packed_imports_nothing_else_before_its_first_step(
    task: str, tmp_path: Path
) -> None:
    # a second of every start and restart, on every process
    make_table(100, task=task).to_csv(tmp_path / "table.csv", index=False)
    words = [f"data.path={tmp_path / 'table.csv'}", "data.target=y", "tracking.mode=disabled"]
    command = [sys.executable, "-c", FIRST_STEP.format(heavy=HEAVY), *words]
    for name, was_cached in (("first", False), ("second", True)):
        done = subprocess.run(
            [*command, f"run.dir={tmp_path / name}"], cwd=ROOT, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert ("(found packed)" in done.stdout + done.stderr) is was_cached
    assert "at the first step: []" in done.stdout


@pytest.mark.parametrize("word", ["data.path=no/such.csv", "train.max_epoch=3", "train.max_epochs=-1"])
def test_a_mistake_in_the_settings_is_told_before_torch_is_imported(word: str) -> None:
    code = "import sys; from nn_train.train import main; print(main(sys.argv[1:]), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, word], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout == "2 False\n"
    assert done.stderr.startswith("error: ")


def test_no_module_hides_a_library() -> None:
    distributions = {name for names in importlib.metadata.packages_distributions() for name in [names]}
    taken = set(sys.stdlib_module_names) | distributions
    # a script's folder comes first among the places of modules; folders in it are packages
    for name in {name.split(".")[0] for name in FILES}:
        assert name not in taken - {"__init__"}, name
    assert not list(PACKAGE.rglob("utils.py"))


def test_every_library_that_is_imported_is_declared() -> None:
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    project = pyproject["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "test" for line in lines]
    declared = {
        re.split(r"[<>=\[;]", line)[0].strip().lower().replace("_", "-") for line in project["dependencies"] + extras
    }
    owners = importlib.metadata.packages_distributions()
    for path in (*FILES.values(), *LAUNCH_FILES.values()):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            for name in (
                {name.partition(".")[0] for name in names} - set(sys.stdlib_module_names) - {"nn_train", "launch"}
            ):
                assert {owner.lower().replace("_", "-") for owner in owners[name]} & declared, f"{path.name}: {name}"


def test_no_class_lives_in_a_script() -> None:
    tree = ast.parse((PACKAGE / "train.py").read_text(encoding="utf-8"))
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_nothing_loads_a_pickle() -> None:
    for path in (*FILES.values(), *LAUNCH_FILES.values()):
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"\bpickle\b|torch\.load\(|joblib|allow_pickle=True", text.replace("no pickle", "")
                             .replace("without pickle", "").replace("a pickle", "")), path  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright"]],
    ids=["lint", "format", "types"],
)
def test_style(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_tree_in_the_readme_is_true() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tree = readme.split("<!-- tree -->")[1]
    named = set(re.findall(r"[\w./]+\.(?:py|html)\b", tree))
    own = [*PACKAGE.rglob("*.py"), *LAUNCH_FILES.values()]
    missing = {path.name for path in own if path.name != "__init__.py"} - {Path(n).name for n in named}
    assert not missing, f"the README's tree does not name {missing}"
    known = {path.name for path in ROOT.rglob("*") if ".git" not in path.parts}
    assert {Path(name).name for name in named} <= known


def test_every_command_of_the_readme_names_files_that_exist() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(
        r"(?:nn_train|configs|tests|data|slurm|launch|notebooks)/[\w./-]+\.(?:py|yaml|csv|md|sh|json|ipynb)", readme
    ):
        assert (ROOT / path).exists(), path


def test_the_toplevel_holds_what_the_readme_says() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, timeout=30).stdout.split()
    allowed = {"pyproject.toml", "README.md", ".gitignore", "nn_train", "configs", "tests", "data", "launch", "slurm",
               "notebooks", ".ci"}  # fmt: skip
    assert {Path(name).parts[0] for name in listed} <= allowed
