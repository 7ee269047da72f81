"""The HTTP application of a trained network: `/predict`, `/health` and `/openapi.json`.

One event loop reads and checks requests; one thread owns the network (`batching.py`) and writes the answers. Nothing
of a request is logged, kept, or sent to anybody else than its sender.
"""

import asyncio
import importlib.metadata
import json
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.requests import ClientDisconnect

from nn_train.batching import Batcher, Overloaded
from nn_train.bundle import Bundle
from nn_train.errors import DataError, short
from nn_train.incoming import encode_groups
from nn_train.serve_rows import CellProblems, Problem, RowReader, RowsProblem, answer_model, write_answer

logger = logging.getLogger("nn_train")
BODY_S = 15  # in which a request's body must have arrived
WAITING_BATCHES = 16  # that the queue holds
DRAINED = 8  # a body up to this many times too large is read to its end, so that its sender can read the answer
MOST_DIGITS = 15  # of a length that is worth reading
JSON = "application/json"
PROBLEMS = {
    408: f"The body did not arrive within {BODY_S} seconds.",
    413: "The body is too large.",
    415: f"The body is not sent as {JSON}.",
    500: "The network failed; it is no mistake of the request.",
    503: "Too many requests wait; come again after the seconds in Retry-After.",
}
Rows = tuple[list[tuple[Any, ...]], list[str]]  # rows of a request, and the other columns that they have


class _Refused(Exception):
    """A request that is not answered."""

    def __init__(self, status: int, detail: Any, **headers: str):
        super().__init__(status)
        self.status = status
        self.detail = detail
        self.headers = headers


def make_app(
    bundle: Bundle,
    *,
    max_batch_rows: int = 1024,
    max_wait_ms: float = 0.0,
    max_request_rows: int = 1000,
    max_request_bytes: int = 2**20,
) -> FastAPI:
    """An ASGI application that predicts with `bundle`.

    Args:
        bundle: what `load_bundle` gives.
        max_batch_rows: rows of one forward; a larger request is one by itself.
        max_wait_ms: how long a request may be held back so that others join it; those that arrive together always do.
        max_request_rows: rows of a request; more are refused with 422.
        max_request_bytes: bytes of a request's body; more are refused with 413.
    """
    service = _Service(bundle, max_rows=max_request_rows, max_bytes=max_request_bytes)
    service.batcher = Batcher(
        service.compute,
        max_rows=max_batch_rows,
        max_wait_s=max_wait_ms / 1000,
        max_waiting_rows=WAITING_BATCHES * max(max_batch_rows, max_request_rows),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        await service.warm_up()
        yield
        await service.batcher.close()

    # the pages of FastAPI's documentation load scripts from another host
    app = FastAPI(title=short(f"{bundle.info['name']}: predictions"), docs_url=None, redoc_url=None, lifespan=lifespan)
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in PROBLEMS.items()
    }
    responses[422] = {"model": CellProblems, "description": "The body is no JSON, or does not fit the schema."}
    body = {"required": True, "content": {JSON: {"schema": {"$ref": "#/components/schemas/Rows"}}}}
    app.add_api_route(
        "/predict",
        service.predict,
        methods=["POST"],
        response_model=answer_model(bundle),
        responses=responses,
        openapi_extra={"requestBody": body},
        summary=short(f"Predict '{bundle.schema.target.name}' of rows"),
    )
    app.add_api_route(
        "/health", service.health, methods=["GET"], summary="Is it up, what does it serve, what did it do"
    )
    _add_schema(app, service.reader)
    app.state.counts = service.counts
    return app


def _add_schema(app: FastAPI, reader: RowReader) -> None:
    """Put the type of the body, which `predict` reads itself, into the OpenAPI document."""
    schema = reader.json_schema("#/components/schemas/{model}")
    document = app.openapi()  # the application keeps this very object
    document["components"]["schemas"] |= {**schema.pop("$defs"), "Rows": schema}


class _Service:
    """The endpoints, and what they count."""

    batcher: Batcher[Rows, bytes]

    def __init__(self, bundle: Bundle, *, max_rows: int, max_bytes: int):
        self.bundle = bundle
        self.reader = RowReader(bundle, max_rows=max_rows)
        self.max_bytes = max_bytes
        self.versions = {name: importlib.metadata.version(name) for name in ("nn-train", "torch", "fastapi")}
        self.started_s = time.monotonic()
        self.counts: Counter[str] = Counter()

    async def warm_up(self) -> None:
        """Predict an example, so that the first request finds everything imported."""
        body = json.dumps({"rows": [self.reader.example]}).encode()
        await self.batcher.submit(self.reader.read(body), num_rows=1)

    def compute(self, requests: list[Rows]) -> list[bytes]:
        """The bodies of the answers; in the batcher's thread."""
        bundle = self.bundle
        together = [row for rows, _ in requests for row in rows]
        columns = {name: [row[index] for row in together] for index, name in enumerate(self.reader.names)}
        sizes = [len(rows) for rows, _ in requests]
        encoded, counts = encode_groups(columns, sizes, bundle.preprocessor, bundle.schema, bundle.reading)
        scores = bundle.decision.scores(bundle.logits(encoded), bundle.preprocessor)
        answers, start = [], 0
        for (rows, others), met in zip(requests, counts, strict=True):
            answers.append(write_answer(bundle, scores[start : start + len(rows)], met, others))
            start += len(rows)
        return answers

    async def predict(self, request: Request) -> Response:
        """Predict rows of the table."""
        self.counts["requests"] += 1
        try:
            rows, others = self.reader.read(await self._read_body(request))
            content = await self._answer(rows, others)
        except ClientDisconnect:
            self.counts["cut"] += 1
            return Response(status_code=400)  # to nobody
        except RowsProblem as problem:
            return self._refuse(_Refused(422, problem.problems))
        except _Refused as refused:
            return self._refuse(refused)
        self.counts["answered"] += 1
        self.counts["rows"] += len(rows)
        return Response(content, media_type=JSON)

    async def health(self) -> dict[str, Any]:
        """The state of the server; requests are counted since its start."""
        info, batcher = self.bundle.info, self.batcher
        counts = {name: self.counts[name] for name in ("requests", "answered", "refused", "failed", "cut")}
        return {
            "status": "ok",
            "run": info["name"],
            "task": self.bundle.task,
            "target": self.bundle.schema.target.name,
            "versions": self.versions,
            "trained_with": info["versions"],
            "uptime_s": round(time.monotonic() - self.started_s, 3),
            **counts,
            "rows": self.counts["rows"],
            "batches": batcher.num_batches,
            "most_requests_in_a_batch": batcher.most_requests,
        }

    async def _answer(self, rows: list[tuple[Any, ...]], others: list[str]) -> bytes:
        try:
            return await self.batcher.submit((rows, others), num_rows=len(rows))
        except Overloaded:
            raise _Refused(503, "too many requests wait", **{"Retry-After": "1"}) from None
        except DataError as error:
            raise _Refused(422, [{"loc": ["body", "rows"], "msg": str(error), "type": "data"}]) from None
        except Exception as error:
            # the type alone: a message may hold values of the request
            logger.error("a prediction failed: %s", type(error).__name__)
            self.counts["failed"] += 1
            raise _Refused(500, "the prediction failed; it is no mistake of the request") from None

    async def _read_body(self, request: Request) -> bytes:
        """The body, which is never trusted to be as long as it says."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON:
            raise _Refused(415, f"send the body as Content-Type: {JSON}")
        declared = request.headers.get("content-length", "")
        too_large = _Refused(413, f"the body has more than {self.max_bytes} bytes; send fewer rows", Connection="close")
        if declared.isdecimal() and (len(declared) > MOST_DIGITS or int(declared) > DRAINED * self.max_bytes):
            raise too_large
        parts, num_bytes = [], 0
        try:
            async with asyncio.timeout(BODY_S):
                async for part in request.stream():
                    num_bytes += len(part)
                    if num_bytes <= self.max_bytes:
                        parts.append(part)
                    elif num_bytes > DRAINED * self.max_bytes:
                        break
        except TimeoutError:
            raise _Refused(408, PROBLEMS[408], Connection="close") from None
        if num_bytes > self.max_bytes:
            raise too_large
        return b"".join(parts)

    def _refuse(self, refused: _Refused) -> Response:
        self.counts["refused"] += 1
        return JSONResponse({"detail": refused.detail}, refused.status, headers=refused.headers)
