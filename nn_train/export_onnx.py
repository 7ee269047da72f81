"""A bundle as an ONNX graph: one input for each raw column, texts and all, and probabilities with a decision."""

import importlib.util
import json
import logging
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch.export import ExportedProgram

from nn_train.bundle import Bundle
from nn_train.errors import UserError
from nn_train.export_torch import columns_used, describe, level_codes
from nn_train.preprocessor import UNSEEN
from nn_train.schema import Task

if TYPE_CHECKING:
    import onnx

OPSET, OPSET_ML = 18, 3  # of ai.onnx and ai.onnx.ml
EXTRA = ("onnx", "onnxscript", "onnxruntime")
OUTPUTS: dict[Task, tuple[str, ...]] = {
    "binary": ("probabilities", "prediction"),
    "multiclass": ("probabilities", "prediction"),
    "regression": ("value",),
}


def require_extra() -> None:
    """Raise UserError where a library of the extra `export` is not installed."""
    missing = [name for name in EXTRA if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"not installed: {', '.join(missing)}", fix="pip install 'nn-train[export]'")


def input_names(bundle: Bundle) -> dict[str, str]:
    """Column -> input: its own name, or `raw_NAME` where an output is called so."""
    taken = {*bundle.features, *OUTPUTS[bundle.task]}
    names = {}
    for column in bundle.features:
        name = column
        while not name or name in OUTPUTS[bundle.task] or (name != column and name in taken):
            name = f"raw_{name}"
        taken.add(name)
        names[column] = name
    return names


def to_onnx(program: ExportedProgram, bundle: Bundle) -> bytes:
    """The file's bytes.

    Inputs (B,) by `input_names`: a number is a double with NaN for missing, a date int64 microseconds since 1970 in
    UTC with the least int64 for missing, a category or yes/no a string with "" for missing. Outputs: `probabilities`
    (B, C) double and `prediction` (B,) string, or `value` double in the target's unit, (B,) or, of quantiles, (B, Q),
    or of several targets (B, T).
    """
    from onnx import compose, helper  # of the extra

    names = input_names(bundle)
    prefix = "scorer/"  # of all names inside, which must not be those of columns
    while any(name.startswith(prefix) for name in names.values()):
        prefix = f"_{prefix}"
    inner = compose.add_prefix(_translate(program), prefix)
    inputs, readers = _read_columns(bundle, names, [value.name for value in inner.graph.input])
    outputs, deciders, classes = _decide(bundle, inner.graph.output[0].name, prefix)
    graph = helper.make_graph(
        [*readers, *inner.graph.node, *deciders],
        "nn_train",
        inputs,
        outputs,
        initializer=[*inner.graph.initializer, *classes],
    )
    versions = {entry.domain: entry.version for entry in inner.opset_import} | {"ai.onnx.ml": OPSET_ML}
    model = helper.make_model(
        graph,
        functions=inner.functions,
        opset_imports=[helper.make_opsetid(*entry) for entry in sorted(versions.items())],
        ir_version=inner.ir_version,
        producer_name="nn-train",
    )
    about = {name: value if isinstance(value, str) else _as_json(value) for name, value in describe(bundle).items()}
    helper.set_model_props(model, about)
    return model.SerializeToString(deterministic=True)


def _as_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _translate(program: ExportedProgram) -> "onnx.ModelProto":
    """The scorer as torch translates it, without notes on where its code lies."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it says that torchvision is not there
    try:
        with warnings.catch_warnings():  # torch copies, in a way that it deprecates, what it traced
            warnings.filterwarnings("ignore", r".*isinstance\(treespec, LeafSpec\)", FutureWarning)
            translated = torch.onnx.export(program, dynamo=True, opset_version=OPSET, verbose=False)
    finally:
        logger.setLevel(level)
    assert translated is not None
    model = translated.model_proto
    del model.metadata_props[:]
    for graph in (model.graph, *model.functions):
        graph.ClearField("metadata_props")
        graph.ClearField("doc_string")
        for node in graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
    return model


def _read_columns(
    bundle: Bundle, names: dict[str, str], inner: list[str]
) -> tuple[list["onnx.ValueInfoProto"], list["onnx.NodeProto"]]:
    """The inputs, and what turns each into the scorer's own: texts into codes."""
    from onnx import TensorProto, helper

    codes = level_codes(bundle)
    inputs, nodes = [], []
    for column, value in zip(columns_used(bundle), inner, strict=True):
        name = names[column.name]
        if found := codes.get(column.name):
            table = {"keys_strings": list(found), "values_int64s": list(found.values()), "default_int64": UNSEEN}
            nodes.append(helper.make_node("LabelEncoder", [name], [value], domain="ai.onnx.ml", **table))
            kind = TensorProto.STRING
        else:
            nodes.append(helper.make_node("Identity", [name], [value]))
            kind = TensorProto.DOUBLE if column.kind == "numeric" else TensorProto.INT64
        inputs.append(helper.make_tensor_value_info(name, kind, ["rows"], doc_string=f"{column.kind}: {column.name}"))
    return inputs, nodes


def _decide(
    bundle: Bundle, scores: str, prefix: str
) -> tuple[list["onnx.ValueInfoProto"], list["onnx.NodeProto"], list["onnx.TensorProto"]]:
    """The outputs, and what `Decision.choose` does, with its constants."""
    from onnx import TensorProto, helper

    name, *rest = OUTPUTS[bundle.task]
    target = bundle.preprocessor.target
    width = len(target.classes or target.quantiles or target.columns)
    shape = ["rows", width] if width else ["rows"]
    outputs = [helper.make_tensor_value_info(name, TensorProto.DOUBLE, shape)]
    nodes = [helper.make_node("Identity", [scores], [name])]
    if not rest:
        return outputs, nodes, []
    outputs.append(helper.make_tensor_value_info(rest[0], TensorProto.STRING, ["rows"]))
    classes, threshold, one, chosen = (f"{prefix}{word}" for word in ("classes", "threshold", "one", "chosen"))
    texts = [text.encode() for text in bundle.classes]
    constants = [TensorProto(name=classes, data_type=TensorProto.STRING, dims=[len(texts)], string_data=texts)]
    if bundle.task == "binary":
        constants.append(helper.make_tensor(threshold, TensorProto.DOUBLE, [], [bundle.decision.threshold]))
        constants.append(helper.make_tensor(one, TensorProto.INT64, [], [1]))
        positive, reaches = f"{prefix}positive", f"{prefix}reaches"
        nodes += [
            helper.make_node("Gather", [scores, one], [positive], axis=1),
            helper.make_node("GreaterOrEqual", [positive, threshold], [reaches]),
            helper.make_node("Cast", [reaches], [chosen], to=TensorProto.INT64),
        ]
    elif (costs := bundle.decision.cost_table) is not None:
        of_class, expected = f"{prefix}costs", f"{prefix}expected"
        constants.append(helper.make_tensor(of_class, TensorProto.DOUBLE, costs.shape, costs.ravel().tolist()))
        nodes.append(helper.make_node("MatMul", [scores, of_class], [expected]))
        nodes.append(helper.make_node("ArgMin", [expected], [chosen], axis=1, keepdims=0))
    else:
        nodes.append(helper.make_node("ArgMax", [scores], [chosen], axis=1, keepdims=0))
    return outputs, [*nodes, helper.make_node("Gather", [classes, chosen], [rest[0]])], constants
