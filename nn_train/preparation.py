"""From the config to packed rows: read, infer, split, fit, encode; done once and found again."""

import dataclasses
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from nn_train.packed import (
    CPU,
    DONE_FILE,
    PackedRows,
    build_once,
    build_together,
    load_rows,
    packed_bytes,
    truth_file,
)
from nn_train.placement import Placement, choose_placement
from nn_train.preprocessor import Preprocessor
from nn_train.pulse import pulse
from nn_train.run_folder import read_json
from nn_train.schema import Split, TableSchema
from nn_train.settings import Config
from nn_train.table_files import cache_dir, find_files, fingerprint, input_paths, num_bytes

if TYPE_CHECKING:
    import pandas as pd

# what a packed folder holds depends on these files of the project: where one changes, old folders are not found
CODE = ("table_files", "table_text", "text_spans", "table", "table_stream", "values", "inference_target", "row_weights",
        "inference", "row_hash", "splits", "splitting", "preprocessor", "preprocessing", "packed", "doubts", "building",
        "shards", "survey", "shard_splits", "shard_plan", "shard_fit", "building_shards", "preparation")  # fmt: skip
LIBRARIES = ("scikit-learn", "numpy", "pandas", "pyarrow")  # and on these
MOST_WHOLE_CELLS = 50_000_000  # values of a table up to which it is prepared as a whole
LEAST_STREAM_BYTES = 20 << 20  # of its files
KEPT_FILES = ("schema.json", "data.json", "splits.npz", "preprocessor.json", "preprocessor.safetensors")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PreparedData:
    """What the first half of a run hands to the second."""

    folder: Path
    schema: TableSchema
    preprocessor: Preprocessor
    info: dict[str, Any]
    was_cached: bool

    def num_rows(self, split: Split) -> int:
        """Rows of a split."""
        return self.info["rows"][split]

    def packed_bytes(self, split: Split) -> int:
        """Size of a split's packed rows."""
        return packed_bytes(self.folder, split)

    def rows(
        self, split: Split, *, device: torch.device = CPU, placement: Literal["auto"] | Placement = "auto"
    ) -> PackedRows:
        """The packed rows of a split; batches of them are on the device."""
        chosen = choose_placement(
            placement,
            num_bytes=self.packed_bytes(split),
            device_type=device.type,
            free_on_device=lambda: torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0,
        )
        return load_rows(self.folder, split, device=device, placement=chosen)

    def truth(self, split: Split) -> "pd.DataFrame":
        """Row number in the table, id columns and target of a split's rows."""
        import pandas as pd  # for the judgement alone: not before the first step

        return pd.read_parquet(truth_file(self.folder, split))

    def files(self) -> list[tuple[str, bytes]]:
        """What the run folder keeps of the preparation."""
        files = {name: (self.folder / name).read_bytes() for name in KEPT_FILES if (self.folder / name).exists()}
        if self.schema.target.quantiles:  # packed rows know nothing of how they will be learned
            text = json.dumps(self.schema.to_json(), indent=2, ensure_ascii=False) + "\n"
            files |= self.preprocessor.to_bytes() | {"schema.json": text.encode()}
        return list(files.items())


def prepare_data(config: Config) -> PreparedData:
    """Prepare the table, or find it prepared: every process may call this at once.

    Raises:
        DataError: the table cannot be read, split or encoded as the config says.
    """
    pulse.mark("preprocess")
    known = cache_dir(config.data) / "fingerprints"
    content = "-".join(fingerprint(find_files(path, key=key), known) for key, path in input_paths(config))
    key = _cache_key(config, content)
    folder = cache_dir(config.data) / "packed" / key

    def build(target: Path) -> None:
        from nn_train.building import build_rows  # what it needs takes a second to import, and most starts find rows

        build_rows(config, target, content=content)

    def build_shared(target: Path) -> None:
        from nn_train.building_shards import build_shards  # as above

        build_shards(config, target, content=content)

    is_stream = not (folder / DONE_FILE).exists() and _is_streamed(config)
    built = build_together(folder, build_shared) if is_stream else build_once(folder, build)
    pulse.mark("pack")
    schema = TableSchema.from_json(read_json(folder / "schema.json"))
    fitted = Preprocessor.load(folder)
    if config.train.loss == "quantile" and schema.target.task == "regression":
        target = dataclasses.replace(schema.target, quantiles=config.train.quantiles)
        schema, fitted = dataclasses.replace(schema, target=target), dataclasses.replace(fitted, target=target)
    return PreparedData(
        folder=folder,
        schema=schema,
        preprocessor=fitted,
        info=read_json(folder / "data.json"),
        was_cached=not built,
    )


def _is_streamed(config: Config) -> bool:
    """Is the table prepared as a stream? Told by its size alone, so that it is the same everywhere."""
    if config.data.preparation != "auto":
        return config.data.preparation == "stream"
    if config.data.max_rows is not None:
        return False
    files = [file for key, path in input_paths(config) for file in find_files(path, key=key)]
    if sum(map(num_bytes, files)) < LEAST_STREAM_BYTES:  # whatever they hold: most starts end here
        return False
    from nn_train.shards import num_cells

    return num_cells(files, config.data) > MOST_WHOLE_CELLS


def _cache_key(config: Config, content: str) -> str:
    settings = {
        "data": config.data.model_dump(mode="json", exclude={"path", "cache_dir", "placement", "workers"}),
        "split": config.split.model_dump(mode="json", exclude={"val_path", "test_path"}),
        "preprocess": config.preprocess.model_dump(mode="json"),
        "has_tree_bins": config.has_tree_bins,
        "versions": [importlib.metadata.version(name) for name in LIBRARIES],
        "code": hashlib.blake2b(b"".join(_source(name) for name in CODE), digest_size=12).hexdigest(),
    }
    text = json.dumps([content, settings], sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def _source(module: str) -> bytes:
    return Path(__file__).with_name(f"{module}.py").read_bytes()
