"""From YAML and `section.key=value` words to a checked Config, and back. Imports no torch."""

import difflib
import glob
import json
import os
import re
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nn_train.errors import ConfigError
from nn_train.settings import SECTIONS, Config

__all__ = ["Config", "dump_config", "load_config", "parse_words", "project_root", "refuse_foreign_code"]

RUN_FILES = ("config.yaml", "environment.json", "status.json", "schema.json", "metrics.json", "bundle.zip")
IMPORT_KEYS = (("train", "selection_metric"),)  # whose values may name code
INPUT_PATHS = (("data", "path"), ("split", "val_path"), ("split", "test_path"))


def project_root() -> Path:
    """The folder that holds nn_train/, configs/ and data/."""
    return Path(__file__).resolve().parent.parent


class _Loader(yaml.SafeLoader):
    """YAML 1.2's idea of scalars: `1e-3` is a number, and only true and false are truth values."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.\d*|\.\d+|\d+(?=[eE]))([eE][-+]?\d+)?$|^[-+]?\.(inf|Inf|INF)$|^\.(nan|NaN|NAN)$"),
    list("-+.0123456789"),
)


def _load(text: str, *, is_text: bool = False) -> Any:
    """Read YAML. Raises YAMLError, also where PyYAML lets another error through: `2024-99-99`, `!!timestamp x`."""
    try:
        return yaml.load(text, Loader=yaml.BaseLoader if is_text else _Loader)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value is not what it looks like: {error}") from None


def load_config(path: str | Path | None = None, words: Sequence[str] = ()) -> Config:
    """Read a run's YAML, lay `section.key=value` words over it, and check the whole.

    A table's path that is written in the YAML is relative to that file (or, where nothing lies
    there, to the working directory); one given as a word is relative to the working directory.
    With no path the default, configs/telco.yaml, is read; a path that is not found from the
    working directory is looked for in the project.

    Raises:
        ConfigError: an unreadable file, an unknown key, a wrong type or range, or two settings
            that contradict each other; all problems at once.
    """
    file = Path(path) if path is not None else project_root() / "configs" / "telco.yaml"
    if not file.exists() and (project_root() / file).exists():
        file = project_root() / file  # `configs/telco.yaml` means the project's own from anywhere
    values = read_yaml(file)
    _resolve_inputs(values, file.resolve().parent)
    overrides = parse_words(words)
    _resolve_inputs(overrides, Path.cwd())
    for section, settings in overrides.items():
        base = values.get(section)
        values[section] = _merge(base, settings)
    return check_config(values, where=str(file) if path is not None or not words else "")


def refuse_foreign_code(path: str | Path | None, words: Sequence[str]) -> None:
    """Raise ConfigError where a config out of a run folder would have code imported that no word names."""
    file = Path(path).resolve() if path is not None else None
    if file is None or not file.is_file():
        return
    if file.name != RUN_FILES[0] and not any((file.parent / name).exists() for name in RUN_FILES):
        return
    given = parse_words(words)
    values = read_yaml(file)
    for section, key in IMPORT_KEYS:
        settings = values.get(section)
        value = settings.get(key) if isinstance(settings, dict) else None
        if isinstance(value, str) and ":" in value and key not in given.get(section, {}):
            raise ConfigError(
                f"this config of a run would import {value}",
                where=str(path),
                fix=f"if you trust it, say so: {section}.{key}={value}",
            )


def check_config(values: dict[str, Any], *, where: str) -> Config:
    """Build a Config from nested values. Raises ConfigError that names every wrong key."""
    _refuse_unknown(values, where)
    try:
        config = Config.model_validate(values)
        config.model_dump_json()
        return config
    except ValidationError as error:
        lines = [_problem(dict(item)) for item in error.errors()]
        raise ConfigError(
            "\n  ".join(lines), where=where, fix="python nn_train/train.py --help shows every key with its range"
        ) from None
    except ValueError:  # of the dump: words of a command line in another encoding
        raise ConfigError(
            "a setting holds text that is no Unicode", where=where, fix="write it, and name files, in UTF-8"
        ) from None


def parse_words(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Turn `section.key=value` words into nested values; the value is read as YAML."""
    values: dict[str, dict[str, Any]] = {}
    for word in words:
        key, sign, text = word.partition("=")
        section, dot, name = key.partition(".")
        if not sign or not dot:
            raise ConfigError(f"'{word}' is not section.key=value", fix=_suggest_key(key))
        name, inner_dot, inner = name.partition(".")
        value = _read_value(text, is_text=_is_text(section, name))
        values[section] = _merge(values.get(section), {name: {inner: value} if inner_dot else value})
    return values


def _merge(base: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` over `base`, key by key; a mapping such as data.columns is merged, not replaced."""
    merged = dict(base) if isinstance(base, dict) else {}
    for key, value in settings.items():
        merged[key] = _merge(merged.get(key), value) if isinstance(value, dict) else value
    return merged


def _is_text(section: str, name: str) -> bool:
    """Is the setting a name or names, which `007` and `2024-01-01` are as well?"""
    field = SECTIONS[section].model_fields.get(name) if section in SECTIONS else None
    return field is not None and field.annotation in (str, str | None, tuple[str, ...], str | tuple[str, ...])


def _read_value(text: str, *, is_text: bool) -> Any:
    if len(text) == 1 and not text.isalnum():
        return text  # a lone sign (data.delimiter=|) is meant as it is, whatever YAML would begin with it
    try:
        value = _load(text, is_text=is_text)
    except yaml.YAMLError as error:
        if text[:1] in "[{":
            raise ConfigError(f"'{text}' is not closed", fix="[a,b] with both brackets") from error
        return text
    return None if is_text and value in ("null", "~") else value


def dump_config(config: Config) -> str:
    """The resolved config as YAML that `load_config` reads back to an equal Config."""
    values = json.loads(config.model_dump_json())
    if values["train"]["mixed_precision"] == "no":
        values["train"]["mixed_precision"] = _Quoted("no")
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Quoted(str):
    """A text that any YAML reader must read as text."""


class _Dumper(yaml.SafeDumper):
    """Writes `_Quoted` in quotes."""


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """A text in quotes where our reader would take it for something else, or lose a sign of it."""
    if not text.isprintable():
        return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"')
    try:
        is_plain = _load(text) == text
    except yaml.YAMLError:
        is_plain = False
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if is_plain else "'")


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(
    _Quoted, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="'")
)


def read_yaml(file: Path) -> dict[str, Any]:
    """Read a YAML file of keys. Raises ConfigError that names the file, and the line of a mistake."""
    try:
        values = _load(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        near = sorted(str(other) for other in file.parent.glob("*.yaml"))
        raise ConfigError(
            "no such config file", where=str(file), fix=f"--config FILE; here are {', '.join(near) or 'no YAML files'}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the config file cannot be read: {error}", where=str(file), fix="--config FILE") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"this is not YAML: {error}", where=str(file), fix="mend the line it names") from None
    if not isinstance(values, dict):
        raise ConfigError(
            "a config is sections with keys in them", where=str(file), fix="data: {path: FILE, target: COLUMN}"
        )
    return values


def _resolve_inputs(values: dict[str, Any], folder: Path) -> None:
    for section, key in INPUT_PATHS:
        settings = values.get(section)
        if not isinstance(settings, dict):
            continue
        path = settings.get(key)
        if isinstance(path, str) and path:
            place = os.path.expanduser(path)  # where pathlib would raise an error for a user that is not known
            here, there = folder / place, Path.cwd() / place
            found = here if glob.glob(str(here)) or not glob.glob(str(there)) else there
            settings[key] = str(Path(found).absolute()) if ".." not in found.parts else str(_without_dots(found))


def _without_dots(path: Path) -> Path:
    """Resolve `a/../b` as text, so that globs and links stay as written."""
    parts: list[str] = []
    for part in path.absolute().parts:
        if part == ".." and len(parts) > 1:
            parts.pop()
        else:
            parts.append(part)
    return Path(*parts)


def _refuse_unknown(values: dict[str, Any], where: str) -> None:
    problems = []
    for section, settings in values.items():
        if section not in SECTIONS:
            near = difflib.get_close_matches(str(section), SECTIONS, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else _suggest_key(str(section))
            problems.append(f"unknown section '{section}'; {hint}")
        elif settings is None:
            values[section] = {}
        elif not isinstance(settings, dict):
            problems.append(f"{section}: expected keys, got {_show(settings)}")
        else:
            known = SECTIONS[section].model_fields
            problems += [
                f"unknown key '{section}.{key}'; {_suggest_key(f'{section}.{key}')}"
                for key in settings
                if key not in known
            ]
    values.update({section: settings or {} for section, settings in values.items()})
    if problems:
        raise ConfigError("\n  ".join(problems), where=where, fix="python nn_train/train.py --help shows every key")


def _suggest_key(key: str) -> str:
    known = [f"{section}.{name}" for section, model in SECTIONS.items() for name in model.model_fields]
    same_name = [name for name in known if name.split(".")[1] == key.split(".")[-1]]
    near = same_name or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    if not near:
        names = {name.split(".")[1]: name for name in known}
        near = [names[name] for name in difflib.get_close_matches(key.split(".")[-1], names, n=1, cutoff=0.5)]
    if not near and key in SECTIONS:
        near = [f"{key}.{next(iter(SECTIONS[key].model_fields))}"]
    return f"did you mean '{near[0]}'?" if near else f"the sections are {', '.join(SECTIONS)}"


def _problem(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-")))
    key = re.sub(r"\.(int|float|literal\[.*\])$", "", key)
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "missing":
        return f"{key} is missing; write {key}=VALUE"
    if error["type"] == "value_error":
        return message if "." in message.split("=")[0] or not key else f"{key}.{message}"
    return f"{key}={_show(error['input'])}: {message[0].lower()}{message[1:]}"


def _show(value: Any) -> str:
    """A value as Python writes it, cut: a few aliases of YAML can mean more text than a machine holds."""
    shown = reprlib.Repr()
    shown.maxlevel, shown.maxstring, shown.maxother = 3, 200, 200
    return shown.repr(value)
