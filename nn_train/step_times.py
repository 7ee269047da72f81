"""Where the time of a step goes, by phase and process, and which process the others wait for: numbers and words."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

COMPUTED = ("data", "forward", "backward", "optimizer")  # what a process does by itself
PHASES = ("data", "forward", "backward", "communication", "waiting", "optimizer", "other")
SLOW = 1.25  # as many times what the others compute: less is chance
SLOW_SHARE = 0.05  # of a step: a process that loses less costs nothing worth a sentence
MOST_PROCESSES = 32  # of more, those that compute longest

StepTimes = Mapping[str, float]  # seconds of one step by phase, waiting being a part of communication still


def summarise_steps(processes: Sequence[Mapping[str, Any]], *, first_step: int, device: str) -> dict[str, Any]:
    """What profile.json holds, from what each process measured: its `host`, and its `steps` as StepTimes, in order."""
    steps = [_split_waiting(process["steps"], processes) for process in processes]
    found = []
    for rank, (process, own) in enumerate(zip(processes, steps, strict=True)):
        seconds = {phase: statistics.fmean(step[phase] for step in own) for phase in PHASES}
        usual = {phase: statistics.median(step[phase] for step in own) for phase in COMPUTED}
        found.append({"rank": rank, "host": process["host"], "seconds": seconds, "median": usual})
    mean = {phase: statistics.fmean(process["seconds"][phase] for process in found) for phase in PHASES}
    whole = sum(mean.values())
    return {
        "steps": [first_step, first_step + len(steps[0]) - 1],
        "device": device,
        "seconds_per_step": whole,
        "shares": {phase: seconds / whole for phase, seconds in mean.items()},
        "processes": found,
        "straggler": find_straggler(found, step_s=whole),
    }


def _split_waiting(own: Sequence[StepTimes], processes: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Of the time in collectives, what passed until the last process was there.

    Clocks of hosts differ, so that only durations are compared: all processes leave the collective of the step before
    at about the same time.
    """
    found = []
    for at, step in enumerate(own):
        last_s = max(_until_collective(process["steps"], at) for process in processes)
        waiting = min(step.get("communication", 0.0), last_s - _until_collective(own, at))
        times = {phase: step.get(phase, 0.0) for phase in PHASES}
        found.append(times | {"communication": times["communication"] - waiting, "waiting": waiting})
    return found


def _until_collective(steps: Sequence[StepTimes], at: int) -> float:
    before = steps[at - 1].get("optimizer", 0.0) if at else 0.0
    return before + sum(steps[at].get(phase, 0.0) for phase in ("data", "forward", "backward", "other"))


def find_straggler(processes: Sequence[Mapping[str, Any]], *, step_s: float) -> dict[str, Any] | None:
    """The process that computes longest, if it is much slower than the others, and the phase in which it is.

    By the medians of its steps: a single slow one may be anybody's.
    """
    if len(processes) < 2:
        return None
    slowest = max(processes, key=lambda process: sum(process["median"].values()))
    others = [process for process in processes if process is not slowest]
    own_s = sum(slowest["median"].values())
    usual_s = statistics.median(sum(process["median"].values()) for process in others)
    if own_s < SLOW * usual_s or own_s - usual_s < SLOW_SHARE * step_s:
        return None
    usual = {phase: statistics.median(process["median"][phase] for process in others) for phase in COMPUTED}
    phase = max(COMPUTED, key=lambda phase: slowest["median"][phase] - usual[phase])
    return {
        "rank": slowest["rank"],
        "host": slowest["host"],
        "phase": phase,
        "seconds": slowest["median"][phase],
        "others_seconds": usual[phase],
    }


def describe_straggler(profile: Mapping[str, Any]) -> str:
    """A sentence on the process that the others wait for; empty where there is none."""
    found = profile.get("straggler")
    if not found:
        return ""
    own_s, others_s = found["seconds"], found["others_seconds"]
    times = f"{own_s / others_s:.1f} times" if others_s and own_s / others_s < 1000 else "more than 1000 times"
    return (
        f"process {found['rank']} on host {found['host']} is {times} as slow as the median of the others in "
        f"{found['phase']}: {1000 * own_s:.2f} ms a step beside {1000 * others_s:.2f} ms"
    )


def describe_window(profile: Mapping[str, Any]) -> str:
    """Which steps were measured, and how long one took."""
    first, last = profile["steps"]
    return f"Steps {first} to {last} on {profile['device']}: {1000 * profile['seconds_per_step']:.2f} ms a step"


def tabulate(profile: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the table: all processes together, then each, as shares of its step."""
    rows = [["all", "", *_cells(profile["shares"], profile["seconds_per_step"])]]
    processes = profile["processes"]
    if len(processes) > MOST_PROCESSES:
        slow = sorted(processes, key=lambda process: -sum(process["median"].values()))[:MOST_PROCESSES]
        processes = sorted(slow, key=lambda process: process["rank"])
    for process in processes if len(processes) > 1 else ():
        seconds = process["seconds"]
        whole = sum(seconds.values())
        shares = {phase: value / whole for phase, value in seconds.items()}
        rows.append([str(process["rank"]), str(process["host"]), *_cells(shares, whole)])
    return ["process", "host", "ms", *PHASES], rows


def _cells(shares: Mapping[str, float], seconds: float) -> list[str]:
    return [f"{1000 * seconds:.2f}", *(f"{100 * shares[phase]:.1f} %" for phase in PHASES)]
