"""The server: real processes on 127.0.0.1, thousands of requests at once with bad ones among them, and its end."""

import asyncio
import contextlib
import dataclasses
import http.client
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pandas as pd
import pytest
import torch
import uvicorn

from nn_train import load_bundle, serve_app
from nn_train.batching import Batcher, Overloaded
from nn_train.bundle import Bundle
from nn_train.errors import ConfigError
from nn_train.serve import main, parse_arguments
from nn_train.serve_app import make_app
from nn_train.serve_rows import RowReader, RowsProblem
from tests.conftest import ROOT, SCRIPT, SMALL, TinyRun, make_table

HEADERS = {"Content-Type": "application/json"}
CHURN = pd.read_csv(ROOT / "data" / "telco.csv").drop(columns="churn")
ROWS: list[dict[str, Any]] = json.loads(CHURN.to_json(orient="records"))


def train(folder: Path, *words: str) -> Path:
    settings = [f"run.dir={folder / 'run'}", f"data.cache_dir={folder / 'cache'}", *SMALL]
    command = [sys.executable, str(SCRIPT), *settings, "train.max_epochs=3", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def telco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 600 rows of the real table."""
    return train(tmp_path_factory.mktemp("telco"), "--config=configs/telco.yaml", "data.max_rows=600")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A regression whose columns have names that are no identifiers, and every form of a value."""
    folder = tmp_path_factory.mktemp("odd")
    frame = make_table(300, task="regression")
    rng = np.random.default_rng(1)
    odd = {
        "column_1": frame["size"],
        "a b": frame["age"],
        "ÄÖ": frame["colour"],
        "model_config": rng.choice(["true", "false"], size=300),
        "$ref": [f"${value:,.2f}" for value in 1000 * rng.random(300)],
        "__class__": rng.choice(["007", "12", "13.5"], size=300),
        "rows": frame["day"].dt.strftime("%Y%m%d"),
        "day": frame["day"].dt.strftime("%Y-%m-%d"),
        "y": frame["y"],
    }
    pd.DataFrame(odd).to_csv(folder / "table.csv", index=False)
    kinds = ["data.columns.rows=date", "data.columns.__class__=categorical"]
    return train(folder, f"data.path={folder / 'table.csv'}", "data.target=y", *kinds)


class Server:
    """A server process."""

    def __init__(self, run: Path, folder: Path, *words: str):
        self.errors = folder / "errors"
        command = [sys.executable, "-m", "nn_train.serve", "--run", str(run), "--port", "0", *words]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=ROOT, env=os.environ | {}
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://[\d.]+:(\d+)$", line)
        assert found, line + self.errors.read_text()
        self.port = int(found.group(1))

    def ask(
        self, body: Any = None, *, path: str = "/predict", method: str = "POST", headers: dict[str, str] = HEADERS
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, JSON and headers of the answer; a body that is no text or bytes is sent as JSON."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        with contextlib.closing(connection):
            content = body if isinstance(body, bytes | str | None) else json.dumps(body)
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read()), response.headers

    def get(self, path: str) -> Any:
        status, content, _ = self.ask(path=path, method="GET")
        assert status == 200
        return content

    def end(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and the rest of its output, which holds no error."""
        self.process.send_signal(number)
        return self.wait()

    def wait(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        output = self.process.stdout.read()  # `communicate` would lose what came with the first line
        self.process.wait(timeout=180)
        self.process.stdout.close()
        assert self.errors.read_text() == ""
        return self.process.returncode, output


@contextlib.contextmanager
def serving(run: Path, folder: Path, *words: str) -> Iterator[Server]:
    server = Server(run, folder, *words)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.process.communicate()


@pytest.fixture(scope="module")
def server(telco: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(telco, tmp_path_factory.mktemp("server"), "--max-request-rows=50") as server:
        yield server


class Connection:
    """One connection that is kept, so that the test and not its client is what takes the time."""

    def __init__(self, port: int):
        self.port = port
        self.reader: asyncio.StreamReader | None = None

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=2**22)

    async def close(self) -> None:
        if self.reader is not None:
            self.reader = None
            self.writer.close()
            with contextlib.suppress(ConnectionError):
                await self.writer.wait_closed()

    async def send(self, raw: bytes, *, answered: bool = True) -> tuple[int, bytes]:
        """Status and body. Raises ConnectionError where the server ends the connection before it says anything."""
        if self.reader is None:
            await self.open()
        assert self.reader is not None
        self.writer.write(raw)
        if not answered:
            await self.writer.drain()
            await self.close()
            return 0, b""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError as error:
            assert not error.partial, "half an answer"
            await self.close()
            raise ConnectionResetError from None
        fields = dict(line.lower().split(": ", 1) for line in head.decode().split("\r\n")[1:-2])
        body = await self.reader.readexactly(int(fields["content-length"]))
        if fields.get("connection") == "close":
            await self.close()
        return int(head.split()[1]), body


async def send_once(port: int, raw: bytes) -> tuple[int, bytes]:
    connection = Connection(port)
    answer = await connection.send(raw)
    await connection.close()
    return answer


def request(body: bytes, *, path: str = "/predict", method: str = "POST", kind: str = "application/json") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def as_body(rows: list[Any]) -> bytes:
    return json.dumps({"rows": rows}).encode()


class Load:
    """Many requests, each with what must come back; every one carries its own number there and back."""

    def __init__(self, bundle: Bundle, *, seed: int = 0):
        self.rng = np.random.default_rng(seed)
        self.wanted = bundle.predict(CHURN)
        assert len(self.wanted["p_Yes"].round(6).unique()) > 4000  # answers that were mixed up would differ
        self.places: list[np.ndarray] = []

    def good(self, number: int) -> tuple[bytes, Any]:
        places = self.rng.integers(0, len(ROWS), size=self.rng.integers(1, 5))
        rows = [ROWS[place] | {f"request {number}": 1} for place in places]
        return request(as_body(rows)), places

    def bad(self, number: int) -> tuple[bytes, Any]:
        """A request with a mistake: status and a text that its answer holds; None where it goes away."""
        row = ROWS[int(self.rng.integers(0, len(ROWS)))]
        name = str(self.rng.choice(list(row)))
        tag = f"tag{number}"
        rest = {key: value for key, value in row.items() if key != name}
        kinds: list[tuple[bytes, Any]] = [
            (request(as_body([row, row | {"tenure": tag}])), (422, f"row 1 (from 0), column 'tenure': \\\"{tag}\\\"")),
            (request(as_body([row | {name: {tag: 1}}])), (422, f"row 0 (from 0), column '{name}': an object")),
            (request(as_body([rest])), (422, f"column '{name}': missing")),
            (request(b'{"rows": [{"tenure": NaN'), (422, "no JSON object")),
            (request(json.dumps({"rows": [row], tag: 1}).encode()), (422, f"'{tag}' is not known")),
            (request(as_body([row] * 51)), (422, "more than 50")),
            (request(b'"' + b"x" * 2**20 + b'"'), (413, "1048576 bytes")),
            (request(as_body([row]), kind="text/plain"), (415, "application/json")),
            (request(b"", path="/nothing"), (404, "Not Found")),
            (request(b"", method="GET"), (405, "Method Not Allowed")),
            (b"no http\r\n\r\n", (400, "")),
            (request(as_body([row]))[:-20], None),  # cut off within the body
            (request(as_body([row])), None),  # goes away without waiting
        ]
        return kinds[number % len(kinds)]

    def check(self, number: int, wanted: Any, status: int, body: bytes) -> None:
        if isinstance(wanted, tuple):
            assert status == wanted[0] and wanted[1] in body.decode(), (wanted, status, body)
            return
        assert status == 200, body
        answer = json.loads(body)
        assert answer["warnings"]["ignored_columns"] == [f"request {number}"]
        truth = self.wanted.iloc[wanted]
        found = [item["probabilities"]["Yes"] for item in answer["predictions"]]
        np.testing.assert_allclose(found, truth["p_Yes"], atol=1e-6, rtol=0)
        assert [item["prediction"] for item in answer["predictions"]] == truth["prediction"].tolist()


def test_of_10000_concurrent_requests_none_is_lost_or_mixed_up(telco: Path, server: Server) -> None:
    load = Load(load_bundle(telco))
    jobs = [load.bad(number) if number % 8 == 0 else load.good(number) for number in range(10_000)]
    before = server.get("/health")
    numbers = iter(range(len(jobs)))
    done: list[int] = []

    async def client() -> None:
        connection = Connection(server.port)
        for number in numbers:
            raw, wanted = jobs[number]
            status, body = await connection.send(raw, answered=wanted is not None)
            if wanted is not None:
                load.check(number, wanted, status, body)
            done.append(number)
        await connection.close()

    async def run() -> None:
        await asyncio.gather(*(client() for _ in range(64)))

    asyncio.run(run())
    assert sorted(done) == list(range(10_000))
    after = server.get("/health")
    num_cut = sum(wanted is None for _, wanted in jobs)
    num_elsewhere = sum(isinstance(wanted, tuple) and wanted[0] in (400, 404, 405) for _, wanted in jobs)
    num_good = sum(isinstance(wanted, np.ndarray) for _, wanted in jobs)
    counts = {name: after[name] - before[name] for name in ("requests", "answered", "refused", "failed", "cut")}
    assert counts["failed"] == 0
    assert counts["refused"] == len(jobs) - num_good - num_cut - num_elsewhere
    assert num_good <= counts["answered"] <= num_good + num_cut
    assert after["most_requests_in_a_batch"] > 4
    assert server.errors.read_text() == ""


def test_sigterm_under_load_ends_with_0_and_everything_taken_is_answered(telco: Path, tmp_path: Path) -> None:
    load = Load(load_bundle(telco))
    answered = 0

    with serving(telco, tmp_path) as server:

        async def client(first: int) -> None:
            nonlocal answered
            connection = Connection(server.port)
            with contextlib.suppress(ConnectionError):  # of a request that was not taken
                for turn in range(10**6):
                    raw, wanted = load.good(first + turn)
                    load.check(first + turn, wanted, *await connection.send(raw))
                    answered += 1
            await connection.close()

        async def run() -> None:
            clients = [asyncio.create_task(client(10**6 * index)) for index in range(32)]
            while answered < 200:
                await asyncio.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(asyncio.gather(*clients), 180)

        asyncio.run(run())
        code, output = server.wait()
    assert code == 0
    assert output == f"stopped; {answered} of {answered} requests answered, 0 refused\n"


def test_a_full_queue_says_503_and_when_to_come_again(telco: Path, tmp_path: Path) -> None:
    load = Load(load_bundle(telco))
    refused = 0

    async def client(port: int, first: int) -> None:
        nonlocal refused
        connection = Connection(port)
        for turn in range(2):
            place = int(load.rng.integers(0, len(ROWS)))
            raw = request(as_body([ROWS[place] | {f"request {first + turn}": 1}]))
            while (answer := await connection.send(raw))[0] == 503:
                assert b"too many requests" in answer[1]
                refused += 1
                await asyncio.sleep(0.1)
            load.check(first + turn, np.array([place]), *answer)
        await connection.close()

    async def run(port: int) -> None:
        await asyncio.gather(*(client(port, 10 * index) for index in range(32)))

    with serving(telco, tmp_path, "--max-batch-rows=1", "--max-request-rows=1") as server:
        asyncio.run(run(server.port))
        assert server.get("/health")["refused"] == refused > 0
        assert server.end(signal.SIGINT) == (0, f"stopped; 64 of {64 + refused} requests answered, {refused} refused\n")


# ---- the schema


def test_openapi_shows_the_runs_schema(telco: Path, server: Server) -> None:
    bundle = load_bundle(telco)
    document = server.get("/openapi.json")
    schemas = document["components"]["schemas"]
    row = schemas["Row"]
    assert set(row["properties"]) == set(row["required"]) == set(bundle.features)
    assert row["additionalProperties"] is True and schemas["Rows"]["additionalProperties"] is False
    assert schemas["Rows"]["properties"]["rows"]["maxItems"] == 50
    assert schemas["Prediction"]["properties"]["prediction"]["enum"] == ["No", "Yes"]
    kinds = {name: [kind["type"] for kind in part["anyOf"]] for name, part in row["properties"].items()}
    assert kinds["tenure"] == ["number", "null"]
    assert kinds["female"] == ["string", "number", "null"]  # 0 and 1
    assert kinds["contract"] == ["string", "null"]
    assert '"Two year"' in row["properties"]["contract"]["description"]
    body = document["paths"]["/predict"]["post"]["requestBody"]
    assert body["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Rows"}

    def fits(content: Any, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(content)

    example = schemas["Rows"]["example"]
    fits(example, "Rows")
    assert example["rows"][0]["tenure"] == 1 and example["rows"][0]["female"] == 1
    for content in (example, {"rows": []}, {"rows": ROWS[:50]}):
        status, answer, _ = server.ask(content)
        assert status == 200 and len(answer["predictions"]) == len(content["rows"])
        fits(answer, "Answer")
    for content, wanted, name in (({}, 422, "CellProblems"), (b"x" * 2**21, 413, "Problem")):
        status, answer, _ = server.ask(content)
        assert status == wanted
        fits(answer, name)


VALUES = [None, 0, 1, 7, 12.0, 13.5, True, False, "", "0", "1", "12", "abc", "true", "007", " red ", "$1,250.50", "NA",
          "2024-01-31", 20240131, "20240131", 1e300, [], {}, [1], {"a": 1}]  # fmt: skip


@pytest.mark.parametrize("name", ["telco", "odd"])
def test_what_the_openapi_document_allows_is_read_and_the_rest_is_refused(
    name: str, request: pytest.FixtureRequest
) -> None:
    bundle = load_bundle(request.getfixturevalue(name))
    reader = RowReader(bundle, max_rows=10)
    validator = jsonschema.Draft202012Validator(reader.json_schema("#/$defs/{model}"))
    num_read = 0
    for column in bundle.features:
        for value in VALUES:
            rows = [reader.example, reader.example | {column: value}]
            try:
                reader.read(as_body(rows))
                is_read = True
            except RowsProblem as problem:
                (found,) = problem.problems
                assert found["loc"] == ["body", "rows", 1, column]
                assert f"row 1 (from 0), column '{column}'" in found["msg"]
                is_read = False
            if column == "$ref" and isinstance(value, str):  # text, if it is an amount
                assert is_read == (value in {"0", "1", "12", "007", "20240131", "$1,250.50"}), value
            else:
                assert is_read == validator.is_valid({"rows": rows}), (column, value)
            num_read += is_read
    assert 0.2 < num_read / len(bundle.features) / len(VALUES) < 0.8


@pytest.mark.parametrize("name", ["telco", "odd"])
def test_values_in_json_mean_what_they_mean_to_the_bundle(name: str, request: pytest.FixtureRequest) -> None:
    bundle = load_bundle(request.getfixturevalue(name))
    service = serve_app._Service(bundle, max_rows=1000, max_bytes=10**6)
    rows, others = [], []
    for column in bundle.features:
        for value in VALUES:
            with contextlib.suppress(RowsProblem):
                row = service.reader.example | {column: value}
                rows += service.reader.read(as_body([row]))[0]
                others.append(row)
    together = [json.loads(answer) for answer in service.compute([(([row]), []) for row in rows])]
    for row, answer in zip(others, together, strict=True):
        (found,) = answer["predictions"]
        (wanted,) = bundle.predict([row]).to_dict("records")  # alone, and as it stands in JSON
        numbers = [found["prediction"], *found.get("probabilities", {}).values()]
        for number, truth in zip(numbers, wanted.values(), strict=True):
            assert number == (truth if isinstance(truth, str) else pytest.approx(truth, abs=1e-6, rel=1e-6))
    assert sum(bool(answer["warnings"]["unseen"]) for answer in together) > 3
    assert sum(bool(answer["warnings"]["missing"]) for answer in together) > len(bundle.features)


def test_warnings_count_what_was_met_in_this_request_alone(telco: Path) -> None:
    service = serve_app._Service(load_bundle(telco), max_rows=10, max_bytes=10**6)
    rows = [
        [ROWS[0], ROWS[1] | {"tenure": None, "contract": "never"}],
        [],
        [ROWS[2] | {"contract": "ever", "female": 3, "zip": "1"}, ROWS[3] | {"contract": "NA"}],
    ]
    requests = [service.reader.read(as_body(some)) for some in rows]
    found = [json.loads(answer) for answer in service.compute(requests)]
    nothing = {"missing": {}, "unreadable": {}, "unseen": {}, "ignored_columns": []}
    assert [len(answer["predictions"]) for answer in found] == [2, 0, 2]
    assert found[0]["warnings"] == nothing | {"missing": {"tenure": 1}, "unseen": {"contract": 1}}
    assert found[1]["warnings"] == nothing
    assert found[2]["warnings"] == nothing | {
        "missing": {"contract": 1}, "unseen": {"female": 1, "contract": 1}, "ignored_columns": ["zip"],
    }  # fmt: skip


def test_three_classes_are_served_on_an_open_address_with_a_warning(tiny_run: TinyRun, tmp_path: Path) -> None:
    run = tiny_run("multiclass")
    frame = pd.read_csv(run.parent / "table.csv").drop(columns="y").head(40)
    wanted = load_bundle(run).predict(frame)
    with serving(run, tmp_path, "--host=0.0.0.0") as server:
        status, answer, _ = server.ask({"rows": json.loads(frame.to_json(orient="records"))})
        assert server.get("/health")["task"] == "multiclass"
        code, output = server.end()
    assert status == 200 and code == 0
    assert output.splitlines() == [
        "warning: whoever reaches this address can use it: there is no login and no TLS",
        "stopped; 1 of 1 requests answered, 0 refused",
    ]
    found = [[item["prediction"], *item["probabilities"].values()] for item in answer["predictions"]]
    assert [row[0] for row in found] == wanted["prediction"].tolist()
    np.testing.assert_allclose([row[1:] for row in found], wanted.iloc[:, 1:], atol=1e-6)


# ---- limits and mistakes


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (as_body([5]), "row 0 (from 0): 5 where an object is meant"),
        (b'{"rows": 5}', "no list of rows"),
        (b"[]", "no JSON object"),
        (b"", "no JSON object"),
        (b"\xff\xfe{}", "no JSON object"),
        (b'{"rows": ' + b"[" * 100_000, "recursion limit"),
        (b'{"rows": [{"tenure": ' + b"1" * 5000, "out of range"),
        (as_body([ROWS[0] | {"tenure": float("nan")}]), "column 'tenure': NaN where a JSON number is meant"),
        (as_body([ROWS[0] | {"tenure": 10**400}]), "column 'tenure': 1000"),
        (as_body([ROWS[0], ROWS[1] | {"tenure": "<b>5</b>"}]), "row 1 (from 0), column 'tenure': \"<b>5</b>\""),
        (as_body([{"tenure": True}]), "column 'tenure': true where a JSON number is meant"),
        (as_body([{}]), "column 'female': missing; give null"),
    ],
)
def test_a_mistake_is_a_422_that_names_it(body: bytes, message: str, server: Server) -> None:
    status, answer, headers = server.ask(body)
    assert status == 422
    assert message in [item["msg"][: len(message)] for item in answer["detail"]] or message in str(answer)
    assert headers["Content-Type"] == "application/json" and headers["X-Content-Type-Options"] == "nosniff"
    assert len(json.dumps(answer)) < 5000


def chunked(parts: int, size: int) -> Iterator[bytes]:
    for _ in range(parts):
        yield b"%x\r\n" % size + b" " * size + b"\r\n"


def test_a_body_that_does_not_say_how_long_it_is_meets_the_limit_as_well(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    seconds = time.monotonic()

    async def send(parts: int) -> tuple[int, bytes]:
        connection = Connection(server.port)
        await connection.open()
        connection.writer.write(head)
        with contextlib.suppress(ConnectionError):
            for part in chunked(parts, 2**16):
                connection.writer.write(part)
                await connection.writer.drain()
        answer = await connection.send(b"0\r\n\r\n")
        await connection.close()
        return answer

    status, body = asyncio.run(send(20))  # 1.25 MiB of 1 allowed
    assert status == 413 and b"1048576 bytes" in body
    with contextlib.suppress(ConnectionError):  # without end: the server answers, and hangs up
        assert asyncio.run(send(1000))[0] == 413
    assert time.monotonic() - seconds < 30
    declared = (
        "POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n"
    )
    assert asyncio.run(send_once(server.port, declared.encode()))[0] == 413
    assert server.ask({"rows": ROWS[:1]})[0] == 200


def test_no_page_loads_anything_from_elsewhere(server: Server) -> None:
    for path in ("/", "/docs", "/redoc"):
        assert server.ask(path=path, method="GET")[0] == 404


@contextlib.asynccontextmanager
async def in_this_process(app: Any) -> AsyncIterator[int]:
    """The application under a server in a thread; its port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


def test_a_body_that_does_not_arrive_is_given_up(telco: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app, "BODY_S", 0.2)

    async def run() -> tuple[int, bytes]:
        async with in_this_process(make_app(load_bundle(telco))) as port:
            connection = Connection(port)
            answer = await connection.send(request(as_body(ROWS[:1]))[:-20])
            assert connection.reader is None  # the server has closed it
            return answer

    status, body = asyncio.run(run())
    assert status == 408 and b"did not arrive" in body


class Fragile(torch.nn.Module):
    """A network that cannot bear one row."""

    def __init__(self, network: torch.nn.Module, row: torch.Tensor):
        super().__init__()
        self.network, self.row = network, row

    def forward(self, x_num: torch.Tensor, x_cat: torch.Tensor) -> torch.Tensor:
        if (x_num == self.row).all(1).any():
            raise RuntimeError(f"secret {x_num[0]}")
        return self.network(x_num, x_cat)


def test_a_row_that_breaks_the_network_fails_alone(telco: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = load_bundle(telco)
    load = Load(bundle)
    row = torch.from_numpy(bundle.encode([ROWS[5]]).x_num)
    fragile = dataclasses.replace(bundle, network=Fragile(bundle.network, row))
    places = [index for index in range(40) if index == 5 or ROWS[index]["tenure"] != ROWS[5]["tenure"]]

    async def run() -> list[tuple[int, bytes]]:
        async with in_this_process(make_app(fragile, max_wait_ms=300)) as port:
            return await asyncio.gather(
                *(send_once(port, request(as_body([ROWS[place] | {f"request {place}": 1}]))) for place in places)
            )

    for place, (status, body) in zip(places, asyncio.run(run()), strict=True):
        if place == 5:
            assert status == 500 and json.loads(body)["detail"] == (
                "the prediction failed; it is no mistake of the request"
            )
        else:
            load.check(place, np.array([place]), status, body)
    assert "a prediction failed: RuntimeError" in caplog.text and "secret" not in caplog.text


# ---- the batcher


def test_a_batch_takes_what_waits_up_to_its_rows_and_drops_who_gave_up() -> None:
    sizes: list[list[int]] = []
    gate = threading.Event()

    def compute(requests: list[int]) -> list[int]:
        sizes.append(list(requests))
        gate.wait(10)
        return [10 * number for number in requests]

    async def run() -> None:
        batcher = Batcher[int, int](compute, max_rows=10, max_wait_s=0, max_waiting_rows=20)
        batcher.start()
        first = asyncio.create_task(batcher.submit(1, num_rows=1))
        while not sizes:
            await asyncio.sleep(0.001)
        rest = [asyncio.create_task(batcher.submit(number, num_rows=number)) for number in (4, 5, 6, 3)]
        await asyncio.sleep(0.01)
        with pytest.raises(Overloaded):
            await batcher.submit(8, num_rows=8)
        rest[1].cancel()
        gate.set()
        assert await first == 10
        await asyncio.wait(rest)
        assert [task.result() for task in (rest[0], rest[2], rest[3])] == [40, 60, 30]
        assert rest[1].cancelled()
        await batcher.close()
        with pytest.raises(Overloaded):
            await batcher.submit(1, num_rows=1)

    asyncio.run(run())
    assert sizes == [[1], [4], [6, 3]]


def test_requests_of_the_same_turn_are_one_batch_and_a_waiting_one_lets_others_join() -> None:
    sizes: list[int] = []

    def compute(requests: list[int]) -> list[int]:
        sizes.append(len(requests))
        return requests

    async def run(wait_s: float, pause_s: float) -> None:
        batcher = Batcher[int, int](compute, max_rows=100, max_wait_s=wait_s, max_waiting_rows=1000)
        batcher.start()

        async def submit(number: int) -> int:
            await asyncio.sleep(pause_s * number)
            return await batcher.submit(number, num_rows=1)

        assert await asyncio.gather(*(submit(number) for number in range(30))) == list(range(30))
        await batcher.close()

    asyncio.run(run(0, 0))
    assert sizes == [30]
    sizes.clear()
    asyncio.run(run(0.5, 0.001))
    assert sizes == [30]


# ---- the command


def test_help_shows_the_options_without_loading_torch(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for name, value in vars(parse_arguments(["--run=x"])).items():
        assert f"--{name.replace('_', '-')}" in text
        assert value == "x" or f"default: {value}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--run is missing"),
        (["--run=x", "--prot=1"], "unknown option --prot=1"),
        (["--run=x", "--port=70000"], "70000 is not 0 to 65535"),
        (["--run=x", "--max-batch-rows=0"], "0 is not 1 or more"),
        (["--run=x", "--threads=two"], "invalid whole number value: 'two'"),
        (["--run=x", "--max-wait-ms=nan"], "nan is not 0 to 1000"),
        (["--run=x", "--max-wait-ms=soon"], "invalid number of milliseconds value: 'soon'"),
    ],
)
def test_a_wrong_option_is_named(words: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_arguments(words)


def test_mistakes_end_with_2_and_one_message(
    telco: Path, server: Server, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["--run", str(tmp_path)]) == 2
    assert "no bundle can be read here" in capfd.readouterr().err
    assert main(["--run", str(telco), f"--port={server.port}"]) == 2
    assert f"cannot listen on port {server.port} of 127.0.0.1: Address already in use" in capfd.readouterr().err
    assert main(["--run", str(telco), "--host=no.such.host.invalid"]) == 2
    assert "cannot listen on port 8000 of no.such.host.invalid" in capfd.readouterr().err


def test_the_readmes_request_is_answered(server: Server) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    words = shlex.split(
        text[text.index("curl -s http://127.0.0.1:8000/predict") :].split("\n```")[0].replace("\\\n", " ")
    )
    assert words[2].endswith("/predict") and words[3:6] == ["-H", "Content-Type: application/json", "-d"]
    status, answer, _ = server.ask(words[6])
    assert status == 200 and len(answer["predictions"]) == 1
    assert answer["warnings"] == {"missing": {}, "unreadable": {}, "unseen": {}, "ignored_columns": []}
