"""Settings: what is refused, what is understood, and that help, schema and dump are true."""

import json
import os
import re
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from nn_train.config import check_config, dump_config, load_config
from nn_train.config_help import help_text, schema_text
from nn_train.errors import ConfigError
from nn_train.settings import SECTIONS, Config, changed_keys
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
        (["model.name=mpl"], "model.name='mpl': input should be 'auto', 'linear', 'mlp'"),
        (["split.val=0.6", "split.test=0.4"], "leave no rows to train on"),
        (["split.method=time"], "needs split.column=NAME"),
        (["split.method=files"], "needs split.val_path=FILE"),
        (["train.micro_batch_size=999", "train.global_batch_size=256"], "more than train.global_batch_size=256"),
        (["train.gradient_reduction=exact", "train.canonical_slices=3"], "not a power of two"),
        (["data.drop=[churn]"], "data.drop holds the target 'churn'"),
        (["data.weight=churn"], "data.weight=churn is named by data.target as well"),
        (
            ["train.class_weights=balancd"],
            "train.class_weights=balancd is none of no, balanced, {CLASS: WEIGHT, ...} and [WEIGHT, ...]",
        ),
        (["train.class_weights.yes=0"], "train.class_weights.yes=0 is no number above 0"),
        (["train.class_weights={yes: many}"], "train.class_weights.yes=many is no number above 0"),
        (["train.class_weights=3"], "is none of no, balanced, {CLASS: WEIGHT, ...} and [WEIGHT, ...]"),
        (["train.class_weights=[]"], "holds no number; give one for each class, in the classes' order"),
        (
            ["train.class_weights=[1,0]"],
            "train.class_weights: 0, which is for class 2 of 2 in their order, is no number",
        ),
        (
            ["train.class_weights=[1,2,1e7]"],
            "which is for class 3 of 3 in their order, is no number above 0 and up to 1e+06",
        ),
        (["train.class_weights=[.nan,1]"], "train.class_weights: nan, which is for class 1 of 2"),
        (["train.class_weights=[true,1]"], "train.class_weights: True, which is for class 1 of 2"),
        (["train.class_weights=[1,many]"], "train.class_weights: 'many', which is for class 2 of 2"),
        (["train.class_weights=[1,[2]]"], "train.class_weights: [2], which is for class 2 of 2"),
        (["train.class_weights=[1,3"], "'[1,3' is not closed"),
        (["data.task=regression", "train.class_weights=[1,3]"], "are for classes, and the target is a number"),
        (["train.loss=hinge"], "train.loss='hinge'"),
        (["train.label_smoothing=1"], "train.label_smoothing=1: input should be less than 1"),
        (["train.focal_gamma=-1"], "train.focal_gamma=-1"),
        (["train.huber_delta=0"], "train.huber_delta=0"),
        (["data.task=regression", "train.class_weights=balanced"], "are for classes, and the target is a number"),
        (["data.task=regression", "train.label_smoothing=0.1"], "is for classes, and the target is a number"),
        (["data.task=binary", "train.loss=mae"], "train.loss=mae is for numbers, and the task is binary"),
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
        words=[
            "train.class_weights={yes: 2, no: 0.5, 1: 3}",
            "train.max_time=1h30m",
            "data.columns.a=numeric",
            "train.grad_clip=no",
            "data.drop=a,b",
        ]
    )
    assert config.train.max_time == 5400
    assert config.data.drop == ("a", "b")
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config
    assert check_config(yaml.safe_load(text), where="") == config


def test_weights_in_the_order_of_the_classes_are_dumped_and_read_back(tmp_path: Path) -> None:
    config = load_config(words=["train.class_weights=[1,3]"])
    text = dump_config(config)
    assert load_config(write(tmp_path, text)) == config == check_config(yaml.safe_load(text), where="")
    named = load_config(write(tmp_path, text), ["train.class_weights.yes=3"])
    assert named.train.class_weights == {"yes": 3}  # a word replaces the list


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


# a sweep is wandb's format, and its own test checks it
SHIPPED = set((ROOT / "configs").glob("*.yaml")) - {ROOT / "configs" / "sweep.yaml"}


@pytest.mark.parametrize("path", sorted(SHIPPED), ids=lambda path: path.name)
def test_the_schema_accepts_the_shipped_configs_and_refuses_a_typo(path: Path) -> None:
    validator = Draft202012Validator(json.loads(schema_text()))
    values = yaml.safe_load(path.read_text())
    assert not list(validator.iter_errors(values))
    assert list(validator.iter_errors(values | {"trian": {}}))


def test_settings_that_change_what_a_step_computes_are_told_from_those_that_do_not() -> None:
    old = load_config()
    assert changed_keys(old, load_config(words=["train.max_epochs=7", "tracking.mode=disabled", "run.dir=x"])) == []
    for word in ("data.weight=w", "train.class_weights=balanced", "train.loss=focal", "train.label_smoothing=0.1"):
        assert len(changed_keys(old, load_config(words=[word]))) == 1
    assert changed_keys(old, load_config(words=["model.dropout=0.3"])) == ["model.dropout: auto -> 0.3"]
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


# --- anything ---------------------------------------------------------------------------------------------------------

LIGHT = settings(max_examples=150, deadline=None, database=None)
KEYS = [(section, key) for section, model in SECTIONS.items() for key in model.model_fields]
# what YAML reads as something else, or cannot read
WORDS = [
    "no", "off", "yes", "true", "null", "~", "", " ", "=", "-", "- a", "? a", "a: b", "a # b", "&a", "*a", "<<", "%",
    "@", "`", "1e-3", "1e5", "-1.5E+3", ".5", "5.", ".inf", ".nan", "0x1f", "0x", "0b_", "0o7", "007", "1_0", "1:99",
    "9" * 400, "9" * 5000, "1e999", "٣", "٣s", "10m", "1h30m", "9" * 400 + "s", "2024-01-01", "2024-99-99",
    "2024-01-01 25:00:00", "[", "]", "{", "[" * 3000, "{a: 1}", "[a, [b]]", "&a [*a]", "!!int x", "!!float x",
    "!!timestamp x", "!!set {a}", "!!python/object:os.system", "!!binary x", "'", '"', "\\", "\t", "\n", "a\nb",
    "\r", "\0", "a\0b", "\x1b", "\x7f", "\x85", "\u2028", "\ufeff", "\ud800", "\U0001f986", "é", "a,b",
    "~nouser/x", "..", "**", "[!", "x" * 300, "/" + "a/" * 3000, "../../data/telco.csv", "__import__",
]  # fmt: skip

texts = st.one_of(st.sampled_from(WORDS), st.text(max_size=8))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    texts,
    st.dates(),
    st.datetimes(),
    st.binary(max_size=4),
)
plain_values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(texts.filter(lambda text: len(text) < 99), st.integers(), st.none()), inner, max_size=3
        ),
    ),
    max_leaves=4,
)
some_settings = st.lists(st.tuples(st.sampled_from(KEYS), plain_values), max_size=4)


def nested(chosen: list[tuple[tuple[str, str], Any]]) -> dict[str, dict[str, Any]]:
    """The chosen settings over the two that a config must have."""
    values: dict[str, dict[str, Any]] = {"data": {"path": "t.csv", "target": "y"}}
    for (section, key), value in chosen:
        values.setdefault(section, {})[key] = value
    return values


def settle(load: Callable[[], Config]) -> Config | None:
    """A config that can be written, or None after a look at the error: there is nothing third."""
    try:
        config = load()
    except ConfigError as error:
        assert str(error).strip()
        return None
    dump_config(config).encode()
    return config


def settle_bytes(content: bytes) -> Config | None:
    """What `content` is as a config file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.yaml"
        path.write_bytes(content)
        return settle(lambda: load_config(path))


@LIGHT
@given(chosen=some_settings)
def test_any_values_are_a_config_or_one_error(chosen: list) -> None:
    settle(lambda: check_config(nested(chosen), where="here"))


@LIGHT
@given(values=st.dictionaries(st.one_of(st.sampled_from(list(SECTIONS)), texts), plain_values, max_size=4))
def test_any_sections_are_a_config_or_one_error(values: dict) -> None:
    settle(lambda: check_config(values, where="here"))


@LIGHT
@given(chosen=some_settings)
def test_any_values_in_yaml_are_a_config_or_one_error(chosen: list) -> None:
    settle_bytes(yaml.dump(nested(chosen), allow_unicode=True).encode("utf-8", "surrogatepass"))


pieces = st.one_of(
    st.sampled_from([f"\n{section}:".encode() for section in SECTIONS]),
    st.sampled_from([f"\n  {key}: ".encode() for _, key in KEYS]),
    st.sampled_from([word.encode("utf-8", "surrogatepass") for word in WORDS]),
    st.sampled_from(
        [b"\n", b"  ", b": ", b"- ", b"#", b"\xff", b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b"---\n", b"%YAML 9\n"]
    ),
    st.binary(max_size=4),
)


@LIGHT
@given(content=st.lists(pieces, max_size=14).map(b"".join))
def test_any_bytes_are_a_config_or_one_error(content: bytes) -> None:
    settle_bytes(content)


@LIGHT
@given(edits=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 12), pieces), max_size=3))
def test_a_damaged_config_is_a_config_or_one_error(edits: list[tuple[int, int, bytes]]) -> None:
    content = WHOLE_CONFIG.encode()
    for place, length, piece in edits:
        place %= len(content) + 1
        content = content[:place] + piece + content[place + length :]
    assert settle_bytes(content) or edits


@LIGHT
@given(words=st.lists(st.one_of(texts, st.tuples(st.sampled_from(KEYS), texts)), max_size=4))
def test_any_words_are_a_config_or_one_error(words: list) -> None:
    lines = [word if isinstance(word, str) else f"{word[0][0]}.{word[0][1]}={word[1]}" for word in words]
    config = settle(lambda: load_config(words=lines))
    if config is not None:
        assert settle_bytes(dump_config(config).encode()) == config


# --- any valid config -------------------------------------------------------------------------------------------------

FILE_KEYS = {("data", "path"), ("split", "val_path"), ("split", "test_path")}


def strategy_of(annotation: Any, limits: dict[str, Any]) -> st.SearchStrategy:
    """All values that a setting of this type may have, within its limits."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return strategy_of(arguments[0], limits | limits_of(arguments[1:]))
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin in (Union, types.UnionType):
        return st.one_of([strategy_of(argument, limits) for argument in arguments])
    if origin is tuple and get_origin(arguments[0]) is Annotated:  # numbers that increase
        numbers = strategy_of(arguments[0], {})
        return st.lists(numbers, min_size=limits["min_length"], max_size=4, unique=True).map(sorted).map(tuple)
    if origin is tuple:
        one = texts_of({}) if arguments[0] is str else strategy_of(arguments[0], {})
        return st.lists(one, min_size=limits.get("min_length", 0), max_size=4).map(tuple)
    if origin is dict:
        return st.dictionaries(texts_of({}), strategy_of(arguments[1], {}), max_size=3)
    if annotation is int:
        least = limits.get("ge", limits.get("gt", -(10**6)))
        return st.integers(least, limits.get("le", limits.get("lt", 10**18 + 1) - 1))
    if annotation is float:
        return st.floats(
            limits.get("ge", limits.get("gt")),
            limits.get("le", limits.get("lt")),
            exclude_min="gt" in limits,
            exclude_max="lt" in limits,
            allow_nan=False,
            allow_infinity=False,
        )
    return {bool: st.booleans(), type(None): st.none(), str: texts_of(limits)}[annotation]


ascii_signs = st.characters(codec="ascii")  # of others Python and Pydantic do not agree which are letters


def texts_of(limits: dict[str, Any]) -> st.SearchStrategy[str]:
    """Texts within the limits, among them those that look like something else."""
    if "pattern" in limits:
        fitting = [word for word in WORDS if re.search(limits["pattern"], word) and not word.endswith("\n")]
        made = st.from_regex(limits["pattern"], fullmatch=True, alphabet=ascii_signs)
        return st.one_of(st.sampled_from(fitting), made) if fitting else made
    least, most = limits.get("min_length", 0), limits.get("max_length", 300)
    fitting = [word for word in WORDS if least <= len(word) <= most]
    fitting = [word for word in fitting if "\ud800" not in word]
    return st.one_of(st.sampled_from(fitting), st.text(min_size=least, max_size=min(most, 8)))


def limits_of(metadata: Any) -> dict[str, Any]:
    """The limits that Pydantic keeps in a field's metadata, by their names."""
    names = ("ge", "gt", "le", "lt", "min_length", "max_length", "pattern")
    found: dict[str, Any] = {}
    for item in metadata:
        inner = item.metadata if isinstance(item, FieldInfo) else [item]
        found |= {
            name: getattr(part, name) for part in inner for name in names if getattr(part, name, None) is not None
        }
    return found


VALID = {
    (section, key): strategy_of(field.annotation, limits_of(field.metadata))
    for section, model in SECTIONS.items()
    for key, field in model.model_fields.items()
}
file_names = texts_of({}).map(lambda name: os.path.normpath("/tables/" + (name.replace("/", "_").strip(".") or "t")))


@st.composite
def valid_settings(draw: st.DrawFn) -> dict[str, dict[str, Any]]:
    """A config's values, each within its range."""
    keys = draw(st.lists(st.sampled_from(KEYS), max_size=12, unique=True))
    values = nested([(key, draw(file_names if key in FILE_KEYS else VALID[key])) for key in keys])
    values["data"].setdefault("path", "/tables/t.csv")
    if not os.path.isabs(values["data"]["path"]):
        values["data"]["path"] = "/tables/t.csv"
    if draw(st.booleans()):
        values.setdefault("split", {}).update(column="c", val_path="/tables/v.csv", test_path="/tables/w.csv")
    return values


@settings(LIGHT, max_examples=120)
@given(values=valid_settings())
def test_whatever_is_within_its_range_is_taken_dumped_and_read_back_equal(values: dict[str, dict[str, Any]]) -> None:
    try:
        config = check_config(values, where="here")
    except ConfigError as error:
        with pytest.raises(ValidationError) as caught:
            Config.model_validate(values)
        kinds = {item["type"] for item in caught.value.errors()}
        assert kinds == {"value_error"}, error  # settings that contradict each other, and no range or type
        return
    for section, chosen in values.items():
        for key, value in chosen.items():
            assert getattr(getattr(config, section), key) == value
    text = dump_config(config)
    assert settle_bytes(text.encode()) == config
    assert check_config(yaml.safe_load(text), where="") == config  # also by plain YAML
    assert dump_config(check_config(config.model_dump(), where="")) == text
    assert changed_keys(config, config) == []


WHOLE_CONFIG = dump_config(check_config(nested([]), where=""))
