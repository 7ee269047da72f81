"""A trained network in one file: weights, preprocessor, schema, decision, config; written once, loaded anywhere.

The file is a zip archive without compression. It is read in memory and never unpacked, holds JSON and safetensors and
no pickle, and ends with a sum over all that stands before. What loads it needs torch and numpy alone; a prediction of
raw rows also needs pandas and pyarrow.
"""

import dataclasses
import functools
import hashlib
import io
import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from nn_train.decision import Decision
from nn_train.errors import RunFolderError, UserError, short
from nn_train.models import CUSTOM, MODELS, build_model
from nn_train.preprocessor import PREPROCESSOR_FILES, Encoded, Preprocessor
from nn_train.schema import TableSchema, Task
from nn_train.tensors import read_tensors

if TYPE_CHECKING:
    import pandas as pd

    from nn_train.incoming import Rows
    from nn_train.settings import DataConfig

BUNDLE_FILE = "bundle.zip"
# By what it needs, so that an older version refuses what it would get wrong: 2 has curves or costs, 3 has numbers that
# are bent, and perhaps those too.
FORMATS = (1, 2, 3)
INFO_FILE, WEIGHTS_FILE = "bundle.json", "model.safetensors"
MEMBERS = {INFO_FILE, WEIGHTS_FILE, *PREPROCESSOR_FILES}
SUM_CHARS = 64
END_RECORD = 22  # bytes of a zip's end record, in front of the comment that holds the sum
BLOCK_ROWS = 4096  # of one forward
LONG_AGO = (1980, 1, 1, 0, 0, 0)  # equal runs give equal bundles


class BundleError(RunFolderError):
    """A bundle that is damaged, changed, or none."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bundle:
    """A network with all that turns rows of a raw table into predictions. Shapes: B rows, D outputs, C classes."""

    network: nn.Module
    preprocessor: Preprocessor
    schema: TableSchema
    decision: Decision
    info: dict[str, Any]

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.preprocessor.target.task

    @property
    def classes(self) -> tuple[str, ...]:
        """The target's classes in the order of the probabilities; empty for regression."""
        return self.preprocessor.target.classes

    @functools.cached_property
    def features(self) -> tuple[str, ...]:
        """The columns of a raw table that a prediction needs, in the order of the table."""
        return tuple(column.name for column in self.schema.features if column.name in self.preprocessor.columns)

    @functools.cached_property
    def reading(self) -> "DataConfig":
        """How values of a table are read: as the run's own."""
        from nn_train.settings import DataConfig  # pydantic: loading does without

        return DataConfig.model_validate(self.info["config"]["data"])

    @torch.no_grad()
    def logits(self, encoded: Encoded) -> np.ndarray:
        """Logits (B, D) float32 of encoded rows."""
        device = next(self.network.parameters()).device
        x_num, x_cat = torch.from_numpy(encoded.x_num), torch.from_numpy(encoded.x_cat)
        parts = [np.zeros((0, self.preprocessor.target.num_outputs), np.float32)]
        for start in range(0, len(x_num), BLOCK_ROWS):
            block = slice(start, start + BLOCK_ROWS)
            output = self.network(x_num[block].to(device), x_cat[block].to(device, torch.int64))
            parts.append(output.float().cpu().numpy())
        return np.concatenate(parts)

    def encode(self, rows: "Rows") -> Encoded:
        """Numbers and codes of raw rows.

        Raises:
            DataError: a column that is needed is missing, or holds what cannot be read.
        """
        from nn_train.incoming import encode_rows  # pyarrow and pandas: loading does without

        return encode_rows(rows, self.preprocessor, self.schema, self.reading)[0]

    def predict_scores(self, rows: "Rows") -> np.ndarray:
        """Probabilities of all classes (B, C), values in the target's unit (B,), or quantiles (B, Q)."""
        return self.decision.scores(self.logits(self.encode(rows)), self.preprocessor)

    def predict(self, rows: "Rows") -> "pd.DataFrame":
        """`prediction`, and `p_CLASS` for each class or `q_LEVEL` for each quantile, a row for each of `rows` in order.

        `rows` is a pandas DataFrame, whose index is kept, an Arrow table, a dict of columns or a list of dicts. Columns
        may stand in any order, more may be there, and values are read as in training: what is missing or was never
        seen has its place.
        """
        frame = self.decision.frame(self.logits(self.encode(rows)), self.preprocessor)
        index = getattr(rows, "index", None)
        return frame if index is None or callable(index) else frame.set_axis(index, axis=0)


def make_bundle(
    *, weights: bytes, preprocessor: Preprocessor, schema: TableSchema, decision: Decision, info: dict[str, Any]
) -> bytes:
    """The file's bytes. `weights` are safetensors; `info` holds at least the `config`, as plain values."""
    needed = 2 if preprocessor.is_bent else bool(decision.curves or decision.costs)
    made = {"format": FORMATS[needed], "decision": dataclasses.asdict(decision)}
    values = made | {"schema": schema.to_json(), **info}
    members = {INFO_FILE: json.dumps(values, indent=1, ensure_ascii=False).encode(), WEIGHTS_FILE: weights}
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (members | preprocessor.to_bytes()).items():
            archive.writestr(zipfile.ZipInfo(name, date_time=LONG_AGO), content)
        archive.comment = b"0" * SUM_CHARS
    content = stream.getvalue()[:-SUM_CHARS]
    return content + hashlib.sha256(content).hexdigest().encode()


def load_bundle(path: str | Path, *, device: str | torch.device = "cpu", allow_custom: bool = False) -> Bundle:
    """Load the bundle of a run folder, or a bundle file.

    `allow_custom` imports the code of a custom network, by the path that the bundle names: for bundles of your own.

    Raises:
        BundleError: there is none, or it is cut off, damaged, changed, or of another version.
    """
    file = Path(path).expanduser()
    file = file / BUNDLE_FILE if file.is_dir() else file
    try:
        content = file.read_bytes()
    except OSError as error:
        is_run = file.name == BUNDLE_FILE and (file.parent / "config.yaml").exists()
        raise BundleError(
            "the run has no bundle yet" if is_run else f"no bundle can be read here: {error.strerror}",
            where=str(file),
            fix="train it to its end: the same command goes on" if is_run else "give a run folder or a bundle.zip",
        ) from None
    return read_bundle(content, where=str(file), device=device, allow_custom=allow_custom)


def read_bundle(
    content: bytes, *, where: str = "", device: str | torch.device = "cpu", allow_custom: bool = False
) -> Bundle:
    """The bundle that a file holds; errors name the file by `where`.

    Raises:
        BundleError: the bytes are cut off, damaged, changed, or of another version.
    """
    try:
        return _read(content, torch.device(device), allow_custom=allow_custom)
    except UserError as error:
        raise BundleError(error.what, where=where, fix=error.fix) from None
    except Exception as error:  # whatever its files hold, nothing of it was run
        what = short(f"{type(error).__name__}: {error}", most=200)
        raise BundleError(f"the bundle does not hold together: {what}", where=where, fix=_AGAIN) from None


_AGAIN = "copy it again from its run folder, or train again"


def _read(content: bytes, device: torch.device, *, allow_custom: bool) -> Bundle:
    members = _members(content)
    info = json.loads(members[INFO_FILE])
    if info["format"] not in FORMATS:
        raise BundleError(
            f"the bundle has format {info['format']}, and this version reads {', '.join(map(str, FORMATS))}",
            fix="use the version that wrote it",
        )
    fitted = Preprocessor.from_bytes({name: members[name] for name in PREPROCESSOR_FILES})
    if (info["format"] == FORMATS[2]) != fitted.is_bent:
        raise ValueError("format and scaler do not go together")
    config: Any = SimpleNamespace(**info["config"]["model"])  # pydantic is not there
    if config.name == CUSTOM and not allow_custom:
        raise BundleError(
            f"the bundle's network is a custom one, and loading it would import '{short(str(config.target))}'",
            fix="--allow-custom, or load_bundle(..., allow_custom=True), if that code is your own",
        )
    if config.name not in (*MODELS, CUSTOM):
        raise BundleError(f"the bundle's network '{short(str(config.name))}' is not known", fix="use a newer version")
    with torch.random.fork_rng(devices=[]):  # first weights are drawn, and thrown away
        network = build_model(
            config,
            bins=fitted.bins,
            cardinalities=fitted.cardinalities,
            num_outputs=fitted.target.num_outputs,
            task=fitted.target.task,
        )
    network.load_state_dict(
        {name: torch.from_numpy(array) for name, array in read_tensors(members[WEIGHTS_FILE]).items()}
    )
    target = fitted.target
    decision = Decision.from_json(
        info["decision"], num_classes=len(target.classes), num_outputs=0 if not target.classes else target.num_outputs
    )
    schema = TableSchema.from_json(info["schema"])
    if schema.target != fitted.target or not fitted.columns <= {column.name for column in schema.features}:
        raise ValueError("schema and preprocessor speak of different columns")
    return Bundle(
        network=network.eval().requires_grad_(False).to(device),
        preprocessor=fitted,
        schema=schema,
        decision=decision,
        info=info,
    )


def _members(content: bytes) -> dict[str, bytes]:
    """The files in the archive, after a look at the sum; nothing is unpacked, so no name in it is a path."""
    body, told = content[:-SUM_CHARS], content[-SUM_CHARS:]
    if len(body) < END_RECORD or told != hashlib.sha256(body).hexdigest().encode():
        raise BundleError("this is no whole bundle: its bytes do not give the sum at its end", fix=_AGAIN)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        infos = archive.infolist()
        if len(infos) != len(MEMBERS) or {member.filename for member in infos} != MEMBERS:
            raise BundleError("the archive holds other files than a bundle's", fix=_AGAIN)
        if any(member.compress_type != zipfile.ZIP_STORED for member in infos):
            raise BundleError("the archive is compressed, as no bundle is", fix=_AGAIN)  # it could grow without end
        return {member.filename: archive.read(member) for member in infos}
