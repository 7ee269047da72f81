"""The networks of an ensemble, loaded together to predict raw rows.

Shapes: B rows, C classes.
"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from nn_train.bundle import Bundle, load_bundle
from nn_train.decision import Decision, value_columns
from nn_train.errors import RunFolderError
from nn_train.run_folder import ENSEMBLE_FILE
from nn_train.schema import Task

if TYPE_CHECKING:
    import pandas as pd

    from nn_train.incoming import Rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class EnsembleBundle:
    """Several networks for one task, whose calibrated probabilities or values are averaged."""

    members: tuple[Bundle, ...]
    threshold: float

    @property
    def task(self) -> Task:
        """What is predicted."""
        return self.members[0].task

    @property
    def classes(self) -> tuple[str, ...]:
        """The target's classes in the order of the probabilities; empty for regression."""
        return self.members[0].classes

    def predict_scores(self, rows: "Rows") -> np.ndarray:
        """Probabilities (B, C), or values in the target's unit (B,), of quantiles (B, Q), of targets (B, T)."""
        return np.mean([member.predict_scores(rows) for member in self.members], axis=0)

    def predict(self, rows: "Rows") -> "pd.DataFrame":
        """`prediction`, and `p_CLASS` or `q_LEVEL`, one row for each of `rows`; as `Bundle.predict`."""
        import pandas as pd  # loading does without

        scores = self.predict_scores(rows)
        index = getattr(rows, "index", None)
        index = None if callable(index) else index
        first = self.members[0]
        if self.task == "regression":
            return pd.DataFrame(value_columns(scores, first.preprocessor), index=index)
        decision = Decision(temperature=1.0, threshold=self.threshold, costs=first.decision.costs)
        chosen = decision.choose(scores, first.preprocessor)
        columns = {f"p_{name}": scores[:, place] for place, name in enumerate(self.classes)}
        return pd.DataFrame({"prediction": np.array(self.classes)[chosen], **columns}, index=index)


def load_ensemble(folder: str | Path, *, device: str | torch.device = "cpu") -> EnsembleBundle:
    """Load the networks that `python -m nn_train.ensemble` trained in a folder.

    Raises:
        RunFolderError: there is no finished ensemble, or one of its bundles is damaged.
    """
    place = Path(folder).expanduser()
    try:
        note = json.loads((place / ENSEMBLE_FILE).read_text(encoding="utf-8"))
        names, threshold = [str(name) for name in note["members"]], float(note["threshold"])
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            "no finished ensemble lies here",
            where=str(place / ENSEMBLE_FILE),
            fix="python -m nn_train.ensemble trains one; for a single run: load_bundle",
        ) from None
    if any(Path(name).name != name or name in ("", ".", "..") for name in names) or not names:
        raise RunFolderError("its networks lie elsewhere", where=str(place / ENSEMBLE_FILE), fix="train it again")
    members = tuple(load_bundle(place / name, device=device) for name in names)
    if len({(member.task, member.classes) for member in members}) > 1:
        raise RunFolderError("its networks predict different things", where=str(place), fix="train it again")
    return EnsembleBundle(members=members, threshold=threshold)
