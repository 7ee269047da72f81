"""Execute notebooks/NeuralNetwork.ipynb in a kernel of this interpreter; with no argument, store its fresh outputs.

python -m tests.run_notebook
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).resolve().parent.parent / "notebooks" / "NeuralNetwork.ipynb"
STRICT = """
import sys, warnings
assert sys.executable == {executable!r}
warnings.simplefilter('error')
warnings.filterwarnings('default', module='ipykernel')  # its own end
"""


def execute(folder: Path, *, num_processes: int | None = None, until: str | None = None) -> NotebookNode:
    """The executed notebook; `folder` is its working directory, and every warning an error.

    `num_processes` is written in place of the number of GPUs, and `until` is the id of the last cell that is run.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    names = [cell.id for cell in notebook.cells]
    del notebook.cells[names.index(until) + 1 if until else len(names) :]
    if num_processes is not None:
        setup = notebook.cells[names.index("setup")]
        line = "NUM_PROCESSES = max(1, torch.cuda.device_count())"
        assert line in setup.source
        setup.source = setup.source.replace(line, f"NUM_PROCESSES = {num_processes}")
    strict = nbformat.v4.new_code_cell(STRICT.format(executable=sys.executable))
    notebook.cells.insert(0, strict)
    # what the person who starts it has set up for IPython and Jupyter is none of the notebook's
    own = {name: str(folder / "jupyter") for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")}
    os.environ |= own | {"JUPYTER_PREFER_ENV_PATH": "1"}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute()
    notebook.cells.remove(strict)
    for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number
    del notebook.metadata.language_info["version"]  # of whoever stored it last
    return notebook


def main() -> None:
    """Execute, and write where the words say."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=NOTEBOOK)
    parser.add_argument("--folder", type=Path, help="working directory; default: one that is removed")
    parser.add_argument("--num-processes", type=int)
    parser.add_argument("--until")
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = words.folder or Path(temporary)
        nbformat.write(execute(folder, num_processes=words.num_processes, until=words.until), words.out)


if __name__ == "__main__":
    main()
