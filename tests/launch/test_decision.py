"""What follows when an attempt has ended: every branch, and that no chain of attempts goes on for ever."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.decision import ASKED, NOT_ITS_FAULT, TAKEN_AWAY, Decision, count_stalls, decide
from launch.outcome import Outcome

DONE = Outcome(kind="done", first_step=0, last_step=9)
WRONG = Outcome(kind="wrong_input", first_step=0, last_step=0)


def crash(first: int | None = None, last: int | None = None) -> Outcome:
    return Outcome(kind="crashed", reason="process 0 on n1 ended with exit code 1", first_step=first, last_step=last)


def died(reason: str, first: int | None = None, last: int | None = None) -> Outcome:
    return Outcome(kind="crashed", reason=reason, first_step=first, last_step=last)


def stop(reason: str = "walltime", first: int | None = None, last: int | None = None) -> Outcome:
    return Outcome(kind="stopped", reason=reason, first_step=first, last_step=last)


def lost(first: int | None = None) -> Outcome:
    return Outcome(kind="lost", first_step=first)


@pytest.mark.parametrize(
    ("outcomes", "budget", "may_requeue", "action", "code"),
    [
        ([DONE], 10, True, "finish", 0),
        ([DONE], 0, False, "finish", 0),
        ([crash(), crash(0, 0), DONE], 0, False, "finish", 0),
        ([WRONG], 10, True, "give_up", 2),
        ([crash(0, 5), WRONG], 10, True, "give_up", 2),
        # crashes: again, while there is budget and progress
        ([crash(0, 5)], 10, True, "restart", 100),
        ([crash(0, 5)], 10, False, "restart", 100),
        ([crash(0, 0)], 10, False, "restart", 100),
        ([crash()], 10, False, "restart", 100),
        ([crash(0, 5), crash(5, 9)], 10, False, "restart", 100),
        ([crash(0, 5), crash(5, 9)], 2, False, "restart", 100),
        ([crash(0, 5), crash(5, 9)], 1, False, "give_up", 93),
        ([crash(0, 5)], 0, True, "give_up", 93),
        # no progress twice in a row
        ([crash(0, 0), crash(0, 0)], 10, True, "give_up", 93),
        ([crash(), crash()], 10, True, "give_up", 93),
        ([crash(0, 5), crash(5, 5), crash(5, 5)], 10, False, "give_up", 93),
        ([crash(0, 0), crash(0, 5), crash(5, 5)], 10, False, "restart", 100),
        ([crash(5, 5), stop(first=5, last=5)], 10, True, "give_up", 93),  # a walltime too short for one checkpoint
        ([stop(first=5, last=5), stop(first=5, last=5)], 10, True, "give_up", 93),
        ([stop(first=5, last=5)], 10, True, "requeue", 101),
        ([stop(), stop(), stop()], 10, True, "requeue", 101),  # a script that does not say how far it came
        # what is not the run's fault neither counts, nor breaks the row
        ([crash(0, 0), stop("preempted", 0, 0), crash(0, 0)], 10, True, "give_up", 93),
        ([crash(0, 0), lost(0), crash(0, 0)], 10, True, "give_up", 93),
        ([crash(), stop("preempted"), crash()], 10, True, "give_up", 93),
        ([crash(0, 0), stop("preempted", 0, 7), crash(7, 7)], 10, True, "restart", 100),
        ([crash(0, 0), stop("preempted", 0, 0)], 10, True, "requeue", 101),
        ([lost(0), lost(0), lost(0), crash(0, 0)], 10, True, "restart", 100),
        ([*[stop("preempted", 0, 0)] * 9, crash(0, 5)], 1, True, "restart", 100),
        # saved: requeued where there is a job, else the same command goes on
        ([stop("walltime", 0, 5)], 0, True, "requeue", 101),
        ([stop("preempted", 0, 5)], 0, True, "requeue", 101),
        ([stop("requested", 0, 5)], 0, True, "requeue", 101),
        ([stop("interrupted", 0, 5)], 0, False, "stay", 75),
        ([stop("walltime", 0, 5)], 0, False, "stay", 75),
        ([stop("cancelled", 0, 5)], 10, True, "stay", 75),
        ([stop("cancelled", 0, 5)], 10, False, "stay", 75),
        ([stop("rehearsal", 0, 5)], 0, True, "restart", 100),
        # died on being asked to end
        ([died("preempted", 0, 5)], 0, True, "requeue", 101),
        ([died("walltime", 0, 5)] * 3, 1, True, "requeue", 101),
        ([died("walltime", 0, 0)] * 2, 9, True, "give_up", 93),
        ([died("preempted", 0, 0)] * 3, 3, True, "requeue", 101),
        ([died("preempted", 0, 0)] * 3, 2, True, "give_up", 93),  # no step in any: it may be its own fault
        ([died("walltime", None, None)] * 3, 9, True, "requeue", 101),
        ([died("preempted", 0, 5)], 9, False, "stay", 75),
        ([died("interrupted")] * 3, 9, False, "stay", 75),
        ([died("requested", 0, 5)], 9, False, "stay", 75),
        ([died("requested", 0, 5)], 9, True, "restart", 100),
        ([died("requested", 0, 5)], 0, True, "give_up", 93),
        ([died("cancelled", 0, 5)], 9, True, "stay", 75),
        ([died("walltime", 0, 5), crash(5, 9)], 1, True, "restart", 100),
        ([died("rehearsal", 0, 5)], 9, False, "restart", 100),
        ([stop("rehearsal", 0, 0)] * 3, 0, False, "restart", 100),
    ],
)
def test_what_follows(outcomes: list[Outcome], budget: int, may_requeue: bool, action: str, code: int) -> None:
    decision = decide(outcomes, max_restarts=budget, may_requeue=may_requeue)
    assert (decision.action, decision.code) == (action, code), decision.reason
    assert decision.reason and "\n" not in decision.reason


def test_the_reason_says_how_much_of_the_budget_is_used() -> None:
    assert decide([crash(0, 5)], max_restarts=3, may_requeue=False) == Decision("restart", 100, "restart 1 of 3")
    used = decide([crash(0, 5), crash(5, 6)], max_restarts=1, may_requeue=False)
    assert used.reason == "2 attempts crashed, and 1 restarts are the budget"
    stuck = decide([crash(5, 5), crash(5, 5)], max_restarts=9, may_requeue=False)
    assert stuck.reason == "no progress in 2 attempts in a row, at step 5"


def chain(next_outcome: Outcome, *, budget: int, may_requeue: bool = True, most: int = 100) -> list[Decision]:
    """What is decided when every attempt ends in the same way, until the launch ends."""
    outcomes: list[Outcome] = []
    decisions: list[Decision] = []
    while len(decisions) < most and (not decisions or decisions[-1].action in ("restart", "requeue")):
        outcomes.append(next_outcome)
        decisions.append(decide(outcomes, max_restarts=budget, may_requeue=may_requeue))
    return decisions


budgets = st.integers(0, 20)


@given(budget=budgets, step=st.none() | st.integers(0, 99), may_requeue=st.booleans())
def test_crashes_without_progress_end_after_two(budget: int, step: int | None, may_requeue: bool) -> None:
    decisions = chain(crash(step, step), budget=budget, may_requeue=may_requeue)
    assert len(decisions) == min(2, budget + 1)
    assert decisions[-1].code == 93


@given(budget=budgets, may_requeue=st.booleans())
def test_crashes_with_progress_end_with_the_budget(budget: int, may_requeue: bool) -> None:
    decisions = chain(crash(0, 1), budget=budget, may_requeue=may_requeue)
    assert len(decisions) == budget + 1
    assert [decision.code for decision in decisions] == [100] * budget + [93]


@given(budget=budgets, progress=st.sampled_from([(None, None), (0, 0), (0, 5)]))
def test_preemptions_alone_never_give_up(budget: int, progress: tuple[int | None, int | None]) -> None:
    decisions = chain(stop("preempted", *progress), budget=budget, most=50)
    assert [decision.code for decision in decisions] == [101] * 50


steps = st.none() | st.integers(0, 3)
stopped = st.builds(stop, st.sampled_from(["walltime", *NOT_ITS_FAULT]), steps, steps)
crashed = st.builds(died, st.sampled_from(["", *NOT_ITS_FAULT, *TAKEN_AWAY]), steps, steps)
ended = stopped | crashed | st.builds(lost, steps)


@given(outcomes=st.lists(ended, min_size=1, max_size=12), budget=budgets, may_requeue=st.booleans())
def test_whatever_happened_the_chain_is_bounded(outcomes: list[Outcome], budget: int, may_requeue: bool) -> None:
    decision = decide(outcomes, max_restarts=budget, may_requeue=may_requeue)
    last = outcomes[-1]
    assert (decision.action == "give_up") == (decision.code == 93)
    if last.reason == "cancelled":
        assert decision.action in ("stay", "give_up")
    if decision.action == "requeue":
        assert may_requeue and (last.kind == "stopped" or last.reason in TAKEN_AWAY)
    crashes = sum(outcome.kind == "crashed" and outcome.reason not in TAKEN_AWAY for outcome in outcomes)
    if last.kind == "crashed" and crashes > budget:
        assert decision.action == "give_up" or last.reason in ASKED
    # whatever came before, the next two crashes without progress are the last
    assert decide([*outcomes, crash(4, 4), crash(4, 4)], max_restarts=99, may_requeue=may_requeue).code == 93
    # and an attempt that made progress wipes out what stood still before it
    assert count_stalls([*outcomes, stop("preempted", 0, 1)]) == 0
    assert count_stalls([*outcomes, crash(0, 1)]) == 0
