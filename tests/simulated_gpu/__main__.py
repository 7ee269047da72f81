"""Run a script on simulated GPUs, one or as many as the environment's SIMULATED_GPUS says.

python tests/simulated_gpu [--library FILE] [--crossings FILE] [--memory BYTES] [--no-double] nn_train/train.py ...

`device.cpp` is compiled if no library is named. `crossings` gets a line of JSON for each time that something crossed
between host and device, or that the host waited for it. Apple's GPUs have no double precision.
"""

import argparse
import ctypes
import importlib.util
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
TORCH = Path(str(importlib.util.find_spec("torch").origin)).parent  # type: ignore[union-attr]


def build_library(folder: Path) -> Path:
    """Compile the device into a folder."""
    library = folder / "simulated_gpu.so"
    command = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{TORCH / 'include'}", str(HERE / "device.cpp")]
    subprocess.run([*command, "-o", str(library), f"-L{TORCH / 'lib'}", "-lc10", "-ltorch_cpu"], check=True)
    return library


def load_library(library: Path) -> None:
    """Load the device, before torch in Python asks for the first time what devices there are."""
    for name in ("libc10.so", "libtorch_cpu.so"):
        ctypes.CDLL(str(TORCH / "lib" / name), mode=ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library))


def main() -> None:
    """Make the device known to torch, and run the script."""
    parser = argparse.ArgumentParser(usage=str(__doc__).split("\n\n")[1])
    parser.add_argument("--library", type=Path)
    parser.add_argument("--crossings", type=Path)
    parser.add_argument("--memory", type=int, default=16 << 30)
    parser.add_argument("--no-double", action="store_true")
    parser.add_argument("script", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        load_library(options.library or build_library(Path(folder)))
    sys.path.insert(0, str(HERE))
    import tensor  # torch: not before the library

    tensor.install(memory=options.memory, has_double=not options.no_double, crossings=options.crossings)
    sys.argv = options.script
    sys.path[:2] = [str(Path(options.script[0]).resolve().parent)]
    runpy.run_path(options.script[0], run_name="__main__")


if __name__ == "__main__":
    main()
