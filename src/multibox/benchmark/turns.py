"""Contenders take turns, in rounds, so that whatever else the machine does meets all of them alike."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path

from multibox.benchmark.contenders import Contender, Sample
from multibox.benchmark.machine import EnergyMeter
from multibox.errors import MultiboxError

__all__ = ["FOLDER_PICTURES", "LEAST_ROUNDS", "Timed", "take_turns", "warmed_up"]

FOLDER_PICTURES = 32  # in one pass of a stream: more than it takes to start
WARM_UP_CALLS = 3
TURN_S = 0.25  # a turn is about as long: long enough to settle, short enough to alternate often
LONGEST_TURN = 16  # calls
LEAST_ROUNDS = 3


@dataclass
class Timed:
    """A contender with the calls that it made, a list for each round, and the energy that they took if it is known."""

    contender: Contender
    calls: int = 1  # a turn, which takes about
    turn_s: float = 0.0
    rounds: list[list[Sample]] = field(default_factory=list)
    joules: float | None = 0.0

    @property
    def samples(self) -> list[Sample]:
        return [sample for turn in self.rounds for sample in turn]


def warmed_up(timed: list[Timed], paths: list[Path], notes: list[str]) -> list[Timed]:
    """Those that work, with turns of about the same length."""
    working = []
    for entry in timed:
        calls = WARM_UP_CALLS if entry.contender.batch < FOLDER_PICTURES else 1
        try:
            fastest = min(entry.contender.call(_cycled(paths, i, entry.contender.batch)).total for i in range(calls))
        except MultiboxError as error:
            notes.append(f"{entry.contender.name}, batch {entry.contender.batch}: {error}")
            continue
        entry.calls = max(1, min(LONGEST_TURN, round(TURN_S / fastest)))
        entry.turn_s = entry.calls * fastest
        working.append(entry)
    return working


def take_turns(timed: list[Timed], paths: list[Path], *, seconds: float) -> None:
    """Add rounds, in each of which every contender has a turn, until the seconds are over; three at the least."""
    meter = EnergyMeter()
    started, number = time.perf_counter(), 0
    while number < LEAST_ROUNDS or time.perf_counter() - started < seconds:
        for entry in timed:
            before = meter.read()
            turn = [
                entry.contender.call(_cycled(paths, number * LONGEST_TURN + i, entry.contender.batch))
                for i in range(entry.calls)
            ]
            used = meter.joules(before, meter.read())
            entry.joules = None if used is None or entry.joules is None else entry.joules + used
            entry.rounds.append(turn)
        number += 1


def _cycled(paths: list[Path], start: int, count: int) -> list[Path]:
    return [paths[(start + i) % len(paths)] for i in range(count)]
