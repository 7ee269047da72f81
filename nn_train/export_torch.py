"""A bundle as a program of torch.export: it runs where torch is, without this project."""

import io
import itertools
import json
from typing import Any

import torch
from torch.export import Dim, ExportedProgram

from nn_train.bundle import Bundle
from nn_train.errors import UserError, short
from nn_train.export_graph import Scorer
from nn_train.preprocessor import MISSING, NUM_RESERVED, UNSEEN
from nn_train.schema import ColumnSpec

ABOUT_FILE = "about.json"
MOST_SPELLINGS = 8  # letters of a yes/no level up to which every mixture of cases is known
DTYPES = {"numeric": torch.float64, "date": torch.int64, "categorical": torch.int64, "boolean": torch.int64}
PLACES = ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn")  # notes that hold paths of this machine


def columns_used(bundle: Bundle) -> list[ColumnSpec]:
    """The columns that a prediction needs, in the order of the table."""
    return [column for column in bundle.schema.features if column.name in bundle.preprocessor.columns]


def level_codes(bundle: Bundle) -> dict[str, dict[str, int]]:
    """For each category the code of every text that is known; any other text has the code 0.

    Known are the levels, whole numbers also with `.0`, yes/no in upper and lower case, and the words for missing.
    """
    words = {"", *(word.strip() for word in bundle.info["config"]["data"]["missing_values"])}
    kinds = {column.name: column.kind for column in bundle.schema.features}
    codes = {}
    for category in bundle.preprocessor.categorical:
        found = dict.fromkeys(sorted(words), MISSING if category.had_missing else UNSEEN)
        for code, level in enumerate(category.levels, start=NUM_RESERVED):
            found |= dict.fromkeys(_spellings(level, is_boolean=kinds[category.column] == "boolean"), code)
        # a level that is also a word for missing comes from typed columns, where words do not count
        codes[category.column] = found | {level: code for code, level in enumerate(category.levels, start=NUM_RESERVED)}
    return codes


def _spellings(level: str, *, is_boolean: bool) -> list[str]:
    digits = level.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        return [level, f"{level}.0"]
    if not is_boolean:
        return [level]
    if len(level) > MOST_SPELLINGS:
        return [level, level.upper(), level.capitalize()]
    cases = ({letter, letter.upper()} for letter in level)
    return ["".join(letters) for letters in itertools.product(*map(sorted, cases))]


def describe(bundle: Bundle) -> dict[str, Any]:
    """What a file says of itself: where it comes from, how it decides, and what it takes."""
    return {
        "name": bundle.info["name"],
        "run_id": bundle.info["run_id"],
        "fingerprint": bundle.info["fingerprint"],
        "task": bundle.task,
        "target": bundle.schema.target.name,
        "targets": list(bundle.schema.target.names),
        "classes": list(bundle.classes),
        "quantiles": list(bundle.preprocessor.target.quantiles),
        "temperature": bundle.decision.temperature,
        "threshold": bundle.decision.threshold,
        "calibration": "isotonic" if bundle.decision.curves else "temperature",
        "costs": [list(row) for row in bundle.decision.costs],
        "columns": {column.name: column.kind for column in columns_used(bundle)},
    }


@torch.no_grad()
def trace(bundle: Bundle) -> ExportedProgram:
    """The scorer as a graph, for any number of rows.

    Raises:
        UserError: the network takes hashes of texts, which no graph computes.
    """
    for column in bundle.preprocessor.categorical:
        if column.num_buckets:
            raise UserError(
                f"column '{short(column.column)}' is hashed into {column.num_buckets} buckets, which no exported graph "
                "can do",
                fix="use the bundle itself, or train with preprocess.hash_buckets=0",
            )
    example = {column.name: torch.zeros(3, dtype=DTYPES[column.kind]) for column in columns_used(bundle)}
    rows = Dim("rows")
    program = torch.export.export(
        Scorer(bundle), (example,), dynamic_shapes=({name: {0: rows} for name in example},), strict=False
    )
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ():
            for note in PLACES:
                node.meta.pop(note, None)
    return program


def to_torch(program: ExportedProgram, bundle: Bundle) -> bytes:
    """The file's bytes. What it takes and means lies in it as JSON, under ABOUT_FILE."""
    about = json.dumps(describe(bundle) | {"codes": level_codes(bundle)}, indent=1, ensure_ascii=False)
    stream = io.BytesIO()
    torch.export.save(program, stream, extra_files={ABOUT_FILE: about})
    return stream.getvalue()
