"""Runs on simulated GPUs: the numbers of a run on the CPU, no tensor at the wrong place, no wait but where one must be.

`tests/simulated_gpu` says what is simulated.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT, SMALL, make_table
from tests.simulated_gpu.__main__ import build_library

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="the simulated GPU is compiled")
SIMULATED = str(ROOT / "tests" / "simulated_gpu" / "__main__.py")
CLOCKS = ("rows_per_s", "elapsed_s")
STEPS = ("train.max_steps=12", "tracking.log_every_steps=4", "train.eval_every=6", "train.global_batch_size=64",
         "checkpoint.every_time=no", "model.dropout=0.1")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Ran:
    """A run that ended well."""

    folder: Path
    crossings: list[dict[str, Any]]

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its metrics, without what a clock says."""
        lines = map(json.loads, (self.folder / "metrics.jsonl").read_text().splitlines())
        return [{key: value for key, value in line.items() if key not in CLOCKS} for line in lines]

    def within(self, place: str) -> list[dict[str, Any]]:
        """What crossed within a function of the project, as `module.function`."""
        return [crossing for crossing in self.crossings if place in crossing["places"]]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_library(tmp_path_factory.mktemp("library"))


Run = Callable[..., Ran]


@pytest.fixture
def run(library: Path, tmp_path: Path) -> Run:
    """Run a script of the project on a table of 300 rows, with a GPU for each process or on the CPU."""
    make_table(300).to_csv(tmp_path / "table.csv", index=False)

    def start(
        *words: str,
        name: str = "gpu",
        processes: int = 1,
        options: tuple[str, ...] = (),
        script: str = "train.py",
    ) -> Ran:
        crossings = tmp_path / f"{name}.jsonl"
        crossings.touch()
        simulated = [SIMULATED, f"--library={library}", f"--crossings={crossings}", *options]
        agent = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "--"]
        command = [
            sys.executable,
            *(agent if processes > 1 else []),
            *([] if name == "cpu" else simulated),
            str(ROOT / "nn_train" / script),
            *words,
        ]
        if script == "train.py":
            command += [f"data.path={tmp_path / 'table.csv'}", "data.target=y", f"run.dir={tmp_path / name}"]
        environment = os.environ | {"SIMULATED_GPUS": str(processes), "ACCELERATE_USE_CPU": str(name == "cpu")}
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240, env=environment)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
        assert "Warning" not in done.stderr
        lines = [json.loads(line) for line in crossings.read_text().splitlines()]
        return Ran(tmp_path / name, lines)

    return start


# ---- what is simulated


SEEN = """
import torch
host, gpu = torch.ones(4, 2), torch.ones(4, 2, device="cuda")
assert gpu.device == torch.device("cuda", 0) and torch.accelerator.current_accelerator().type == "cuda"
for wrong in (lambda: host + gpu, lambda: torch.mm(gpu, host.t()), lambda: torch.cat([host, gpu])):
    try:
        wrong()
    except RuntimeError as error:
        assert "same device" in str(error), error
    else:
        raise SystemExit("tensors of two places went together")
try:
    gpu.pin_memory()
except RuntimeError as error:
    assert "only dense CPU tensors can be pinned" in str(error)
else:
    raise SystemExit("a tensor of the GPU was pinned")
assert not gpu.is_pinned() and not host.is_pinned() and host.pin_memory()[1:].is_pinned()
assert (gpu * 2 + 1).cpu().tolist() == [[3.0, 3.0]] * 4
gpu[1] = 5  # a view of the same memory
assert gpu.sum().cpu().tolist() == 16.0
"""
CROSSED = """
import torch
host, gpu = torch.ones(4), torch.ones(4, device="cuda")
host.to("cuda")
host.to("cuda", non_blocking=True)  # waits, as the memory is not pinned
host.pin_memory().to("cuda")
host.pin_memory().to("cuda", non_blocking=True)
gpu.cpu()
float(gpu[0])
gpu[gpu > 0]
gpu.nonzero()
gpu[torch.tensor([0, 1])]
gpu.add_(1).mul(2.0)
"""


def test_the_simulation_refuses_what_a_gpu_refuses_and_sees_what_crosses(library: Path, tmp_path: Path) -> None:
    def python(code: str) -> list[dict[str, Any]]:
        script, crossings = tmp_path / "script.py", tmp_path / "crossings.jsonl"
        script.write_text(code)
        crossings.write_text("")
        command = [sys.executable, SIMULATED, "--library", library, "--crossings", crossings, str(script)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return [json.loads(line) for line in crossings.read_text().splitlines()]

    python(SEEN)
    assert [(seen["what"], seen["waits"]) for seen in python(CROSSED)] == [
        ("to", True),
        ("to", True),
        ("to", True),
        ("to", False),
        ("from", True),
        ("_local_scalar_dense", True),
        ("index", True),
        ("nonzero", True),
        ("to", True),
    ]


# ---- one GPU


@pytest.mark.parametrize(
    ("placement", "words"),
    [
        ("device", ()),
        ("device", ("train.gradient_reduction=exact", "train.canonical_slices=4")),
        ("device", ("train.micro_batch_size=16", "train.class_weights=balanced", "train.grad_clip=no")),
        ("device", ("model.name=tabm", "model.num_members=4", "optim.name=muon", "optim.ema_decay=0.9")),
        ("memory", ()),
        ("disk", ("train.shuffle=blocks", "train.num_canonical_shards=4")),
    ],
)
def test_a_run_on_a_gpu_has_the_numbers_of_one_on_the_cpu_and_waits_at_log_points_alone(
    run: Run, placement: str, words: tuple[str, ...]
) -> None:
    settings = (*SMALL, *STEPS, *words)
    gpu = run(*settings, f"data.placement={placement}")
    assert gpu.lines == run(*settings, name="cpu").lines
    assert len(gpu.lines) == 3 + 2

    steps = gpu.within("loop._update")
    assert steps and not any(crossing["waits"] for crossing in steps)
    # a batch needs its rows' places, or the rows: numbers, codes and target
    kinds = Counter(crossing["dtype"] for crossing in steps)
    assert kinds.keys() == (
        {"torch.int64"} if placement == "device" else {"torch.float32", "torch.int32", "torch.int64"}
    )
    assert all(count % 12 == 0 for count in kinds.values())
    # loss and gradient norm of a line; the norm of a step that is logged, judged or saved
    reads = Counter(crossing["places"][0] for crossing in gpu.within("loop._step"))
    assert {place: count for place, count in reads.items() if place.startswith("loop.")} == {
        "loop._log": 3 * 2,
        "loop._is_whole": len({4, 6, 8, 12}),
    }


def test_a_step_is_waited_for_where_broken_ones_are_to_be_left_out(run: Run) -> None:
    waits = run(*SMALL, *STEPS, "train.non_finite=skip").within("loop._update")
    assert Counter(wait["what"] for wait in waits if wait["waits"]) == {"_local_scalar_dense": 12}


@pytest.mark.parametrize(("memory", "is_there"), [(1 << 30, True), (100, False)])
def test_auto_keeps_the_rows_on_a_gpu_that_has_room_for_them(run: Run, memory: int, is_there: bool) -> None:
    gpu = run(*SMALL, *STEPS, options=(f"--memory={memory}",))
    sent = {crossing["dtype"] for crossing in gpu.within("loop._update")}
    assert (sent == {"torch.int64"}) == is_there
    assert bool(gpu.within("packed.load_rows")) == is_there


@pytest.mark.parametrize("processes", [1, 2])
def test_fp16_trains_and_finds_its_loss_scale(run: Run, processes: int) -> None:
    gpu = run(*SMALL, *STEPS, "train.mixed_precision=fp16", "optim.peak_lr=0.02", processes=processes)
    losses = [line["loss"] for line in gpu.lines if line["split"] == "train"]
    assert losses[-1] < 0.9 * losses[0]


def test_judgement_explanations_page_and_prediction_are_those_of_the_cpu(run: Run, tmp_path: Path) -> None:
    words = (
        *SMALL,
        *STEPS,
        "report.page=true",
        "report.dpi=40",
        "report.importance=true",
        "report.attributions=required",
    )
    gpu, cpu = run(*words, options=("--no-double",)), run(*words, name="cpu")
    for name in ("metrics.json", "explain.json"):
        ours, theirs = (json.loads((each.folder / name).read_text()) for each in (gpu, cpu))
        assert _numbers(ours) == pytest.approx(_numbers(theirs), rel=1e-6, abs=1e-7, nan_ok=True)
        assert len(_numbers(ours)) > 50
    assert (gpu.folder / "report.html").stat().st_size > 100_000
    for each in (gpu, cpu):
        table, output = tmp_path / "table.csv", tmp_path / f"{each.folder.name}.csv"
        run(
            f"--run={each.folder}", f"--input={table}", f"--output={output}", script="predict.py", name=each.folder.name
        )
    assert (tmp_path / "gpu.csv").read_text() == (tmp_path / "cpu.csv").read_text()


def _numbers(value: Any) -> dict[str, float]:
    """All numbers of a file by their places, but for times."""
    if isinstance(value, int | float):
        return {"": value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return {
        f"{key}.{place}": number
        for key, inner in items
        if "seconds" not in str(key)
        for place, number in _numbers(inner).items()
    }


# ---- several GPUs


@pytest.mark.parametrize(
    "words",
    [
        ("train.micro_batch_size=16",),
        ("train.gradient_reduction=exact", "train.canonical_slices=4"),
        ("train.gradient_compression=bf16", "train.profile=true"),
    ],
)
def test_two_gpus_have_the_numbers_of_two_processes_on_the_cpu(run: Run, words: tuple[str, ...]) -> None:
    settings = (*SMALL, *STEPS, *words)
    gpu = run(*settings, processes=2)
    assert gpu.lines == run(*settings, processes=2, name="cpu").lines
    waits = [crossing for crossing in gpu.within("loop._update") if crossing["waits"]]
    # in the first step DDP tells all processes the order of its buckets
    assert all(wait["dtype"] == "torch.int32" and "gradients.sum_loss" in wait["places"] for wait in waits)
    assert len(waits) == (0 if "exact" in words[0] else 2 * 4)
