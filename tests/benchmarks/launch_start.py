"""How soon a 2 x 2 job trains, beside a bare `srun` + `torchrun` of an all-reduce script in the same allocation.

usage: python tests/benchmarks/launch_start.py [TURNS]

Both are started in turns inside one job on a real Slurm of two virtual hosts on this machine. The clock of the
bare one stops at its first all-reduce, that of the launcher at the first line of metrics.jsonl, which is the first
optimizer step. Prints every turn, the medians and their ratio. Needs root and Slurm's programs.
"""

import os
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.slurm.bed import SCRIPT, Bed
from tests.slurm.cluster import Cluster

REDUCE = """
import os, pathlib, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.ones(1)
dist.all_reduce(total)
assert total.item() == 4
if dist.get_rank() == 0:
    pathlib.Path(os.environ["DONE"]).write_text("done")
dist.destroy_process_group()
"""
JOB = """#!/usr/bin/env bash
now() { date +%s.%N; }
until_there() { until [ -s "$1" ]; do sleep 0.01; done; now; }
head=$(scontrol -o show node "$SLURMD_NODENAME" | grep -oP 'NodeAddr=\\K\\S+')
for turn in $(seq "$TURNS"); do
  export DONE=$FOLDER/reduced-$turn PORT=$((21000 + turn))
  start=$(now)
  env -u SLURM_NTASKS -u SLURM_NPROCS srun --ntasks-per-node=1 bash -c 'OMP_NUM_THREADS=1 exec torchrun --nnodes 2 \\
    --nproc-per-node 2 --node-rank $SLURM_PROCID --master-addr '"$head"' --master-port $PORT '"$FOLDER"'/reduce.py' &
  echo "bare $(until_there "$DONE") $start"
  wait
  for doctor in 1 0; do
    run=$FOLDER/run-$turn-$doctor start=$(now)
    LAUNCH_DOCTOR=$doctor bash "$TRAIN" "$@" "run.dir=$run" &
    echo "launch-$doctor $(until_there "$run/metrics.jsonl") $start"
    wait
  done
done
"""


def main() -> None:
    """Measure and print."""
    turns = sys.argv[1] if len(sys.argv) > 1 else "5"
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        for part in ("slurm", "bed"):
            (folder / part).mkdir()
        with Cluster(folder / "slurm", num_nodes=2) as cluster:
            bed = Bed(cluster, folder / "bed")
            (bed.folder / "reduce.py").write_text(REDUCE)
            (bed.folder / "job.sh").write_text(JOB)
            bed.make_reference(5)  # the table is packed from here on, as after the first start of any run
            environment = bed.environment | {"TURNS": turns, "FOLDER": str(bed.folder), "TRAIN": str(SCRIPT)}
            size = ("--nodes=2", "--ntasks-per-node=2", "--exclusive", "--output=out.txt")
            words = bed.words("unused", steps=5)
            job = cluster.submit(*size, str(bed.folder / "job.sh"), *words, cwd=bed.folder, **environment)
            cluster.wait_state(job, "COMPLETED", "FAILED", timeout=900)
            output = (bed.folder / "out.txt").read_text()
    names = {"bare": "srun + torchrun", "launch-1": "slurm/train.sh", "launch-0": "without the doctor"}
    rows = [line.split() for line in output.splitlines() if line.startswith(("bare ", "launch-"))]
    seconds = {kind: [float(end) - float(start) for k, end, start in rows if k == kind] for kind in names}
    if not all(seconds.values()):
        sys.exit(output)
    print(f"{os.cpu_count()} CPU cores, {turns} turns")
    for kind, values in seconds.items():
        median, bare = statistics.median(values), statistics.median(seconds["bare"])
        turns_text = " ".join(f"{value:.2f}" for value in values)
        print(f"{names[kind]:20} median {median:6.2f} s   ratio {median / bare:.2f}   {turns_text}")


if __name__ == "__main__":
    main()
