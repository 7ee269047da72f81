"""What a finished run shows in wandb besides its curves, as plain values, and how it is sent. Sizes are bounded.

Called by the tracker's own thread alone, which is why it may wait for wandb.
"""

import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import wandb

MOST_BYTES = 20_000_000  # of one picture, or of the page; a larger one stays in the run folder alone
MOST_NAME = 100  # wandb's limit of an artifact's name is 128 characters


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaPicture:
    """A picture file; `key` is `section/name`, and `caption` says in words what is seen."""

    key: str
    path: Path
    caption: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaTable:
    """A table: a row is a list of numbers, truth values, texts and gaps (None), and a column holds one of these."""

    key: str
    columns: list[str]
    rows: list[Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class MediaModel:
    """The file that holds the whole model, and what is worth knowing of it."""

    path: Path
    metadata: dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Media:
    """All that is sent once the report is written."""

    model: MediaModel | None
    pictures: list[MediaPicture]
    tables: list[MediaTable]
    page: Path | None


def send_media(run: "wandb.Run", media: Media, *, name: str, aliases: Sequence[str], folder: Path) -> None:
    """Log the model first, then tables, pictures and page; `folder` takes the copies that wandb makes of artifacts."""
    import wandb

    with _staged_in(folder):
        if media.model is not None:
            artifact = wandb.Artifact(artifact_name(name), type="model", metadata=media.model.metadata)
            artifact.add_file(str(media.model.path))
            run.log_artifact(artifact, aliases=list(aliases))
        values: dict[str, Any] = {t.key: wandb.Table(columns=list(t.columns), data=t.rows) for t in media.tables}
        values |= {p.key: wandb.Image(str(p.path), caption=p.caption) for p in media.pictures if _fits(p.path)}
        if media.page is not None and _fits(media.page):
            values["report/page"] = wandb.Html(str(media.page), inject=False)  # as it is: it needs no other file
        if values:
            run.log(values)


def artifact_name(name: str) -> str:
    """A run's name as an artifact may be called: ASCII, and of a bounded length."""
    return re.sub(r"[^a-zA-Z0-9_.-]+", "-", name)[:MOST_NAME] or "model"


def _fits(path: Path) -> bool:
    return path.stat().st_size <= MOST_BYTES


@contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Keep wandb's copies of artifacts in the run folder, where the user named no place.

    An offline run names these files, and `wandb sync` uploads them, perhaps on another machine and in another home.
    """
    if "WANDB_DATA_DIR" in os.environ:
        yield
        return
    os.environ["WANDB_DATA_DIR"] = str(folder)
    try:
        yield
    finally:
        del os.environ["WANDB_DATA_DIR"]
