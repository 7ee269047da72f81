"""The file of an export: made in memory, compared with the bundle, and written whole."""

from pathlib import Path

from nn_train.bundle import load_bundle
from nn_train.errors import RunFolderError
from nn_train.export_check import check_answers, onnx_answer, torch_answer
from nn_train.export_onnx import require_extra, to_onnx
from nn_train.export_torch import to_torch, trace
from nn_train.run_folder import write_file


def export_run(run: str | Path, output: Path, *, form: str, check: bool = True, allow_custom: bool = False) -> str:
    """Write a run's network to `output` as `onnx` or `torch`; what was written, and how near it is to the bundle.

    Raises:
        UserError: there is no bundle, a library is missing, or the file would answer otherwise than the bundle;
            nothing was written then.
    """
    if output.is_dir() or not output.absolute().parent.is_dir():
        what = "this is a folder" if output.is_dir() else "there is no such folder"
        raise RunFolderError(what, where=str(output), fix="--output FOLDER/FILE, in a folder that exists")
    bundle = load_bundle(run, allow_custom=allow_custom)
    if form == "onnx":
        require_extra()
    program = trace(bundle)
    content = to_onnx(program, bundle) if form == "onnx" else to_torch(program, bundle)
    lines = [f"{output}: {form}, {len(content):,} bytes, {len(bundle.features)} columns"]
    if check:
        answer = onnx_answer(content, bundle) if form == "onnx" else torch_answer(program, bundle)
        lines.append(check_answers(answer, bundle, Path(run).expanduser()))
    write_file(output, content)
    return "\n".join(lines)
