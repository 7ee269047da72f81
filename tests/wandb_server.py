"""As much of a wandb server, on this machine, as `wandb sweep` and `wandb agent` ask for."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

PROJECT = {"id": "p", "name": "nn_train", "entity": {"id": "e", "name": "e"}}


class SweepServer(ThreadingHTTPServer):
    """Takes one sweep and hands out the trials that it is given, all at the first heartbeat."""

    def __init__(self, trials: list[tuple[str, dict[str, Any]]]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.trials = trials
        self.sweep: dict[str, Any] = {}
        self.asked: list[str] = []

    def answer(self, query: str, variables: dict[str, Any]) -> dict[str, Any] | None:
        if "UpsertSweep" in query:
            self.sweep = yaml.safe_load(variables["config"])
            return {"upsertSweep": {"sweep": {"name": "s1", "project": PROJECT}, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            sweep = {"id": "s", "name": "s1", "config": yaml.dump(self.sweep), "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "CreateAgent" in query:
            return {"createAgent": {"agent": {"id": "a"}}}
        if "Heartbeat" in query:
            commands = [self.start(run_id, settings) for run_id, settings in self.trials]
            self.trials = []
            return {"agentHeartbeat": {"agent": {"id": "a"}, "commands": json.dumps(commands)}}
        if "Viewer" in query or "viewer" in query:
            return {"viewer": {"id": "v", "entity": "e", "username": "u", "flags": "{}", "teams": {"edges": []}}}
        return None

    def start(self, run_id: str, settings: dict[str, Any]) -> dict[str, Any]:
        args = {name: {"value": value} for name, value in settings.items()}
        return {"type": "run", "run_id": run_id, "program": self.sweep["program"], "args": args}


class _Handler(BaseHTTPRequestHandler):
    server: SweepServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        answer = None
        if self.path == "/graphql":
            asked = json.loads(body)
            self.server.asked.append(asked["query"])
            answer = self.server.answer(asked["query"], asked.get("variables") or {})
        self.send_response(200 if answer else 400)
        self.end_headers()
        if answer:
            self.wfile.write(json.dumps({"data": answer}).encode())

    do_GET = do_PUT = do_POST

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def serve(trials: list[tuple[str, dict[str, Any]]]) -> Iterator[SweepServer]:
    """A server while the block runs."""
    server = SweepServer(trials)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
