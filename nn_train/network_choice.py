"""What `auto` means in the settings of the network: a pure function of the table's size and the device.

Sources of the defaults: the packages `tabm`, `rtdl_num_embeddings` and `rtdl_revisiting_models` of the networks'
authors, and RealMLP-TD of pytabkit. On a CPU, where a step of the authors' TabM takes a second, networks are smaller.
"""

from typing import Any

from nn_train.errors import ConfigError
from nn_train.settings import MODEL_OPTIONS, ModelConfig

# by device, the network for tables of fewer train rows than this; other devices than a CPU are taken for GPUs
BY_ROWS: dict[str, tuple[tuple[float, str], ...]] = {
    "cpu": ((20_000, "tabm"), (float("inf"), "mlp")),
    "gpu": ((float("inf"), "tabm"),),
}
MOST_CELLS = 300_000  # train rows x numeric inputs: with more of them members take minutes on a CPU
SIZES: dict[str, dict[str, Any]] = {
    "linear": {"embedding": "none"},
    "mlp": {"embedding": "ple", "num_blocks": 2, "width": 256, "dropout": 0.1},
    "resnet": {"embedding": "ple", "num_blocks": 2, "width": 192, "dropout": 0.15, "hidden_factor": 2.0},
    "ft-transformer": {"embedding": "linear", "num_blocks": 3, "width": 192, "dropout": 0.1, "hidden_factor": 4 / 3,
                       "attention_dropout": 0.2},
    "tabm": {"embedding": "ple", "width": 512, "dropout": 0.1, "num_members": 32},
    "tabm-mini": {"embedding": "ple", "width": 512, "dropout": 0.1, "num_members": 32},
    "realmlp": {"embedding": "pbld", "num_blocks": 3, "width": 256, "dropout": 0.15},
}  # fmt: skip
ON_CPU: dict[str, dict[str, Any]] = {
    "ft-transformer": {"num_blocks": 2, "width": 64},
    "tabm": {"width": 128, "num_members": 16},
    "tabm-mini": {"width": 128, "num_members": 16},
}
OF_EMBEDDING: dict[str, dict[str, Any]] = {
    "none": {},
    "linear": {"num_embedding": 32},
    "ple": {"num_embedding": 16},
    "ple-tree": {"num_embedding": 16},
    "periodic": {"num_embedding": 24, "num_frequencies": 48, "frequency_scale": 0.01},
    "periodic-lite": {"num_embedding": 24, "num_frequencies": 48, "frequency_scale": 0.01},
    "pbld": {"num_embedding": 4, "num_frequencies": 16, "frequency_scale": 0.1},
}
ALWAYS: dict[str, Any] = {"residual_dropout": 0.0, "one_hot_max": 8, "embedding_dropout": 0.0}
HEADS = (8, 4, 2, 1)
SAID = {"width": "width", "num_blocks": "blocks", "num_members": "members", "num_heads": "heads"}


def resolve_model(config: ModelConfig, *, num_rows: int, num_numbers: int, device_type: str) -> ModelConfig:
    """The network's settings without `auto`, but for options that it does not have.

    `num_rows` are those of the train split, `num_numbers` the numeric inputs. What comes out is its own resolution.

    Raises:
        ConfigError: an option does not fit the network, or the table.
    """
    if config.name == "custom":
        return config
    device = "cpu" if device_type == "cpu" else "gpu"
    name = config.name
    if name == "auto":
        name = next(network for most, network in BY_ROWS[device] if num_rows < most)
        if device == "cpu" and num_rows * num_numbers > MOST_CELLS:
            name = "mlp"
    without = SIZES[name]["embedding"] if name == "ft-transformer" else "none"  # of a table without numbers
    if not num_numbers and config.embedding not in ("auto", without):
        raise ConfigError(
            f"model.embedding={config.embedding} embeds numbers, and no numeric column is left of the table",
            fix="model.embedding=auto",
        )
    defaults = ALWAYS | SIZES[name] | (ON_CPU.get(name, {}) if device == "cpu" else {})
    given = {option: getattr(config, option) for option in ModelConfig.model_fields if config.is_given(option)}
    embedding = given.get("embedding", defaults["embedding"] if num_numbers else without)
    defaults |= OF_EMBEDDING[embedding] | {"embedding": embedding}
    if name in ("tabm", "tabm-mini"):
        defaults["num_blocks"] = 3 if embedding == "none" else 2
    if name == "ft-transformer":
        width = given.get("width", defaults["width"])
        defaults["num_heads"] = next(heads for heads in HEADS if width % heads == 0)
    own = {option: defaults[option] for option in MODEL_OPTIONS[name] if option in defaults}
    resolved = config.model_copy(update=own | given | {"name": name})
    if problem := resolved.misfit():
        chosen = "" if config.name != "auto" else f", which auto chose for {num_rows:,} train rows on {device_type}"
        raise ConfigError(problem[0] + chosen, fix=problem[1])
    return resolved


def is_resolution(found: ModelConfig, asked: ModelConfig) -> bool:
    """Could `asked` have become `found`, on whatever device? What was chosen by hand is the same in both."""
    given = [option for option in ModelConfig.model_fields if asked.is_given(option)]
    if found.name == "auto" or (found.name == "custom" and asked.name != "custom"):
        return False  # what a file says leads to no code
    return all(getattr(found, option) == getattr(asked, option) for option in given)


def describe_model(config: ModelConfig) -> str:
    """A resolved network in a few words."""
    if config.name == "custom":
        return f"custom ({config.target})"
    own = [option for option in MODEL_OPTIONS[config.name] if config.is_given(option)]
    words = [f"{word} {getattr(config, option)}" for option, word in SAID.items() if option in own]
    return f"{config.name} ({', '.join([*words, f'embedding {config.embedding}'])})"
