"""The schema of a run: every setting with its meaning, unit, range and default. Imports no torch.

A value has one home here; everything that can be derived from it (micro-batches, total steps) is
computed where it is used and never written back.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from nn_train.schema import Kind

MISSING_WORDS = ("", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "None", "#N/A", "-nan", "<NA>")
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
]


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


def _tab(value: Any) -> Any:
    """Read a backslash and a t as a tab."""
    return "\t" if value == "\\t" else value


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
            if (value is True and field.annotation is not bool) or (value is False and is_number):
                raise ValueError(f"{name}: {str(value).lower()} was given where a number or a word is meant")
        return values


class DataConfig(Section):
    """The table to learn from."""

    path: str
    """File, folder or glob: CSV, TSV (also .gz .bz2 .xz .zip .zst), Parquet, Arrow, JSON lines."""
    target: str
    """Name of the column to predict."""
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
    max_rows: OptionalCount = Field(default=None, ge=1)
    """Use only the first rows of the table; default: all."""
    cache_dir: str | None = None
    """Folder for packed rows; default: $XDG_CACHE_HOME/nn_train or ~/.cache/nn_train."""


class SplitConfig(Section):
    """Which rows train, which choose (validation), and which judge (test)."""

    method: Literal["random", "group", "time", "column", "files"] = "random"
    """`random` (stratified for classes), whole `group`s, in `time` order, a `column` that says train, val or test,
    or separate `files`."""
    val: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for validation."""
    test: float = Field(default=0.15, gt=0, lt=1)
    """Share of the rows for the test."""
    column: str | None = None
    """The group, time or split column of these methods; it is not a feature, save for time."""
    val_path: str | None = None
    """Validation table of `files`."""
    test_path: str | None = None
    """Test table of `files`."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Seed of the split; apart from run.seed, so that runs with other seeds are judged on the same rows."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.val + self.test >= 1:
            raise ValueError(f"split.val={self.val} and split.test={self.test} leave no rows to train on")
        if self.method in ("group", "time", "column") and self.column is None:
            raise ValueError(f"split.method={self.method} needs split.column=NAME")
        if self.method == "files" and not (self.val_path and self.test_path):
            raise ValueError("split.method=files needs split.val_path=FILE and split.test_path=FILE")
        return self


class PreprocessConfig(Section):
    """From columns to numbers; everything is fitted on the train rows only."""

    scaler: Literal["quantile", "standard", "robust", "none"] = "quantile"
    """How numbers are scaled: to a normal distribution by quantiles, by mean and deviation, by median and quartiles,
    or not."""
    imputation: Literal["mean", "median"] = "mean"
    """What stands for a missing number, after scaling."""
    indicators: bool = True
    """Add a column that says where a number was missing."""
    min_level_rows: int = Field(default=5, ge=1)
    """Levels of a category with fewer train rows share one slot with unseen ones."""
    max_levels: int = Field(default=10_000, ge=2)
    """Most levels of one category; rarer ones share one slot with unseen ones."""
    near_constant: float = Field(default=1e-6, ge=0)
    """Numeric columns whose train values span no more than this are dropped."""
    num_bins: int = Field(default=48, ge=2, le=512)
    """Bins of the piecewise-linear encoding of a numeric column (model mlp-ple)."""


class ModelConfig(Section):
    """The network."""

    name: Literal["mlp", "mlp-ple"] = "mlp-ple"
    """`mlp`: plain numbers; `mlp-ple`: piecewise-linear embeddings of the numbers."""
    num_blocks: int = Field(default=2, ge=1, le=32)
    """Hidden layers."""
    width: int = Field(default=256, ge=1, le=16384)
    """Units of a hidden layer."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Share of hidden units that is silenced in a training step."""
    num_embedding: int = Field(default=16, ge=1, le=512)
    """Width of a numeric column's embedding (model mlp-ple)."""
    one_hot_max: int = Field(default=8, ge=0)
    """Categories with up to this many codes are one-hot, larger ones are embedded."""


class OptimConfig(Section):
    """How the weights are updated: AdamW."""

    peak_lr: float = Field(default=2e-3, gt=0, le=10)
    """Highest learning rate, reached after the warm-up."""
    weight_decay: float = Field(default=3e-4, ge=0)
    """Decoupled weight decay; biases, norms and embeddings are spared."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the first moment."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the second moment."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate after the warm-up: level, or a half cosine down to zero at the last step."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises from zero."""


class TrainConfig(Section):
    """The loop. The global batch is the unit: what a step sees does not depend on the number of processes."""

    global_batch_size: int = Field(default=256, ge=1)
    """Rows of one optimizer step, over all processes."""
    micro_batch_size: Literal["auto"] | Annotated[int, Field(ge=1)] = "auto"
    """Most rows of one forward and backward on one process; the rest is accumulated. `auto`: its whole share."""
    max_epochs: int = Field(default=200, ge=1)
    """Passes over the train rows."""
    max_steps: OptionalCount = Field(default=None, ge=1)
    """Optimizer steps; default: as many as the epochs hold."""
    max_time: Duration = Field(default=None, gt=0)
    """Time to train, in seconds or as 90s, 10m, 1h30m; the run then ends as done."""
    eval_every: Literal["epoch"] | Annotated[int, Field(ge=1)] = "epoch"
    """Evaluate on the validation rows after every epoch, or after this many steps."""
    eval_batch_size: int = Field(default=2048, ge=1)
    """Rows of one forward in an evaluation."""
    selection_metric: Metric = "auto"
    """Validation metric that chooses the best weights; `auto`: log_loss for classes, rmse for numbers."""
    early_stopping: OptionalCount = Field(default=16, ge=1)
    """Stop after this many evaluations without a better selection metric; `no` trains to the end."""
    mixed_precision: Annotated[Literal["no", "bf16", "fp16"], BeforeValidator(_no_as_word)] = "no"
    """Precision of forward and backward; fp16 needs a GPU."""
    grad_clip: Annotated[float | None, BeforeValidator(_off_as_none)] = Field(default=1.0, gt=0)
    """Largest norm of the gradient; `no` clips nothing."""
    gradient_reduction: Literal["fast", "exact"] = "fast"
    """`fast`: DDP's all-reduce; `exact`: weights are bit-identical on any number of processes, slower."""
    canonical_slices: int = Field(default=8, ge=1, le=1024)
    """Slices of a global batch in exact mode; a power of two, and a multiple of the number of processes."""
    compile: bool = False
    """Compile the network with torch.compile."""
    cpu_threads: int = Field(default=1, ge=1)
    """Threads of one process on the CPU; fixed, since with another number sums differ in their last bits."""
    check_every_steps: int = Field(default=10, ge=1)
    """Steps between two agreements of all processes on stopping (signal, max_time) and on timed checkpoints."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if isinstance(self.micro_batch_size, int) and self.micro_batch_size > self.global_batch_size:
            raise ValueError(
                f"train.micro_batch_size={self.micro_batch_size} is more than train.global_batch_size="
                f"{self.global_batch_size}; lower it, or write auto"
            )
        if self.gradient_reduction == "exact":
            if self.canonical_slices & (self.canonical_slices - 1):
                raise ValueError(
                    f"train.canonical_slices={self.canonical_slices} is not a power of two (1, 2, 4, 8, ...)"
                )
            if isinstance(self.micro_batch_size, int) and self.micro_batch_size < self.slice_rows:
                raise ValueError(
                    f"train.micro_batch_size={self.micro_batch_size} is less than a slice of {self.slice_rows} rows in "
                    "exact mode; raise train.canonical_slices, or write auto"
                )
        return self

    @property
    def slice_rows(self) -> int:
        """Most rows of one canonical slice."""
        return -(-self.global_batch_size // self.canonical_slices)


class EvaluationConfig(Section):
    """From logits to probabilities and decisions; both are chosen on the validation rows."""

    calibration: Annotated[Literal["temperature", "no"], BeforeValidator(_no_as_word)] = "temperature"
    """Divide the logits by one temperature that minimises the validation log-loss, or leave them."""
    threshold_metric: Literal["f1", "balanced_accuracy", "accuracy", "matthews_corrcoef"] = "f1"
    """What the decision threshold of a binary task maximises."""


class CheckpointConfig(Section):
    """Saving the state of training, and going on from it."""

    every_steps: OptionalCount = Field(default=None, ge=1)
    """Steps between two checkpoints; default: by time alone."""
    every_time: Duration = Field(default=60.0, gt=0)
    """Time between two checkpoints, in seconds or as 90s, 10m; `no` switches it off."""
    keep_last: int = Field(default=2, ge=1)
    """Newest checkpoints that are kept; each holds the best weights so far as well."""
    resume: Literal["auto", "never"] = "auto"
    """`auto` goes on from the newest valid checkpoint of the run folder; `never` starts over and replaces the run."""


class TrackingConfig(Section):
    """Where metrics go besides metrics.jsonl, which is always written."""

    mode: Literal["offline", "online", "disabled"] = "offline"
    """wandb: `offline` into the run folder (no account needed), `online`, or `disabled`."""
    project: str = "nn_train"
    """wandb project."""
    log_every_steps: int = Field(default=10, ge=1)
    """Steps between two lines of metrics.jsonl."""


class ReportConfig(Section):
    """The page and its plots."""

    baselines: bool = True
    """Train majority or mean, linear and gradient-boosting models on the same split, to stand beside the network."""
    importance: bool = True
    """Measure by how much the test metric falls when one column is shuffled; it is not used to choose anything."""
    dpi: int = Field(default=110, ge=40, le=600)
    """Resolution of the plots, in dots per inch."""


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
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for key, names in (("drop", self.data.drop), ("id", self.data.id)):
            if self.data.target in names:
                raise ValueError(f"data.{key} holds the target '{self.data.target}'")
        return self

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
    "run.name",
    "run.dir",
    "data.cache_dir",
    "train.max_epochs",
    "train.max_steps",
    "train.max_time",
    "train.check_every_steps",
)


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
