"""What `auto` becomes, what is refused with which mend, and a run that keeps its network."""

import json
from pathlib import Path
from typing import Any

import pytest

from nn_train import load_bundle
from nn_train.config import load_config
from nn_train.engine import Engine
from nn_train.errors import ConfigError, RunFolderError
from nn_train.models import MODELS
from nn_train.network_choice import describe_model, is_resolution, resolve_model
from nn_train.settings import EMBEDDING_OPTIONS, MODEL_OPTIONS, ModelConfig
from tests.conftest import SMALL, make_table


def resolve(*, rows: int = 1000, numbers: int = 5, device: str = "cpu", **options: Any) -> ModelConfig:
    return resolve_model(ModelConfig(**options), num_rows=rows, num_numbers=numbers, device_type=device)


@pytest.mark.parametrize(
    ("rows", "device", "expected"),
    [
        (1_000, "cpu", ("tabm", "ple", 128, 16)),
        (19_999, "cpu", ("tabm", "ple", 128, 16)),
        (20_000, "cpu", ("mlp", "ple", 256, "auto")),
        (1_000, "cuda", ("tabm", "ple", 512, 32)),
        (10_000_000, "cuda", ("tabm", "ple", 512, 32)),
    ],
)
def test_auto_goes_by_rows_and_device(rows: int, device: str, expected: tuple) -> None:
    found = resolve(rows=rows, device=device)
    assert (found.name, found.embedding, found.width, found.num_members) == expected


def test_auto_goes_by_columns_too_on_a_cpu() -> None:
    chosen = [resolve(rows=3_000, numbers=numbers, device=device).name
              for numbers, device in ((100, "cpu"), (101, "cpu"), (101, "cuda"), (0, "cpu"))]  # fmt: skip
    assert chosen == ["tabm", "mlp", "tabm", "tabm"]


@pytest.mark.parametrize("name", list(MODELS))
@pytest.mark.parametrize("embedding", ["auto", *EMBEDDING_OPTIONS])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("numbers", [0, 3])
def test_every_option_that_a_network_has_is_resolved_once_and_for_all(
    name: str, embedding: str, device: str, numbers: int
) -> None:
    if (name == "ft-transformer" and embedding == "none") or (not numbers and embedding not in ("auto", "none")):
        return
    found = resolve(name=name, embedding=embedding, device=device, numbers=numbers)
    foreign = {option for options in EMBEDDING_OPTIONS.values() for option in options}
    foreign -= set(EMBEDDING_OPTIONS[found.embedding])
    for option in ModelConfig.model_fields:
        has_option = option == "name" or (option in MODEL_OPTIONS[name] and option not in foreign)
        assert found.is_given(option) is has_option, option
    assert resolve_model(found, num_rows=10**9, num_numbers=numbers, device_type="cuda") == found
    assert ModelConfig.model_validate_json(found.model_dump_json()) == found
    assert describe_model(found).startswith(name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"name": "mlp", "num_members": 4}, r"num_members is no option of mlp.*model.name=tabm or tabm-mini"),
        ({"name": "linear", "width": 4}, r"width is no option of linear"),
        ({"name": "ft-transformer", "num_embedding": 4}, r"num_embedding is no option of ft-transformer"),
        ({"name": "ft-transformer", "embedding": "none"}, "needs an embedding"),
        ({"name": "ft-transformer", "width": 30, "num_heads": 4}, "num_heads=4 does not divide model.width=30"),
        ({"name": "mlp", "embedding": "none", "num_embedding": 4}, "is no option of model.embedding=none"),
        ({"name": "mlp", "embedding": "ple", "num_frequencies": 4}, "model.embedding=periodic or"),
        ({"name": "mlp", "embedding": "pbld", "num_embedding": 1}, "width of 2 or more"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_with_the_settings(options: dict[str, Any], match: str) -> None:
    words = [f"model.{key}={value}" for key, value in options.items()]
    with pytest.raises(ConfigError, match=match):
        load_config(None, words)


@pytest.mark.parametrize(
    ("options", "facts", "match"),
    [
        ({"embedding": "periodic"}, {"numbers": 0}, "no numeric column is left"),
        ({"num_heads": 4}, {}, "no option of tabm, which auto chose for 1,000 train rows on cpu"),
        ({"name": "ft-transformer", "num_heads": 5}, {}, "does not divide model.width=64"),
        ({"name": "mlp", "num_frequencies": 4}, {}, "is no option of model.embedding=ple"),
    ],
)
def test_an_option_that_does_not_fit_the_table_is_refused(
    options: dict[str, Any], facts: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        resolve(**options, **facts)
    assert "auto" in caught.value.fix


def test_a_file_can_only_be_what_was_asked_for() -> None:
    asked = ModelConfig(width=64)
    assert is_resolution(resolve(width=64), asked) and is_resolution(resolve(width=64, device="cuda"), asked)
    assert not is_resolution(resolve(width=32), asked)
    assert not is_resolution(asked, asked)
    assert not is_resolution(ModelConfig(name="custom", target="a:B"), ModelConfig())


def test_a_run_that_goes_on_elsewhere_keeps_its_network(tmp_path: Path) -> None:
    make_table(200).to_csv(tmp_path / "table.csv", index=False)
    words = [*SMALL, f"data.path={tmp_path / 'table.csv'}", "data.target=y", f"run.dir={tmp_path / 'run'}",
             "model.name=auto", "train.max_steps=2"]  # fmt: skip
    Engine(load_config(None, words)).run()
    file = tmp_path / "run" / "model.json"
    kept = json.loads(file.read_text())
    assert (kept["name"], kept["num_members"]) == ("tabm", 16)
    # as a GPU would have chosen
    for changed, is_kept in (({"num_members": 32}, True), ({"width": 32}, False)):
        file.write_text(json.dumps(kept | changed))
        engine = Engine(load_config(None, [*words, "train.max_steps=4"]))
        engine.prepare()
        assert (engine.training.config.model.num_members == 32) is is_kept
        engine.close()
    file.write_text('{"width": "wide"}')
    with pytest.raises(RunFolderError, match="holds no network's settings"):
        Engine(load_config(None, words)).prepare()
    file.unlink()
    assert Engine(load_config(None, [*words, "train.max_steps=4"])).run()["network"] == kept
    assert load_bundle(tmp_path / "run").info["config"]["model"] == kept
