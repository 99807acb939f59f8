"""Which settings to try, and how to find the best of them with few measurements. Pure: what a setting scores is asked for.

Successive halving: all are measured roughly, the better half more carefully, and so on. Source: Jamieson and Talwalkar,
"Non-stochastic best arm identification and hyperparameter optimization", 2016. The default takes part to the end, and what
is not clearly better than it loses against it.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

ROUNDS = 3
"""Of a duel: both sides in turns."""


@dataclass(frozen=True)
class Setting:
    """What is tuned; the values of the default are those of the configuration that was started from.

    Attributes:
        instances: of the model.
        threads: of each instance; 0 for all processors.
        max_batch: images in an execution.
        queue_delay_us: how long the server waits for a batch to fill, microseconds.
        client_batch: images in a request; 1 for none but a caller's own.
        client_delay_ms: how long the client waits for a request to fill, milliseconds.
    """

    instances: int
    threads: int
    max_batch: int
    queue_delay_us: int
    client_batch: int
    client_delay_ms: float


Score = Callable[[Setting, int], float]
"""What a setting is worth, requests a second, measured with the care of a rung, from 0."""
Values = Mapping[str, Sequence[Mapping[str, Any]]]
"""For each thing that can be changed, the changes: fields of ``Setting``."""


@dataclass(frozen=True)
class Scored:
    """A setting, what it scored, and the rung it came to."""

    setting: Setting
    rate: float
    rung: int


@dataclass(frozen=True)
class Tuned:
    """What came of it.

    Attributes:
        best: the winner; the default if nothing is clearly better.
        default: what was started from.
        ratio, low, high: the winner's score over the default's in turns: median, least and most.
        tried: every setting with its last score, best first.
        worth: for each thing that the winner changes, its score over that without the change; in turns, median.
    """

    best: Setting
    default: Setting
    ratio: float
    low: float
    high: float
    tried: tuple[Scored, ...]
    worth: dict[str, float]

    @property
    def gain(self) -> str:
        """How much better the winner is, for "the rate" to follow; infinitely where the default keeps it at no rate."""
        if self.ratio == math.inf:
            return "infinitely many times"
        return f"{self.ratio:.2f} ({self.low:.2f} - {self.high:.2f}) times"


def changes(default: Setting, *, processors: int, least_batch: int = 1) -> dict[str, list[dict[str, Any]]]:
    """The changes worth trying, by what they change.

    Args:
        default: what is started from.
        processors: of the server's machine.
        least_batch: images that an execution must be able to hold.
    """
    shapes = [(1, 0), (2, 0), (processors, 1), (max(1, processors // 2), 2)]
    found: dict[str, list[dict[str, Any]]] = {
        "instances x threads": [{"instances": each, "threads": threads} for each, threads in dict.fromkeys(shapes)],
        "max batch": [
            {"max_batch": size} for size in (8, 16, 32, 64, 128) if least_batch <= size <= 2 * default.max_batch
        ],
        "queue delay": [{"queue_delay_us": delay} for delay in (0, 500, 2000, 5000)],
        "client batch": [{"client_batch": size} for size in (1, 8, 32) if size <= default.max_batch],
        "client delay": [{"client_delay_ms": delay} for delay in (0.0, 2.0, 10.0)],
    }
    return {name: [each for each in values if replace(default, **each) != default] for name, values in found.items()}


def candidates(default: Setting, values: Values, *, count: int, seed: int) -> list[Setting]:
    """The default, each change alone, and random combinations of changes, up to ``count`` in all."""
    alone = [replace(default, **change) for each in values.values() for change in each]
    dice = random.Random(seed)  # noqa: S311  it chooses experiments
    found = dict.fromkeys([default, *(alone if len(alone) < count else dice.sample(alone, count - 1))])
    for _ in range(20 * count):
        if len(found) >= count:
            break
        chosen = [dice.choice([{}, *each]) for each in values.values()]
        found[replace(default, **{field: value for change in chosen for field, value in change.items()})] = None
    return list(found)


def halve(settings: Sequence[Setting], default: Setting, score: Score, *, rungs: int) -> list[Scored]:
    """Measure all, then the better half with more care, ``rungs`` times; best first, the default among the last ones."""
    remaining, found = list(settings), {}
    for rung in range(rungs):
        for each in remaining:
            found[each] = Scored(each, score(each, rung), rung)
        ranked = sorted(remaining, key=lambda each: -found[each].rate)
        remaining = list(dict.fromkeys([*ranked[: max(1, len(ranked) // 2)], default]))
    return sorted(found.values(), key=lambda each: (-each.rung, -each.rate))


def combined(default: Setting, values: Values, scored: Sequence[Scored]) -> Setting:
    """The change of each kind that scored best alone, all together; changes that scored below the default are left out."""
    rates = {each.setting: each.rate for each in scored}
    fields: dict[str, Any] = {}
    for kind in values.values():
        best = max(kind, key=lambda change: rates.get(replace(default, **change), 0.0), default={})
        if best and rates.get(replace(default, **best), 0.0) > rates.get(default, 0.0):
            fields |= best
    return replace(default, **fields)


def tune(default: Setting, score: Score, *, values: Values, count: int = 12, rungs: int = 3, seed: int = 0) -> Tuned:
    """Find the best setting.

    Args:
        default: what is started from; the result is never worse as far as a duel of ``ROUNDS`` rounds can tell.
        score: measures a setting; higher rungs are to be more careful.
        values: the changes to choose from.
        count: settings to try at first.
        rungs: how often to halve.
        seed: of the random combinations.
    """
    first = halve(candidates(default, values, count=count, seed=seed), default, score, rungs=1)
    kept = [each.setting for each in first[: max(1, len(first) // 2)]]
    again = list(dict.fromkeys([*kept, combined(default, values, first), default]))
    scored = halve(again, default, lambda each, rung: score(each, rung + 1), rungs=max(1, rungs - 1))
    best = next((each.setting for each in scored if each.setting != default), default)
    ratios = _duel(best, default, score, rungs)
    tried = {each.setting: each for each in (*first, *(replace(each, rung=each.rung + 1) for each in scored))}
    ranking = tuple(sorted(tried.values(), key=lambda each: (-each.rung, -each.rate)))
    if min(ratios) <= 1:  # it lost a round: that is no clear win
        return Tuned(default, default, 1.0, 1.0, 1.0, ranking, {})
    worth = {
        name: statistics.median(_duel(best, without, score, rungs))
        for name, without in _without(best, default, values).items()
    }
    return Tuned(best, default, statistics.median(ratios), min(ratios), max(ratios), ranking, worth)


def _duel(one: Setting, other: Setting, score: Score, rung: int) -> list[float]:
    """Scores of one over those of the other, measured in turns."""
    if one == other:
        return [1.0] * ROUNDS
    return [_ratio(score(one, rung), score(other, rung)) for _ in range(ROUNDS)]


def _ratio(one: float, other: float) -> float:
    """Infinite against one that keeps the objective at no rate; 1 if neither does."""
    return one / other if other else math.inf if one else 1.0


def _without(best: Setting, default: Setting, values: Values) -> dict[str, Setting]:
    """The winner with one of its changes taken back, by what it changes."""
    fields = asdict(default)
    taken_back = {
        name: replace(best, **{field: fields[field] for change in kind for field in change})
        for name, kind in values.items()
    }
    return {name: each for name, each in taken_back.items() if each != best}


def describe(setting: Setting, default: Setting) -> str:
    """What a setting changes, in words."""
    ours, theirs = asdict(setting), asdict(default)
    words = [f"{name.replace('_', ' ')} {value:g}" for name, value in ours.items() if value != theirs[name]]
    return ", ".join(words) or "as it is"
