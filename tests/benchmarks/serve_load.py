"""Latency and throughput of `nn_train.serve` under load, beside plain FastAPI that predicts each request by itself.

usage: python tests/benchmarks/serve_load.py RUN [TURNS [SECONDS]]

RUN is a run folder of configs/telco.yaml. The load comes from `wrk` (Debian: apt-get install wrk), one thread, which
sends one row of data/telco.csv per request and the next one on the same connection as soon as the answer is there. Each
turn measures every server at every number of connections, one after the other, so that all of them meet the same
machine; the table shows medians over the turns, and the processor time that a request cost the server, which is what
other work on the machine changes least. Any answer other than 200 ends the benchmark.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pandas as pd
import psutil

ROOT = Path(__file__).resolve().parents[2]
CONNECTIONS = (1, 16, 64)
NUM_BODIES = 500
PLAIN = """
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel

from nn_train.bundle import load_bundle

class Body(BaseModel):
    rows: list[dict[str, Any]]

torch.set_num_threads(1)
bundle = load_bundle(sys.argv[1])
app = FastAPI()

@app.post("/predict")
{kind} predict(body: Body):
    return bundle.predict(body.rows).to_dict("records")

@app.get("/health")
def health():
    return "ok"

uvicorn.run(app, port=int(sys.argv[2]), log_level="error", access_log=False)
"""
LOAD = """
local bodies, turn = {}, 0
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request()
  turn = turn % #bodies + 1
  return wrk.format(nil, nil, nil, bodies[turn])
end
function done(summary, latency, requests)
  local e = summary.errors
  print(string.format("RESULT %d %d %f %f %f %d", summary.requests, summary.duration, latency:percentile(50),
    latency:percentile(95), latency:percentile(99), e.connect + e.read + e.write + e.status + e.timeout))
end
"""
SERVERS = {
    "nn_train.serve": ["-m", "nn_train.serve", "--run", "{run}", "--port", "{port}"],
    "plain FastAPI, def": ["{folder}/plain_def.py", "{run}", "{port}"],
    "plain FastAPI, async def": ["{folder}/plain_async.py", "{run}", "{port}"],
}


def main() -> None:
    """Measure and print."""
    run = sys.argv[1]
    turns, seconds = (int(word) for word in [*sys.argv[2:], "5", "4"][:2])
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        folder = Path(name)
        (folder / "plain_def.py").write_text(PLAIN.format(kind="def"))
        (folder / "plain_async.py").write_text(PLAIN.format(kind="async def"))
        (folder / "load.lua").write_text(LOAD)
        rows = pd.read_csv(ROOT / "data" / "telco.csv").drop(columns="churn").head(NUM_BODIES)
        bodies = [json.dumps({"rows": [row]}) for row in json.loads(rows.to_json(orient="records"))]
        (folder / "bodies").write_text("\n".join(bodies))
        results: dict[tuple[str, int], list[list[float]]] = {}
        processes = []
        try:
            for port, words in enumerate(SERVERS.values(), start=8600):
                command = [sys.executable, *(word.format(run=run, port=port, folder=folder) for word in words)]
                processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}))
            for port in range(8600, 8600 + len(SERVERS)):
                wait_until_up(port)
            for _ in range(turns):
                for connections in CONNECTIONS:
                    for index, (server, process) in enumerate(zip(SERVERS, processes, strict=True)):
                        before_s = cpu_s(process)
                        found = load(folder, 8600 + index, connections=connections, seconds=seconds)
                        found.append((cpu_s(process) - before_s) * 1e3 / max(1, found[0] * seconds))
                        results.setdefault((server, connections), []).append(found)
        finally:
            for process in processes:
                process.terminate()
    print(f"{os.cpu_count()} CPU cores, {turns} turns of {seconds} s, load average before {before:.1f}, medians\n")
    print("| connections | server | requests/s | p50 ms | p95 ms | p99 ms | CPU ms |\n|---|---|---|---|---|---|---|")
    for connections in CONNECTIONS:
        for server in SERVERS:
            rate, *tail = (statistics.median(column) for column in zip(*results[server, connections], strict=True))
            print(f"| {connections} | {server} | {rate:.0f} | {' | '.join(f'{value:.1f}' for value in tail)} |")


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    """Processor time that a process has had, in seconds."""
    times = psutil.Process(process.pid).cpu_times()
    return times.user + times.system


def wait_until_up(port: int) -> None:
    """Until /health answers."""
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)
    sys.exit(f"nothing answers at port {port}")


def load(folder: Path, port: int, *, connections: int, seconds: int) -> list[float]:
    """Requests a second, and the 50th, 95th and 99th percentile of the latency in ms."""
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s", "-s", str(folder / "load.lua")]
    environment = os.environ | {"BODIES": str(folder / "bodies")}
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/predict"], capture_output=True, text=True, check=True, env=environment
    )
    words = next(line for line in done.stdout.splitlines() if line.startswith("RESULT ")).split()[1:]
    num_requests, microseconds, p50, p95, p99, errors = (float(word) for word in words)
    if errors:
        sys.exit(f"{errors:.0f} requests failed:\n{done.stdout}")
    return [num_requests / microseconds * 1e6, p50 / 1e3, p95 / 1e3, p99 / 1e3]


if __name__ == "__main__":
    main()
