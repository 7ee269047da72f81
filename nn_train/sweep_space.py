"""A sweep's file, as `wandb sweep` reads it, and its trials' settings: a pure function of file, seed and index."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import Any

import yaml

from nn_train.errors import ConfigError

WORDS_MACRO = "${args_no_hyphens}"  # wandb puts the trial's `section.key=value` words in its place
MACROS = {"${env}": ["/usr/bin/env"], "${interpreter}": ["python"]}
METRIC = re.compile(r"(best|final/val)/\w+")

Draw = Callable[[Mapping[str, Any], float], Any]  # a parameter's keys and a number in [0, 1) -> a value


def _between(low: float, high: float, u: float) -> float:
    return low + u * (high - low)


def _logarithmic(p: Mapping[str, Any], u: float) -> float:
    return math.exp(_between(math.log(p["min"]), math.log(p["max"]), u))


def _rounded(p: Mapping[str, Any], value: float) -> float:
    return round(value / p.get("q", 1)) * p.get("q", 1)


def _weighted(p: Mapping[str, Any], u: float) -> Any:
    reached = 0.0
    for value, share in zip(p["values"], p["probabilities"], strict=True):
        reached += share
        if u < reached:
            return value
    return p["values"][-1]


# The distributions of wandb's sweeps that are drawn here, under wandb's own names.
DISTRIBUTIONS: dict[str, Draw] = {
    "constant": lambda p, u: p["value"],
    "categorical": lambda p, u: p["values"][int(u * len(p["values"]))],
    "categorical_w_probabilities": _weighted,
    "int_uniform": lambda p, u: p["min"] + int(u * (p["max"] - p["min"] + 1)),
    "uniform": lambda p, u: _between(p["min"], p["max"], u),
    "q_uniform": lambda p, u: _rounded(p, _between(p["min"], p["max"], u)),
    "log_uniform_values": _logarithmic,
    "q_log_uniform_values": lambda p, u: _rounded(p, _logarithmic(p, u)),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sweep:
    """What the file says. `parameters` holds each setting's keys, its distribution among them."""

    name: str
    method: str
    metric: str
    maximize: bool
    command: tuple[str, ...]
    parameters: dict[str, dict[str, Any]]
    run_cap: int | None
    has_early_terminate: bool

    @property
    def num_grid(self) -> int | None:
        """Trials of the whole grid; None where settings are drawn."""
        if self.method != "grid":
            return None
        return math.prod(len(_grid_values(keys)) for keys in self.parameters.values())

    def settings(self, index: int, *, seed: int) -> dict[str, Any]:
        """The settings of a trial, counted from 0.

        A setting's draw depends on its own name, the seed and the index alone: with one more in the file the others
        stay as they are. Of a grid the last setting changes fastest.
        """
        if self.method == "grid":
            chosen = {}
            for name, keys in reversed(self.parameters.items()):
                values = _grid_values(keys)
                index, place = divmod(index, len(values))
                chosen[name] = values[place]
            return {name: chosen[name] for name in self.parameters}
        return {
            name: _short(DISTRIBUTIONS[keys["distribution"]](keys, Random(f"{seed} {index} {name}").random()), keys)
            for name, keys in self.parameters.items()
        }

    def start_command(self, words: list[str]) -> list[str]:
        """The command of a trial with these words."""
        macros = MACROS | {WORDS_MACRO: words}
        return [word for chunk in self.command for word in macros.get(chunk, [chunk])]


def to_words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words, written as wandb's agent writes them."""
    return [f"{name}={value}" for name, value in settings.items()]


def _grid_values(keys: Mapping[str, Any]) -> list[Any]:
    if "values" in keys:
        return list(keys["values"])
    return [keys["value"]] if "value" in keys else list(range(keys["min"], keys["max"] + 1))


def _short(value: Any, keys: Mapping[str, Any]) -> Any:
    """A drawn number to six digits that count, and never beyond its bounds."""
    if "min" not in keys:
        return value
    return min(max(float(f"{value:.6g}") if isinstance(value, float) else value, keys["min"]), keys["max"])


def read_sweep(file: Path) -> Sweep:
    """Read a sweep's file. Raises ConfigError where it, or this program, cannot start trials from it."""

    def fail(what: str, fix: str) -> ConfigError:
        return ConfigError(what, where=str(file), fix=fix)

    try:
        # as wandb reads it, YAML 1.1, and not as the run's own files are read
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise fail(f"the sweep's file cannot be read: {error}", "name a file such as configs/sweep.yaml") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise fail(f"this is not YAML: {error}", "mend the line it names") from None
    if not isinstance(values, dict) or not isinstance(values.get("parameters"), dict) or not values["parameters"]:
        raise fail("a sweep has parameters", "parameters: {model.width: {values: [128, 256]}}")
    method = values.get("method")
    if method not in ("grid", "random"):
        raise fail(
            f"method {method} needs wandb's server to choose settings",
            "method: random or grid here, or `wandb sweep FILE` and `wandb agent ID` with a server",
        )
    metric = values.get("metric")
    name, goal = (metric.get("name"), metric.get("goal", "minimize")) if isinstance(metric, dict) else (None, None)
    if not isinstance(name, str) or not METRIC.fullmatch(name) or goal not in ("minimize", "maximize"):
        raise fail(
            f"metric {metric} is nothing that trials are compared by: a validation metric and its goal",
            "metric: {name: best/log_loss, goal: minimize}; or name: final/val/METRIC, goal: maximize",
        )
    command = values.get("command")
    if not isinstance(command, list) or WORDS_MACRO not in command:
        raise fail(
            f"the command does not hold {WORDS_MACRO}",
            f"command: ['${{env}}', python, -m, nn_train.train, '{WORDS_MACRO}']",
        )
    unknown = [
        chunk for chunk in command if re.fullmatch(r"\$\{.*\}", str(chunk)) and chunk not in (*MACROS, WORDS_MACRO)
    ]
    if unknown:
        raise fail(f"{unknown[0]} of the command means nothing here", f"one of {', '.join((*MACROS, WORDS_MACRO))}")
    cap = values.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise fail(f"run_cap {cap} is no number of trials", "run_cap: 8")
    return Sweep(
        name=re.sub(r"[^\w.-]+", "-", str(values.get("name") or file.stem)),
        method=method,
        metric=name,
        maximize=goal == "maximize",
        command=tuple(str(chunk) for chunk in command),
        parameters={
            str(key): _read_parameter(str(key), keys, method=method, fail=fail)
            for key, keys in values["parameters"].items()
        },
        run_cap=cap,
        has_early_terminate="early_terminate" in values,
    )


def _read_parameter(name: str, keys: Any, *, method: str, fail: Callable[[str, str], ConfigError]) -> dict[str, Any]:
    """A parameter's keys with its distribution, which wandb infers from them in the same way."""
    if not re.fullmatch(r"\w+\.\w+(\..+)?", name):
        raise fail(f"parameter '{name}' is no setting", "section.key, as in optim.peak_lr")
    if not isinstance(keys, dict) or "parameters" in keys:
        raise fail(f"parameter {name} has no keys of its own", "{values: [...]}, {value: X} or {min: X, max: Y}")
    keys = dict(keys)
    numbers = {key: keys[key] for key in ("min", "max", "q") if key in keys}
    wrong = [key for key, value in numbers.items() if not isinstance(value, int | float) or isinstance(value, bool)]
    if wrong:
        # 1e-4 is a text in YAML 1.1, and wandb would send it on as one
        raise fail(f"{name}.{wrong[0]} is {numbers[wrong[0]]!r}, which YAML 1.1 reads as no number", "1.0e-4 or 0.0001")
    if "distribution" not in keys:
        whole = all(isinstance(value, int) for value in numbers.values())
        inferred = "values" if "values" in keys else "value" if "value" in keys else "min"
        keys["distribution"] = {
            "values": "categorical_w_probabilities" if "probabilities" in keys else "categorical",
            "value": "constant",
            "min": "int_uniform" if whole else "uniform",
        }[inferred]
    _check_parameter(name, keys, method=method, fail=fail)
    return keys


def _check_parameter(name: str, keys: dict[str, Any], *, method: str, fail: Callable[[str, str], ConfigError]) -> None:
    kind = keys["distribution"]
    if kind not in DISTRIBUTIONS:
        raise fail(f"{name}: distribution {kind} is not drawn here", f"one of {', '.join(DISTRIBUTIONS)}")
    if kind.startswith("categorical"):
        values, shares = keys.get("values"), keys.get("probabilities")
        if not isinstance(values, list) or not values:
            raise fail(f"{name} has no values", "values: [128, 256]")
        if kind.endswith("probabilities") and not (
            isinstance(shares, list) and len(shares) == len(values) and math.isclose(sum(shares), 1)
        ):
            raise fail(f"{name}: probabilities {shares} are not one for each value, 1 in sum", "probabilities: [...]")
    elif kind == "constant":
        if "value" not in keys:
            raise fail(f"{name} has no value", "value: 128")
    elif not ("min" in keys and "max" in keys and keys["min"] < keys["max"]):
        raise fail(f"{name}: min is not below max", "{min: X, max: Y}")
    elif kind == "int_uniform" and not (isinstance(keys["min"], int) and isinstance(keys["max"], int)):
        raise fail(f"{name}: min and max of int_uniform are whole numbers", "{min: 1, max: 4}")
    elif "log" in kind and keys["min"] <= 0:
        raise fail(f"{name}: min of {kind} is not above 0", "min: 0.0001")
    if method == "grid" and not (kind == "int_uniform" or "values" in keys or kind == "constant"):
        raise fail(f"{name}: a grid has no end of {kind}", "values: [...], or method: random")
