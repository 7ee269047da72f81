"""What follows when an attempt has ended: a pure function of how the attempts ended, and of the budget.

Exit codes, of `python -m launch run` and of a batch job:

    0    done
    2    your input or settings; started again it would fail again
    75   saved; the job was requeued, or the same command goes on (sysexits.h: EX_TEMPFAIL)
    93   given up: no progress twice in a row, or the budget of restarts is used up
    94   a newer attempt owns the run; this one wrote nothing more

`python -m launch.job end` says two more to its batch script: 100, start the next attempt at once, and 101,
have Slurm requeue the job.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal

from launch.outcome import Outcome

DONE, WRONG_INPUT, SAVED, GAVE_UP, FENCED, AGAIN, REQUEUE = 0, 2, 75, 93, 94, 100, 101
MAX_STALLS = 2  # attempts in a row without progress
# Ends that say nothing of the run itself: they neither use up the budget nor count as standing still.
NOT_ITS_FAULT = ("preempted", "requested", "interrupted", "rehearsal", "cancelled")
TAKEN_AWAY = ("preempted", "walltime")
ASKED = (*TAKEN_AWAY, "requested", "interrupted", "cancelled")

Action = Literal["finish", "restart", "requeue", "stay", "give_up"]


@dataclasses.dataclass(frozen=True)
class Decision:
    """What to do, the exit code that says so, and why, in one line."""

    action: Action
    code: int
    reason: str


def decide(outcomes: Sequence[Outcome], *, max_restarts: int, may_requeue: bool) -> Decision:
    """Decide from the outcomes of one launch's attempts, oldest first; the last has just ended.

    `may_requeue`: the attempt was a batch job's, and the job has not been cancelled.
    """
    last = outcomes[-1]
    if last.kind == "done":
        return Decision("finish", DONE, "done")
    if last.kind == "wrong_input":
        return Decision("give_up", WRONG_INPUT, "this is for you to mend; a restart would fail again")
    stalls = count_stalls(outcomes)
    if stalls >= MAX_STALLS:
        return Decision("give_up", GAVE_UP, f"no progress in {stalls} attempts in a row, at step {last.last_step}")
    if last.kind == "stopped":
        if last.reason == "rehearsal":
            return Decision("restart", AGAIN, "rehearsal: once more, from the checkpoint")
        if may_requeue and last.reason != "cancelled":  # the batch shell still lives: `cancel` asks before it kills
            return Decision("requeue", REQUEUE, f"saved ({last.reason}); the job is requeued and goes on")
        return Decision("stay", SAVED, f"saved ({last.reason}); the same command goes on")
    crashes = sum(outcome.kind == "crashed" and not _was_taken_away(outcome) for outcome in outcomes)
    if last.kind == "crashed" and crashes > max_restarts:
        return Decision("give_up", GAVE_UP, f"{crashes} attempts crashed, and {max_restarts} restarts are the budget")
    if last.reason in TAKEN_AWAY and may_requeue:
        # it died on the way to its end, and the nodes are about to be taken: there is no room for another attempt
        return Decision("requeue", REQUEUE, f"not saved in time ({last.reason}); the job is requeued and goes on")
    if last.reason == "cancelled" or (last.reason in ASKED and not may_requeue):
        # whoever asked it to end, or pressed Ctrl-C twice, does not want to see it start again
        return Decision("stay", SAVED, f"not saved in time ({last.reason}); the same command goes on from what is safe")
    return Decision("restart", AGAIN, f"restart {crashes} of {max_restarts}")


def _was_taken_away(outcome: Outcome) -> bool:
    """Did it lose its nodes after it had brought the run further? Without that it may be its own fault."""
    return outcome.reason in TAKEN_AWAY and bool(outcome.made_progress)


def count_stalls(outcomes: Sequence[Outcome]) -> int:
    """How many attempts in a row, up to the last, were meant to bring the run further and did not.

    A script that does not say how far it came stalls when it crashes.
    """
    stalls = 0
    for outcome in reversed(outcomes):
        progress = outcome.made_progress
        if progress:
            break
        if outcome.kind == "lost" or outcome.reason in NOT_ITS_FAULT:
            continue
        if progress is None and (outcome.kind == "stopped" or outcome.reason in TAKEN_AWAY):
            break
        stalls += 1
    return stalls
