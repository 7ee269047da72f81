"""Settings: what is refused, what is understood, and that help, schema and dump are true."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator

from nn_train.config import check_config, dump_config, load_config
from nn_train.config_help import help_text, schema_text
from nn_train.errors import ConfigError
from nn_train.settings import SECTIONS, changed_keys
from tests.conftest import ROOT

MINIMAL = {"data": {"path": "t.csv", "target": "y"}}


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train.global_batchsize=3"], "did you mean 'train.global_batch_size'"),
        (["trian.max_epochs=3"], "unknown section 'trian'; did you mean 'train'"),
        (["global_batch_size=3"], "did you mean 'train.global_batch_size'"),
        (["peak_lr"], "is not section.key=value"),
        (["train.max_epochs=abc"], "train.max_epochs='abc'"),
        (["model.width=-1"], "model.width=-1: input should be greater than or equal to 1"),
        (["model.dropout=1.0"], "model.dropout=1.0: input should be less than 1"),
        (["run.seed=1.5"], "run.seed=1.5"),
        (["run.seed=true"], "seed: true was given"),
        (["train.early_stopping=true"], "early_stopping: true was given"),
        (["model.name=mpl"], "model.name='mpl': input should be 'mlp' or 'mlp-ple'"),
        (["split.val=0.6", "split.test=0.4"], "leave no rows to train on"),
        (["split.method=time"], "needs split.column=NAME"),
        (["split.method=files"], "needs split.val_path=FILE"),
        (["train.micro_batch_size=999"], "more than train.global_batch_size=256"),
        (["train.gradient_reduction=exact", "train.canonical_slices=3"], "not a power of two"),
        (["train.gradient_reduction=exact", "train.micro_batch_size=8"], "less than a slice of 32 rows"),
        (["data.drop=[churn]"], "data.drop holds the target 'churn'"),
        (["data=3"], "is not section.key=value"),
    ],
)
def test_a_wrong_setting_is_refused_with_its_name_and_the_mend(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words=words)
    assert message in str(caught.value)


def test_all_problems_are_shown_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(words=["model.width=0", "optim.peak_lr=fast"])
    assert "model.width" in str(caught.value)
    assert "optim.peak_lr" in str(caught.value)


@pytest.mark.parametrize("text", ["1e-3", "0.001", "1.0e-3", "'1e-3'"])
def test_a_small_number_is_a_number_however_it_is_written(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, f"data: {{path: t.csv, target: y}}\noptim: {{peak_lr: {text}}}\n")
    assert load_config(path).optim.peak_lr == 0.001


@pytest.mark.parametrize("text", ["no", "'no'", "false"])
def test_no_is_a_word_where_a_word_is_meant(tmp_path: Path, text: str) -> None:
    path = write(
        tmp_path, f"data: {{path: t.csv, target: y}}\ntrain: {{mixed_precision: {text}, early_stopping: {text}}}\n"
    )
    config = load_config(path)
    assert config.train.mixed_precision == "no"
    assert config.train.early_stopping is None


def test_a_table_named_in_a_yaml_is_found_beside_it_and_one_in_a_word_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "t.csv").touch()
    monkeypatch.chdir(tmp_path / "here")
    path = write(tmp_path, "data: {path: t.csv, target: y}\n")
    assert load_config(path).data.path == str(tmp_path / "t.csv")
    assert load_config(path, ["data.path=u.csv"]).data.path == str(tmp_path / "here" / "u.csv")


@pytest.mark.parametrize(
    ("text", "message"),
    [("data: [", "this is not YAML"), ("- a\n", "sections with keys"), ("data: 3\n", "data: expected keys, got 3")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        load_config(write(tmp_path, text))


def test_a_missing_config_file_names_those_that_are_there(tmp_path: Path) -> None:
    write(tmp_path, "data: {}")
    with pytest.raises(ConfigError, match=r"no such config file\n.*run\.yaml"):
        load_config(tmp_path / "rnu.yaml")


def test_a_missing_required_key_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.target is missing"):
        check_config({"data": {"path": "t.csv"}}, where="here")


def test_what_is_dumped_is_read_back_equal_also_by_plain_yaml(tmp_path: Path) -> None:
    config = load_config(
        words=["train.max_time=1h30m", "data.columns.a=numeric", "train.grad_clip=no", "data.drop=a,b"]
    )
    assert config.train.max_time == 5400
    assert config.data.drop == ("a", "b")
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert check_config(yaml.safe_load(text), where="") == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(Exception, match="frozen"):
        check_config(dict(MINIMAL), where="").train.max_epochs = 3  # type: ignore[misc]


def test_the_help_shows_every_key_with_a_meaning_and_a_default() -> None:
    text = help_text()
    for section, model in SECTIONS.items():
        for name, field in model.model_fields.items():
            assert f"  {section}.{name} (" in text
            assert field.description, f"{section}.{name} says nothing of itself"


def test_the_schema_file_is_the_one_the_settings_give() -> None:
    assert (ROOT / "configs" / "schema.json").read_text() == schema_text(), (
        "run: python nn_train/train.py --write-schema configs/schema.json"
    )


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_configs_and_refuses_a_typo(path: Path) -> None:
    validator = Draft202012Validator(json.loads(schema_text()))
    values = yaml.safe_load(path.read_text())
    assert not list(validator.iter_errors(values))
    assert list(validator.iter_errors(values | {"trian": {}}))


def test_settings_that_change_what_a_step_computes_are_told_from_those_that_do_not() -> None:
    old = load_config()
    assert changed_keys(old, load_config(words=["train.max_epochs=7", "tracking.mode=disabled", "run.dir=x"])) == []
    assert changed_keys(old, load_config(words=["model.dropout=0.3"])) == ["model.dropout: 0.1 -> 0.3"]
    stretched = load_config(words=["train.max_epochs=7", "optim.schedule=cosine"])
    assert "train.max_epochs: 200 -> 7" in changed_keys(old, stretched)


def test_config_errors_help_and_print_config_import_no_torch() -> None:
    code = (
        "import sys; from nn_train.train import main;"
        "codes = [main(['--help']), main(['--print-config']), main(['model.widht=1'])];"
        "heavy = {'torch', 'pandas', 'datasets', 'sklearn', 'accelerate'} & set(sys.modules);"
        "sys.exit(f'{codes} {heavy}' if heavy or codes != [0, 0, 2] else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "did you mean 'model.width'" in result.stderr
