"""The schema of a run: every setting with its meaning, unit, range and default. Imports no torch.

A value has one home here; everything that can be derived from it (micro-batches, total steps) is
computed where it is used and never written back.
"""

import re
import reprlib
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nn_train.schema import Kind, Task

MISSING_WORDS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "-nan", "<NA>")
EXACT_ROWS = 5_000_000
MOST_CLASS_WEIGHT = 1e6
CLASS_WEIGHTS_FORMS = "no, balanced, {CLASS: WEIGHT, ...} and [WEIGHT, ...]"
MOST_COST = 1e9
COSTS_FORMS = "give {false_positive: COST, false_negative: COST}, or {TRUE_CLASS: {PREDICTED_CLASS: COST}}"
# by task, the default first
LOSSES: dict[Task, tuple[str, ...]] = {
    "binary": ("cross_entropy", "focal"),
    "multiclass": ("cross_entropy", "focal"),
    "regression": ("mse", "mae", "huber", "quantile"),
}
# by network and by embedding of numbers, the options that each has
_INPUT_OPTIONS = (
    "embedding", "num_embedding", "num_frequencies", "frequency_scale", "one_hot_max", "embedding_dropout",
)  # fmt: skip
_LAYER_OPTIONS = (*_INPUT_OPTIONS, "num_blocks", "width", "dropout")
MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "linear": _INPUT_OPTIONS,
    "mlp": _LAYER_OPTIONS,
    "resnet": (*_LAYER_OPTIONS, "hidden_factor", "residual_dropout"),
    "ft-transformer": (
        "embedding", "num_frequencies", "frequency_scale", "embedding_dropout", "num_blocks", "width", "dropout",
        "num_heads", "hidden_factor", "attention_dropout", "residual_dropout",
    ),
    "tabm": (*_LAYER_OPTIONS, "num_members"),
    "tabm-mini": (*_LAYER_OPTIONS, "num_members"),
    "realmlp": _LAYER_OPTIONS,
    "custom": ("target", "options"),
}  # fmt: skip
EMBEDDING_OPTIONS: dict[str, tuple[str, ...]] = {
    "none": (),
    "linear": ("num_embedding",),
    "ple": ("num_embedding",),
    "ple-tree": ("num_embedding",),
    "periodic": ("num_embedding", "num_frequencies", "frequency_scale"),
    "periodic-lite": ("num_embedding", "num_frequencies", "frequency_scale"),
    "pbld": ("num_embedding", "num_frequencies", "frequency_scale"),
}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}

Metric = Literal[
    "auto",
    "log_loss",
    "roc_auc",
    "average_precision",
    "brier_score",
    "accuracy",
    "balanced_accuracy",
    "f1",
    "matthews_corrcoef",
    "rmse",
    "mae",
    "r2",
    "f1_macro",
    "f1_weighted",
    "precision",
    "recall",
    "ks_statistic",
    "lift_at_10_percent",
    "expected_calibration_error",
    "top_2_accuracy",
    "median_absolute_error",
    "pearson_r",
    "mape",
    "pinball_loss",
]


Baseline = Literal["majority", "mean", "linear", "hist_gradient_boosting", "lightgbm", "catboost", "xgboost"]


def _no_as_word(value: Any) -> Any:
    return "no" if value is False else value


def _off_as_none(value: Any) -> Any:
    """Read `no`, `off`, `false` and `none` as None, as a person writes them."""
    if value is False or (isinstance(value, str) and value.lower() in {"no", "off", "false", "none", "null", "never"}):
        return None
    return value


def duration_s(value: Any) -> Any:
    """Read `90`, `"90s"`, `"10m"` or `"1h30m"` as seconds."""
    value = _off_as_none(value)
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?[smhd])+", value):
        return sum(float(n) * SECONDS[unit] for n, unit in re.findall(r"(\d+(?:\.\d+)?)([smhd])", value))
    return value


def _one_as_list(value: Any) -> Any:
    """Read a single name, or names with commas between them, as a list; null as none."""
    if value is None:
        return ()
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def _one_or_several(value: Any) -> Any:
    """A name, or a list of different names."""
    names: list[Any] = list(value) if isinstance(value, list | tuple) else [value]
    if not all(isinstance(name, str | int | float) and not isinstance(name, bool) for name in names):
        raise ValueError(f"data.target={value} is no name of a column, nor a list of names; put it into quotes")
    if not names or len(set(map(str, names))) < len(names):
        raise ValueError("data.target names no column, or one twice")
    return value


def _tab(value: Any) -> Any:
    """Read a backslash and a t as a tab."""
    return "\t" if value == "\\t" else value


def _weight_by_class(value: Any) -> Any:
    """Read `no`, `balanced`, or a number for each class, by its name or its place; a class may be called 1 or true."""
    if isinstance(value, str | bool):
        word = _no_as_word(value)
        if word not in ("no", "balanced"):
            raise ValueError(f"train.class_weights={word} is none of {CLASS_WEIGHTS_FORMS}")
        return word
    if isinstance(value, list | tuple):
        if not value:
            raise ValueError("train.class_weights=[] holds no number; give one for each class, in the classes' order")
        for place, weight in enumerate(value, start=1):
            if not _is_class_weight(weight):
                raise ValueError(
                    f"train.class_weights: {reprlib.repr(weight)}, which is for class {place} of {len(value)} in their "
                    f"order, is no number above 0 and up to {MOST_CLASS_WEIGHT:g}"
                )
        return tuple(value)
    if not isinstance(value, dict):
        raise ValueError(f"train.class_weights is none of {CLASS_WEIGHTS_FORMS}")
    for name, weight in value.items():
        if not _is_class_weight(weight):
            raise ValueError(
                f"train.class_weights.{name}={weight} is no number above 0 and up to {MOST_CLASS_WEIGHT:g}"
            )
    return {str(name).lower() if isinstance(name, bool) else str(name): weight for name, weight in value.items()}


def _is_class_weight(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= MOST_CLASS_WEIGHT


def _names_or_switch(value: Any) -> Any:
    """Read `yes` and `no` as a switch, and names, one or with commas between them, as a list."""
    if isinstance(value, str) and value.lower() in {"yes", "on", "true", "all"}:
        return True
    value = _off_as_none(value)
    return False if value is None else value if value is True else _one_as_list(value)


def _costs(value: Any) -> Any:
    """Read `no`, {false_positive: COST, false_negative: COST} or {TRUE_CLASS: {PREDICTED_CLASS: COST}}."""
    value = _off_as_none(value)
    if value is None:
        return None
    if not isinstance(value, dict) or not value:
        raise ValueError(f"evaluation.costs: {COSTS_FORMS}")
    are_mistakes = all(not isinstance(inner, dict) for inner in value.values())
    rows = {"": value} if are_mistakes else value
    for name, row in rows.items():
        if not isinstance(row, dict):
            raise ValueError(f"evaluation.costs.{name}={row}: {COSTS_FORMS}")
        for other, cost in row.items():
            key = f"{name}.{other}".removeprefix(".")
            if are_mistakes and other not in ("false_positive", "false_negative"):
                raise ValueError(f"evaluation.costs.{key}: {COSTS_FORMS}")
            is_number = isinstance(cost, int | float) and not isinstance(cost, bool)
            if not is_number or not 0 <= cost <= MOST_COST:
                raise ValueError(f"evaluation.costs.{key}={cost} is no number from 0 to {MOST_COST:g}")
    return (
        value if are_mistakes else {_word(name): {_word(o): c for o, c in row.items()} for name, row in value.items()}
    )


def _word(name: Any) -> str:
    """A class that YAML read as a number or a truth value, as text."""
    return str(name).lower() if isinstance(name, bool) else str(name)


Auto = Literal["auto"]
Share = Annotated[float, Field(ge=0, lt=1)]  # of what is silenced
ClassWeight = Annotated[float, Field(gt=0, le=MOST_CLASS_WEIGHT)]
OptionalCount = Annotated[int | None, BeforeValidator(_off_as_none)]
Duration = Annotated[float | None, BeforeValidator(duration_s)]
Names = Annotated[tuple[str, ...], BeforeValidator(_one_as_list)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and truth values where a number is meant."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    @model_validator(mode="before")
    @classmethod
    def _refuse_bool_as_number(cls, values: Any) -> Any:
        for name, field in cls.model_fields.items():
            value = values.get(name) if isinstance(values, dict) else None
            is_number = field.annotation in (int, float)
            is_switch = bool in (field.annotation, *get_args(field.annotation))
            if (value is True and not is_switch) or (value is False and is_number):
                raise ValueError(f"{name}: {str(value).lower()} was given where a number or a word is meant")
        return values


class DataConfig(Section):
    """The table to learn from."""

    path: str
    """File, folder or glob: CSV, TSV (also .gz .bz2 .xz .zip .zst), Parquet, Arrow, JSON lines."""
    target: Annotated[str | tuple[str, ...], BeforeValidator(_one_or_several)]
    """Name of the column to predict; [a, b, ...] are several columns of numbers, learned by one network."""
    drop: Names = ()
    """Columns to leave out."""
    id: Names = ()
    """Columns that identify a row: not used as features, kept beside the predictions."""
    columns: dict[str, Kind | Literal["drop", "keep"]] = {}
    """Kind of single columns where the inference is wrong; `keep` keeps a column that looks like an id."""
    task: Literal["auto", "binary", "multiclass", "regression"] = "auto"
    """What to predict; `auto` infers it from the target."""
    positive: str | None = None
    """Class counted as positive in a binary task; default: the last of the two in sorted order."""
    weight: str | None = None
    """Column of each row's weight in the training loss; no feature. Weights are positive, and 0 leaves a row out;
    validation loss, metrics and report count every row once. Default: all rows weigh the same."""
    format: Literal["auto", "csv", "tsv", "parquet", "arrow", "json"] = "auto"
    """File format; `auto` goes by the file's name."""
    delimiter: Annotated[str | None, BeforeValidator(_tab)] = Field(default=None, min_length=1, max_length=1)
    """Character between the fields of a text file; default: a comma for CSV, a tab for TSV."""
    encoding: str = "utf-8"
    """Character encoding of text files."""
    missing_values: Names = MISSING_WORDS
    """Texts that mean a missing value; spaces around them are ignored."""
    infinite: Literal["error", "missing"] = "error"
    """What to do with an infinite number: stop and name it, or treat it as missing."""
    rare_classes: Literal["error", "keep"] = "error"
    """What to do with a class of fewer rows than there are splits: stop and name it, or keep its rows for the training,
    so that it is learned and never judged (split.method=random)."""
    max_rows: OptionalCount = Field(default=None, ge=1)
    """Use only the first rows of the table; default: all."""
    cache_dir: str | None = None
    """Folder for packed rows; default: $XDG_CACHE_HOME/nn_train or ~/.cache/nn_train."""
    preparation: Literal["auto", "whole", "stream"] = "auto"
    """How packed rows are made: from the `whole` table in memory, or as a `stream`, by all processes together and in
    memory that does not grow with the rows; scales and bins are then fitted on a sample of the train rows, and rows go
    to splits by a hash. `auto`: whole up to 50 million values, else a stream."""
    workers: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Processes on a machine, for each that was launched, that make packed rows as a stream. `auto`: one for each
    core."""
    bad_shards: Literal["stop", "skip"] = "stop"
    """What a stream does with a file or row group that cannot be read: `stop` and name it, or `skip` and count it."""
    placement: Literal["auto", "device", "memory", "disk"] = "auto"
    """Where packed rows are while the run reads them: on the accelerator (of a CPU, a copy for each process), in
    `memory`, one copy for the processes of a machine, or on the `disk`. `auto`: the first of these with room for them.
    It changes no number of a run."""

    @property
    def targets(self) -> tuple[str, ...]:
        """The column, or the columns, to predict."""
        return (self.target,) if isinstance(self.target, str) else self.target

    @property
    def is_several(self) -> bool:
        """Are several columns predicted at once?"""
        return len(self.targets) > 1

    @property
    def target_name(self) -> str:
        """The target for people."""
        return ", ".join(self.targets)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.is_several and (self.task not in ("auto", "regression") or self.positive is not None):
            raise ValueError(
                "several columns in data.target are numbers to predict; classes have a run for each column"
            )
        return self


class SplitConfig(Section):
    """Which rows train, which choose (validation), and which judge (test)."""

    method: Literal["random", "group", "time", "column", "files"] = "random"
    """`random` (stratified for classes), whole `group`s, in `time` order, a `column` that says train, val or test,
    or separate `files`."""
    val: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, ge=0, lt=1)
    """Share of the rows for the test; 0: there are none, and the validation rows, which chose the weights, are all that
    is judged."""
    column: str | None = None
    """The group, time or split column of these methods; it is not a feature, save for time."""
    val_path: str | None = None
    """Validation table of `files`."""
    test_path: str | None = None
    """Test table of `files`."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split; apart from run.seed, so that runs with other seeds are judged on the same rows."""
    folds: OptionalCount = Field(default=None, ge=2, le=100)
    """Cut the rows that are not for the test into so many folds, alike in their classes, of which one validates, in
    place of the share split.val (methods random and group); `python -m nn_train.ensemble` trains on all of them."""
    fold: int = Field(default=0, ge=0)
    """The fold that validates, counted from 0."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"split.val={self.val} and split.test={self.test} leave no rows to train on")
        if self.method in ("group", "time", "column") and self.column is None:
            raise ValueError(f"split.method={self.method} needs split.column=NAME")
        if self.folds is not None and self.method not in ("random", "group"):
            raise ValueError(f"split.folds={self.folds} goes with split.method=random or group, not {self.method}")
        if self.fold >= (self.folds or 1):
            raise ValueError(f"split.fold={self.fold} is none of split.folds={self.folds or 'no'}; the first is 0")
        if self.method == "files" and not (self.val_path and self.test_path):
            raise ValueError("split.method=files needs split.val_path=FILE and split.test_path=FILE")
        return self


class PreprocessConfig(Section):
    """From columns to numbers; everything is fitted on the train rows only."""

    scaler: Literal["quantile", "standard", "robust", "robust-clip", "none"] = "quantile"
    """How numbers are scaled: to a normal distribution by quantiles, by mean and deviation, by median and quartiles,
    by these with far numbers bent smoothly to 3 at most (`robust-clip`, RealMLP's own), or not."""
    imputation: Literal["mean", "median"] = "mean"
    """What stands for a missing number, after scaling."""
    indicators: bool = True
    """Add a column that says where a number was missing."""
    growing: Literal["drop", "keep"] = "drop"
    """What to do, where the split is by time, with numbers and parts of dates that lie beyond the train rows in nine of
    ten validation rows: a network has learned nothing of them, and must guess."""
    min_level_rows: Auto | Annotated[int, Field(ge=1)] = "auto"
    """Levels of a category with fewer train rows share one slot with unseen ones, since a network learns rare ones by
    heart. `auto`: one of 500 train rows, from 5 to 500; half of it, and so on, where no level has so many."""
    max_levels: int = Field(default=10_000, ge=2)
    """Most levels of one category; rarer ones share one slot with unseen ones."""
    hash_buckets: int = Field(default=0, ge=0, le=10_000_000)
    """Buckets for a category with more levels than max_levels: each level, an unseen one too, goes into one by a hash
    of its text; 0: none, and max_levels holds. Such a network exports to no other program."""
    near_constant: float = Field(default=1e-6, ge=0)
    """Numeric columns whose train values span no more than this are dropped."""
    num_bins: int = Field(default=48, ge=2, le=512)
    """Bins of the piecewise-linear embedding of a numeric column (model.embedding ple and ple-tree), at most."""


class ModelConfig(Section):
    """The network. `auto` is chosen by the network, the train rows and the device, and the run tells what it chose."""

    name: Literal["auto", "linear", "mlp", "resnet", "ft-transformer", "tabm", "tabm-mini", "realmlp", "custom"] = (
        "auto"
    )
    """`linear` model; `mlp`, a multilayer perceptron; `resnet`, with residual blocks; `ft-transformer`, attention among
    columns; `tabm`, many perceptrons in one that share most weights, and `tabm-mini`, that share nearly all; `realmlp`,
    a perceptron with tuned details; `custom`, your own (model.target). `auto`: tabm; on a CPU mlp from 20,000 train
    rows on, or from 300,000 numbers in them."""
    embedding: Literal["auto", "none", "linear", "ple", "ple-tree", "periodic", "periodic-lite", "pbld"] = "auto"
    """How numbers become vectors: not at all (`none`); `linear`, with ReLU but for ft-transformer; `ple`, piecewise
    linear between quantiles of the column, or `ple-tree`, between splits that a decision tree finds for the target;
    `periodic`, waves of trained frequencies, `periodic-lite`, with one layer for all columns, `pbld`, beside the number
    itself. `auto`: ple; none for linear, linear for ft-transformer, pbld for realmlp."""
    num_blocks: Auto | Annotated[int, Field(ge=1, le=32)] = "auto"
    """Hidden layers, or residual or attention blocks. `auto`: 2; 3 for ft-transformer, realmlp and tabm without
    embeddings."""
    width: Auto | Annotated[int, Field(ge=1, le=16384)] = "auto"
    """Units of a hidden layer, or of a token. `auto`: 256 (resnet and ft-transformer 192, tabm 512); on a CPU less for
    ft-transformer (64) and tabm (128)."""
    dropout: Auto | Share = "auto"
    """Share of hidden units that is silenced in a training step. `auto`: 0.1; 0.15 for resnet and realmlp."""
    num_members: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Perceptrons in one (tabm, tabm-mini). `auto`: 32; on a CPU 16."""
    num_heads: Auto | Annotated[int, Field(ge=1, le=256)] = "auto"
    """Heads of an attention (ft-transformer); they divide the width. `auto`: the most of 8, 4, 2 and 1 that do."""
    hidden_factor: Auto | Annotated[float, Field(gt=0, le=64)] = "auto"
    """Units inside a block over its width (resnet, ft-transformer). `auto`: 2; 4/3 for ft-transformer."""
    residual_dropout: Auto | Share = "auto"
    """Share that is silenced of what a block adds (resnet, ft-transformer). `auto`: 0."""
    attention_dropout: Auto | Share = "auto"
    """Share of attention that is silenced (ft-transformer). `auto`: 0.2."""
    num_embedding: Auto | Annotated[int, Field(ge=1, le=512)] = "auto"
    """Width of a numeric column's embedding; for ft-transformer it is the width. `auto`: 16; 24 of periodic ones, 32 of
    linear ones, 4 of pbld."""
    num_frequencies: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """Waves of a numeric column (embeddings periodic, periodic-lite, pbld). `auto`: 48; 16 of pbld."""
    frequency_scale: Auto | Annotated[float, Field(gt=0, le=1000)] = "auto"
    """Deviation of the first frequencies (the same embeddings); worth tuning. `auto`: 0.01; 0.1 of pbld."""
    one_hot_max: Auto | Annotated[int, Field(ge=0)] = "auto"
    """Categories with up to this many codes are one-hot, larger ones are embedded. `auto`: 8."""
    embedding_dropout: Auto | Share = "auto"
    """Share of rows in which the level of an embedded category is taken for an unseen one in a training step, so that
    the network leans less on single levels, and learns what an unseen one means. `auto`: 0."""

    target: str | None = Field(default=None, pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """Class of a custom network as MODULE:CLASS, a torch.nn.Module that takes num_numbers, cardinalities and
    num_outputs by name, and maps x_num and x_cat to logits."""
    options: dict[str, bool | int | float | str | tuple[int, ...] | None] = {}
    """What else a custom network is made with, by name."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name == "auto" and (self.is_given("target") or self.is_given("options")):
            raise ValueError("model.target and model.options are for a network of your own; model.name=custom")
        if self.name != "auto" and (problem := self.misfit()):
            raise ValueError("; ".join(problem))
        return self

    def misfit(self) -> tuple[str, str] | None:
        """An option that this network does not have or cannot have so, and its mend; of a name other than `auto`."""
        own = MODEL_OPTIONS[self.name]
        if self.name == "custom" and self.target is None:
            return "model.name=custom needs a class", "model.target=MODULE:CLASS"
        given = [name for name in type(self).model_fields if name != "name" and self.is_given(name)]
        for name in given:
            if name not in own:
                owners = [model for model, names in MODEL_OPTIONS.items() if name in names]
                return f"model.{name} is no option of {self.name}", (
                    f"model.{name}=auto, or model.name={' or '.join(owners)}"
                )
        if self.embedding != "auto":
            foreign = {option for options in EMBEDDING_OPTIONS.values() for option in options}
            for name in given:
                if name in foreign - set(EMBEDDING_OPTIONS[self.embedding]):
                    owners = [embedding for embedding, names in EMBEDDING_OPTIONS.items() if name in names]
                    return f"model.{name} is no option of model.embedding={self.embedding}", (
                        f"model.{name}=auto, or model.embedding={' or '.join(owners)}"
                    )
        if self.name == "ft-transformer" and self.embedding == "none":
            return "ft-transformer needs an embedding of numbers", "model.embedding=auto"
        if self.embedding == "pbld" and 1 in (self.num_embedding, self.width if self.name == "ft-transformer" else 2):
            return "model.embedding=pbld needs a width of 2 or more", "model.num_embedding=auto"
        if isinstance(self.num_heads, int) and isinstance(self.width, int) and self.width % self.num_heads:
            return f"model.num_heads={self.num_heads} does not divide model.width={self.width}", "model.num_heads=auto"
        return None

    def is_given(self, name: str) -> bool:
        """Was an option chosen by hand?"""
        return getattr(self, name) not in ("auto", None, {})


class OptimConfig(Section):
    """How the weights are updated. The learning rate is a function of the step alone, stretched over all steps."""

    name: Literal["adamw", "adam", "sgd", "schedulefree", "muon"] = "adamw"
    """`adamw`; `adam`, whose decay is part of the gradient; `sgd` with momentum; `schedulefree`, AdamW that averages
    its weights in place of a schedule; `muon`, which moves the hidden layers' matrices by orthogonal steps of AdamW's
    size, and the rest by AdamW (torch 2.9 or newer)."""
    peak_lr: float = Field(default=2e-3, gt=0, le=10)
    """Highest learning rate, reached after the warm-up. `python -m nn_train.find_lr` looks for one."""
    weight_decay: float = Field(default=3e-4, ge=0)
    """Weight decay, decoupled save for adam and sgd; biases, norms, embeddings and frequencies are spared."""
    embedding_weight_decay: float = Field(default=0.0, ge=0)
    """Weight decay of the embeddings of categories."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment; of schedulefree, how near to the average the gradients are taken."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd, and of muon's matrices."""
    schedule: Literal["constant", "cosine", "linear", "one-cycle", "coslog4"] = "constant"
    """Learning rate after the warm-up: level; a half `cosine`, or a `linear` fall, down to zero at the last step;
    `one-cycle` up from a 25th of the peak in the first 30 % of the steps and down to zero; `coslog4`, RealMLP's four
    waves, each twice as long as the one before: (1 - cos(2 pi log2(1 + 15 t))) / 2 at the share t of the steps."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from zero; one-cycle and coslog4 rise by themselves."""
    ema_decay: Annotated[float | None, BeforeValidator(_off_as_none)] = Field(default=None, gt=0, lt=1)
    """Judge, select and keep a moving average of the weights, of which each step replaces the share 1 - ema_decay (at
    first more: 9 / (10 + steps)); 0.999 is usual. `no`: the latest weights."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.schedule in ("one-cycle", "coslog4") and self.warmup_steps:
            raise ValueError(f"optim.schedule={self.schedule} rises by itself; write optim.warmup_steps=0")
        if self.name == "schedulefree":
            wrong = [
                f"optim.{key}={value}"
                for key, value, is_wrong in (
                    ("schedule", "constant", self.schedule != "constant"),
                    ("ema_decay", "no", self.ema_decay is not None),
                    ("beta1", 0.9, self.beta1 == 0),
                )
                if is_wrong
            ]
            if wrong:
                raise ValueError(f"optim.name=schedulefree averages its weights by itself; write {' '.join(wrong)}")
        return self


class TrainConfig(Section):
    """The loop. The global batch is the unit: what a step sees does not depend on the number of processes."""

    global_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Rows of one optimizer step, over all processes. `auto`: by the train rows, from 32 below 2,800 of them to 1,024
    from 108,000 on."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most rows of one forward and backward on one process; the rest is accumulated. `auto`: its whole share."""
    shuffle: Literal["auto", "full", "blocks"] = "auto"
    """Order of the train rows: a `full` shuffle of every epoch, or of `blocks` and in windows of them, which a table on
    the disk is read in fast. `auto`: full where the packed train rows have up to 1 GiB, else blocks."""
    num_canonical_shards: Auto | Annotated[int, Field(ge=1, le=65_536)] = "auto"
    """Parts of the train rows that give a share of each batch (shuffle blocks). A number of processes that divides them
    reads its own ones alone; they divide the global batch. `auto`: the largest power of two up to 64 that does."""
    shuffle_window: int = Field(default=262_144, ge=1)
    """Rows over all shards that are shuffled among each other at a time (shuffle blocks); a process holds its share of
    two windows in memory."""
    max_epochs: int = Field(default=200, ge=1)
    """Passes over the train rows."""
    max_steps: OptionalCount = Field(default=None, ge=1)
    """Optimizer steps; default: as many as the epochs hold."""
    non_finite: Literal["stop", "skip", "restore"] = "stop"
    """Where a loss or gradient is not finite, every process does the same: `stop` and name the rows, `skip` the step,
    or `restore` the last checkpoint and go past those rows."""
    max_time: Duration = Field(default=None, gt=0)
    """Time to train, in seconds or as 90s, 10m, 1h30m; the run then ends as done."""
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """Evaluate on the validation rows after every epoch, or after this many steps."""
    eval_batch_size: int = Field(default=2048, ge=1)
    """Rows of one forward in an evaluation."""
    selection_metric: Metric | Annotated[str, Field(pattern=r"^-?[\w.]+:[\w.]+$")] = "auto"
    """Validation metric that chooses the best weights; `auto`: log_loss for classes, rmse for numbers,
    pinball_loss for quantiles. Your own: `my_pkg.metrics:gini`, a function of (truth, prediction), with a `-` in front
    where less is better; greater_is_better, where it has that, must agree."""
    early_stopping: OptionalCount = Field(default=16, ge=1)
    """Stop after this many evaluations without a better selection metric; `no` trains to the end."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_as_word)] = "no"
    """Precision of forward and backward; fp16 needs a GPU."""
    grad_clip: Annotated[float | None, BeforeValidator(_off_as_none)] = Field(default=1.0, gt=0)
    """Largest norm of the gradient; `no` clips nothing."""
    loss: Literal["auto", "cross_entropy", "focal", "mse", "mae", "huber", "quantile"] = "auto"
    """What a row's error costs. Classes: `cross_entropy`, or `focal`, which is that times (1 - probability of the true
    class) to the power of focal_gamma; numbers, in deviations of the train target: `mse`, `mae`, `huber`, or
    `quantile`, the pinball loss of train.quantiles. `auto`: cross_entropy or mse. The validation loss is the same,
    without weights and label smoothing."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of each target that is spread evenly over all classes."""
    focal_gamma: float = Field(default=2.0, ge=0, le=100)
    """How little rows count that are predicted well already (loss focal); 0 is cross_entropy."""
    huber_delta: float = Field(default=1.0, gt=0)
    """Error up to which huber is half the square, and from which it grows in a straight line."""
    quantiles: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = Field(
        default=(0.1, 0.5, 0.9), min_length=1, max_length=99
    )
    """Quantiles of the target that are predicted at once under loss quantile, increasing; the one nearest to 0.5 is the
    prediction, the first and the last are the interval."""
    class_weights: Annotated[
        Literal["no", "balanced"] | dict[str, ClassWeight] | Annotated[tuple[ClassWeight, ...], Field(min_length=1)],
        BeforeValidator(_weight_by_class),
    ] = "no"
    """Weight of each class in the training loss, times data.weight: `balanced` gives each class the same part of it
    (train rows / (classes * train rows of the class)), {CLASS: WEIGHT} names them, and others weigh 1; [1, 3] lists
    one for each class in their order, which is sorted, the positive one of two last. Validation loss, metrics and
    report count every row once."""
    gradient_reduction: Literal["fast", "exact"] = "fast"
    """`fast`: DDP's all-reduce; `exact`: weights are bit-identical on any number of processes, slower."""
    canonical_slices: int = Field(default=8, ge=1, le=1024)
    """Slices of a global batch in exact mode; a power of two, and a multiple of the number of processes."""
    gradient_compression: Annotated[Literal["no", "bf16"], BeforeValidator(_no_as_word)] = "no"
    """Gradients on their way between processes: `bf16` sends half the bytes, and rounds to 8 bits of precision. It is
    for slow networks, is refused under gradient_reduction exact, and one process has nothing to send."""
    compile: bool = False
    """Compile the network with torch.compile, which needs a C++ compiler. On a CPU it pays without dropout alone, since
    compiled dropout is slow there."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads of one process on the CPU; fixed, since with another number sums differ in their last bits."""
    profile: bool = False
    """Measure a short window of each start (its steps 10 to 40, fewer of a short one): profile.json, terminal and page
    say what a step's time goes into and which process is slow; profile/ holds traces of a few steps. Weights keep their
    bits."""
    check_every_steps: int = Field(default=10, ge=1)
    """Steps between two agreements of all processes on stopping (signal, max_time) and on timed checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        micro, whole = self.micro_batch_size, self.global_batch_size
        if isinstance(micro, int) and isinstance(whole, int) and micro > whole:
            raise ValueError(
                f"train.micro_batch_size={micro} is more than train.global_batch_size={whole}; lower it, or write auto"
            )
        if any(low >= high for low, high in pairwise(self.quantiles)):
            raise ValueError(f"train.quantiles={list(self.quantiles)} do not increase; write each once, in order")
        if self.gradient_reduction == "exact" and self.canonical_slices & (self.canonical_slices - 1):
            raise ValueError(f"train.canonical_slices={self.canonical_slices} is not a power of two (1, 2, 4, 8, ...)")
        if self.gradient_reduction == "exact" and self.gradient_compression != "no":
            raise ValueError(
                f"train.gradient_compression={self.gradient_compression} rounds the gradients, and "
                "train.gradient_reduction=exact promises their bits; write train.gradient_compression=no, or fast"
            )
        return self

    def misfit(self, task: Task) -> tuple[str, str] | None:
        """A setting that a task cannot have, and its mend."""
        if task == "regression" and self.class_weights != "no":
            return "train.class_weights are for classes, and the target is a number", "train.class_weights=no"
        if task == "regression" and self.label_smoothing:
            return "train.label_smoothing is for classes, and the target is a number", "train.label_smoothing=0"
        fitting = LOSSES[task]
        if self.loss not in ("auto", *fitting):
            kind = "numbers" if task != "regression" else "classes"
            return f"train.loss={self.loss} is for {kind}, and the task is {task}", f"train.loss={' or '.join(fitting)}"
        return None


class EvaluationConfig(Section):
    """From logits to probabilities and decisions; all of it is fitted on the validation rows alone."""

    calibration: Annotated[Literal["temperature", "isotonic", "no"], BeforeValidator(_no_as_word)] = "temperature"
    """`temperature`: divide the logits by the one number that minimises the log-loss. `isotonic`: bend the
    probabilities along a rising curve (of several classes each has one), which mends more and asks for a thousand rows
    or so. Neither changes the order of a class's probabilities in a binary task. `no`: leave them."""
    threshold_metric: Annotated[
        Literal["auto", "f1", "balanced_accuracy", "accuracy", "matthews_corrcoef", "no"], BeforeValidator(_no_as_word)
    ] = "auto"
    """What the decision threshold of a binary task maximises; `no`: it is a half. `auto`: f1, or what evaluation.costs
    say."""
    costs: Annotated[dict[str, float | dict[str, float]] | None, BeforeValidator(_costs)] = None
    """What wrong decisions cost, so that each row gets the class of the least expected cost: {false_positive: COST,
    false_negative: COST} for two classes, or {TRUE_CLASS: {PREDICTED_CLASS: COST}}. A mistake that is not named costs
    1, and a right decision nothing. Default: none."""
    exact_rows: int = Field(default=EXACT_ROWS, ge=1)
    """Rows of a split up to which all its scores are held, and every metric is exact. A larger one is judged block by
    block: metrics that need all scores (ROC AUC, medians) come from histograms, and what is fitted or drawn from scores
    takes an even sample of at most a million rows; metrics.json and the page say which."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.costs is not None and self.threshold_metric not in ("auto", "no"):
            raise ValueError(
                f"evaluation.costs and evaluation.threshold_metric={self.threshold_metric} each choose the decisions: "
                "leave one of them out"
            )
        return self

    @property
    def threshold_by(self) -> str:
        """The metric that chooses the threshold: threshold_metric, and what its `auto` means."""
        if self.threshold_metric != "auto":
            return self.threshold_metric
        return "f1" if self.costs is None else "no"


class CheckpointConfig(Section):
    """Saving the state of training, and going on from it."""

    every_steps: OptionalCount = Field(default=None, ge=1)
    """Steps between two checkpoints; default: by time alone."""
    every_time: Duration = Field(default=60.0, gt=0)
    """Time between two checkpoints, in seconds or as 90s, 10m; `no` switches it off."""
    keep_last: int = Field(default=2, ge=2)
    """Newest valid checkpoints that are kept; each holds the best weights so far as well."""
    max_age: Duration = Field(default=3600.0, gt=0)
    """Where checkpoints cannot be written, training goes on for this long after the last one, and then fails; `no`:
    it goes on to its end."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest valid checkpoint of the run folder; `never` starts over and replaces the run."""


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """wandb: `offline` into the run folder (no account needed), `online`, or `disabled`."""
    project: str = "nn_train"
    """wandb project."""
    group: str | None = Field(default=None, min_length=1, max_length=128)
    """Runs that wandb shows together, such as seeds or the trials of a sweep; default: none."""
    log_model: bool = True
    """Log bundle.zip as a wandb artifact of type `model`, under the run's name."""
    aliases: Names = ("latest",)
    """Aliases of that artifact's version. The program adds none: write `[latest, best]` for the run that you chose."""
    num_rows: int = Field(default=1000, ge=0, le=10_000)
    """Test rows in wandb's table of predictions; 0 sends no row: no predictions, no worst rows, and not the page, which
    shows some."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics.jsonl."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for alias in self.aliases:
            if re.search(r"[/:]", alias) or re.fullmatch(r"v\d+", alias) or not alias.strip() or len(alias) > 128:
                raise ValueError(
                    f"tracking.aliases: '{alias}' is no alias: wandb takes up to 128 characters without / and :, and "
                    "keeps v0, v1, ... for itself"
                )
        return self


class ReportConfig(Section):
    """The page and its plots."""

    page: bool = True
    """Draw the plots and report.html; without them the run folder holds all else."""
    baselines: Annotated[bool | tuple[Baseline, ...], BeforeValidator(_names_or_switch)] = True
    """Train other models on the same split, to stand beside the network: majority or mean, linear, scikit-learn's
    gradient boosting, and lightgbm, catboost and xgboost with their defaults where they are installed (CatBoost's
    default is a thousand trees, which take their time). `no`, or a list of those that are wanted."""
    baseline_rows: int = Field(default=200_000, ge=1)
    """Rows of a split that the other models see: of a larger one an even sample. They are fitted on those of the train
    rows, and stand beside the network's judgement of the same test rows; page and terminal say so."""
    importance: bool = True
    """Measure by how much the validation metric falls when one column is shuffled, and how the prediction moves along
    the most important ones; it is not used to choose anything."""
    attributions: Annotated[Literal["auto", "required", "no"], BeforeValidator(_no_as_word)] = "auto"
    """What each column adds to the predictions of the worst test rows, by captum's integrated gradients: `auto`, where
    captum is installed; `required`, and no start without it."""
    dpi: int = Field(default=110, ge=40, le=600)
    """Resolution of the plots, in dots per inch."""


class WatchdogConfig(Section):
    """Ending what hangs, for a launcher to start it again; the time-out is five times the longest step so far."""

    floor: Duration = Field(default=60.0, gt=0)
    """Shortest time-out, in seconds or as 90s, 10m."""
    cap: Duration = Field(default=600.0, gt=0)
    """Longest time-out, and that of what was not seen yet (six times as long for a baseline model); `no`: none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.floor is None:
            raise ValueError("watchdog.floor is a time; watchdog.cap=no switches the watchdog off")
        return self


class RunConfig(Section):
    """Name, place and seed of the run."""

    name: str | None = Field(default=None, pattern=r"^[\w.\-]+$")
    """Name of the run; default: the table's file name."""
    dir: str | None = None
    """The run folder itself; default: runs/NAME in the working directory."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of weights, data order and dropout."""


class Config(Section):
    """A whole run."""

    data: DataConfig
    split: SplitConfig = SplitConfig()
    preprocess: PreprocessConfig = PreprocessConfig()
    model: ModelConfig = ModelConfig()
    optim: OptimConfig = OptimConfig()
    train: TrainConfig = TrainConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    report: ReportConfig = ReportConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, names in (("drop", self.data.drop), ("id", self.data.id)):
            if found := [name for name in self.data.targets if name in names]:
                raise ValueError(f"data.{key} holds the target '{found[0]}'")
        if self.data.weight is not None:
            other = dict.fromkeys(self.data.targets, "data.target")
            other |= dict.fromkeys(self.data.columns, "data.columns")
            if self.split.method != "random" and self.split.column is not None:
                other[self.split.column] = "split.column"
            if self.data.weight in other:
                raise ValueError(f"data.weight={self.data.weight} is named by {other[self.data.weight]} as well")
        if self.data.task != "auto" and (problem := self.train.misfit(self.data.task)):
            raise ValueError("; ".join(problem))
        if self.data.task == "regression" and self.evaluation.costs is not None:
            raise ValueError("evaluation.costs are for classes, and data.task=regression predicts a number")
        if self.data.is_several and self.train.loss == "quantile":
            raise ValueError("train.loss=quantile is for one target, and data.target names several")
        return self

    @property
    def has_tree_bins(self) -> bool:
        """Does the network's embedding of numbers want bins that are found for the target?"""
        return self.model.embedding == "ple-tree"

    @property
    def name(self) -> str:
        """Name of the run: run.name, or the table's file name without its endings."""
        if self.run.name:
            return self.run.name
        path = Path(self.data.path)
        if any(sign in path.name for sign in "*?["):
            path = path.parent
        return re.sub(r"[^\w\-]+", "_", path.name.split(".")[0]) or "run"

    @property
    def run_dir(self) -> Path:
        """The run folder, absolute."""
        return Path(self.run.dir or f"runs/{self.name}").expanduser().absolute()


SECTIONS: dict[str, type[Section]] = {
    name: field.annotation
    for name, field in Config.model_fields.items()
    if isinstance(field.annotation, type) and issubclass(field.annotation, Section)
}

# Settings that may change between two starts of one run: they do not touch what a step computes.
FREE_KEYS = (
    "checkpoint.",
    "tracking.",
    "report.",
    "evaluation.",
    "watchdog.",
    "run.name",
    "run.dir",
    "data.cache_dir",
    "train.max_epochs",
    "train.max_steps",
    "train.max_time",
    "train.non_finite",
    "train.check_every_steps",
    "train.profile",
)

# How a table's bytes are read: what may be said anew of a table to be predicted.
READING_KEYS = ("format", "delimiter", "encoding", "missing_values", "max_rows")


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as `section.key` -> value; `data.columns` stays one value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and not prefix:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def changed_keys(old: Config, new: Config) -> list[str]:
    """Settings that make a checkpoint of `old` meaningless for `new`, as `key: old -> new`.

    The length of the training is free, except under a schedule that is stretched over it.
    """
    free = FREE_KEYS
    if new.optim.schedule != "constant":
        free = tuple(key for key in free if key not in ("train.max_epochs", "train.max_steps"))
    before, after = flatten(old.model_dump(mode="json")), flatten(new.model_dump(mode="json"))
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in after
        if before[key] != after[key] and not key.startswith(free)
    ]
