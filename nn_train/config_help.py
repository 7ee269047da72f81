"""What `--help` prints and what editors complete: both are drawn from the settings themselves."""

import json
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from nn_train.settings import SECTIONS, Config

USAGE = """\
usage: train.py [--config FILE] [--debug] [--print-config] [section.key=value ...]

Train, evaluate and report a neural network on a table.

  accelerate launch nn_train/train.py                       the default config on what this machine has
  python nn_train/train.py data.path=my.csv data.target=y   your own table, on one GPU or the CPU
  torchrun --nproc-per-node 2 nn_train/train.py             two processes

options:
  --config FILE          the run's YAML (default: configs/telco.yaml)
  section.key=value      override a setting; the value is read as YAML
  --debug                fast smoke run: few rows, few steps, no tracker, detailed errors, overfit one batch
  --print-config         show the resolved config and stop
  --write-schema FILE    write the JSON schema that editors use for completion, and stop
  -h, --help             this text

settings, as `section.key (type, range; default)`:
"""


def help_text() -> str:
    """Every setting with its meaning, unit, range and default."""
    lines = [USAGE]
    for section, model in SECTIONS.items():
        lines.append(f"{section}: {model.__doc__}")
        for name, field in model.model_fields.items():
            lines.append(f"  {section}.{name} ({_type_text(field)}; {_default_text(field)})")
            lines.append(f"      {' '.join((field.description or '').split())}")
        lines.append("")
    return "\n".join(lines)


def schema_text() -> str:
    """The JSON schema of a config file."""
    return json.dumps(Config.model_json_schema(), indent=2, ensure_ascii=False) + "\n"


def _type_text(field: FieldInfo) -> str:
    names = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [
        f"{names[key]} {getattr(rule, key)}"
        for rule in field.metadata
        for key in names
        if getattr(rule, key, None) is not None
    ]
    return ", ".join([_annotation_text(field.annotation), *bounds])


def _annotation_text(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Literal:
        return " | ".join(str(value) for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " | ".join(_annotation_text(part) for part in get_args(annotation))
    if origin is tuple:
        return "list of numbers" if float in get_args(get_args(annotation)[0]) else "list of text"
    if origin is dict:
        return "NAME: " + _annotation_text(get_args(annotation)[1])
    if origin is not None:
        return _annotation_text(get_args(annotation)[0])
    return {str: "text", int: "whole number", float: "number", bool: "true | false", types.NoneType: "no"}.get(
        annotation, str(annotation)
    )


def _default_text(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    default = field.default
    if isinstance(default, tuple | dict):
        default = json.dumps(default)
    return f"default {'none' if default is None else default}"
