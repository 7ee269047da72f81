"""Requests that wait are answered together: a bounded queue and one thread that owns the network.

The event loop hands requests in; the thread takes all that wait, up to a number of rows, and computes them at once.
The longer it computes, the more wait, so that batches grow with the load by themselves.
"""

import asyncio
import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Request = TypeVar("Request")
Answer = TypeVar("Answer")


class Overloaded(Exception):
    """As many rows wait as the queue holds; or it takes no more because it is closed."""


@dataclasses.dataclass(kw_only=True)
class _Job(Generic[Request, Answer]):
    request: Request
    num_rows: int
    future: asyncio.Future[Answer]


class Batcher(Generic[Request, Answer]):
    """Answers requests in batches by `compute`, which gives one answer for each request, in their order.

    `compute` runs in one thread, on at most `max_rows` rows, or on a single larger request. Where it raises for a
    batch, its requests are computed one by one, so that one which fails costs the others nothing but time.
    A request is held back for at most `max_wait_s` so that others may join it; with 0, those that the event
    loop has read in the same turn do.
    """

    def __init__(
        self,
        compute: Callable[[list[Request]], Sequence[Answer]],
        *,
        max_rows: int,
        max_wait_s: float,
        max_waiting_rows: int,
    ):
        self._compute = compute
        self.max_rows = max_rows
        self.max_wait_s = max_wait_s
        self.max_waiting_rows = max_waiting_rows
        self.num_batches = 0
        self.most_requests = 0  # of one batch
        self._changed = threading.Condition()
        self._queue: deque[_Job[Request, Answer]] = deque()  # this and the three below only under the condition's lock
        self._waiting_rows = 0
        self._num_ready = 0  # requests at the head of the queue that are held back no more
        self._is_closed = False
        self._timer: asyncio.Handle | None = None
        self._thread = threading.Thread(target=self._work, name="network", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    async def submit(self, request: Request, *, num_rows: int) -> Answer:
        """The answer to a request; to be called on one event loop alone.

        Raises:
            Overloaded: the queue is full, or closed.
            Whatever `compute` raises for this request alone.
        """
        loop = asyncio.get_running_loop()
        job = _Job[Request, Answer](request=request, num_rows=num_rows, future=loop.create_future())
        with self._changed:
            if self._is_closed or (self._queue and self._waiting_rows + num_rows > self.max_waiting_rows):
                raise Overloaded
            self._queue.append(job)
            self._waiting_rows += num_rows
            is_full = self._waiting_rows >= self.max_rows
        if is_full:
            self._release()
        elif self._timer is None:
            # call_soon runs after the tasks of the requests that were read together with this one
            wait_s = self.max_wait_s
            self._timer = loop.call_later(wait_s, self._release) if wait_s else loop.call_soon(self._release)
        return await job.future

    async def close(self) -> None:
        """Answer what waits, take no more, and end the thread."""
        with self._changed:
            self._is_closed = True
        self._release()
        await asyncio.to_thread(self._thread.join)

    def _release(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        with self._changed:
            self._num_ready = len(self._queue)
            self._changed.notify()

    def _work(self) -> None:
        while jobs := self._take():
            alive = [job for job in jobs if not job.future.cancelled()]
            outcomes = self._outcomes(alive) if alive else []
            self.num_batches += 1
            self.most_requests = max(self.most_requests, len(alive))
            try:
                jobs[0].future.get_loop().call_soon_threadsafe(_deal, alive, outcomes)
            except RuntimeError:  # the loop was ended by force: nobody waits any more
                return

    def _take(self) -> list[_Job[Request, Answer]]:
        """The next batch; none once all is done and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._num_ready or self._is_closed)
            jobs, num_rows = [], 0
            while self._num_ready and (not jobs or num_rows + self._queue[0].num_rows <= self.max_rows):
                job = self._queue.popleft()
                jobs.append(job)
                num_rows += job.num_rows
                self._num_ready -= 1
            self._waiting_rows -= num_rows
            return jobs

    def _outcomes(self, jobs: list[_Job[Request, Answer]]) -> list[Any]:
        """An answer or an exception for each job."""
        try:
            answers = self._compute([job.request for job in jobs])
            assert len(answers) == len(jobs), f"{len(answers)} answers to {len(jobs)} requests"
            return list(answers)
        except Exception as error:  # whatever it is, it ends neither the thread nor another's request
            if len(jobs) == 1:
                return [error]
        return [self._outcomes([job])[0] for job in jobs]


def _deal(jobs: list[_Job[Any, Any]], outcomes: list[Any]) -> None:
    """Hand out the outcomes; on the event loop."""
    for job, outcome in zip(jobs, outcomes, strict=True):
        if job.future.done():  # cancelled in the meantime
            continue
        if isinstance(outcome, Exception):
            job.future.set_exception(outcome)
        else:
            job.future.set_result(outcome)
