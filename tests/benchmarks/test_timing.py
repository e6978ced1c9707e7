"""Races of what is timed, by a clock that is told the time."""

import torch

from benchmarks.gpu import timing
from benchmarks.gpu.timing import Limits, Task, WallClock, attempt, race
from benchmarks.results import Spread


class Scripted(WallClock):
    """Says that each run took as long as it says itself, in seconds."""

    def sample(self, task, host):
        return task.run(task.prepare())


def test_race_takes_turns_and_compares_round_by_round():
    ran = []

    def entrant(name, seconds):
        return Task(lambda _: ran.append(name) or seconds)

    found = race({"a": entrant("a", 3.0), "b": entrant("b", 2.0)}, Scripted(), Limits(4, 2, 60.0), "b")
    assert "".join(ran) == "aaabbb" + "ab" + "ba" + "ab" + "ba"
    assert found.timings["a"].seconds == Spread(3.0, 3.0, 3.0)
    assert found.timings["a"].repeats == 4
    assert found.over == {"a": Spread(1.5, 1.5, 1.5), "b": Spread(1.0, 1.0, 1.0)}


def test_race_goes_on_without_one_that_fails_on_the_way():
    calls = iter(range(100))

    def dies(_):
        if next(calls) > 4:
            raise torch.OutOfMemoryError
        return 1.0

    found = race({"dies": Task(dies), "lives": Task(lambda _: 1.0)}, Scripted(), Limits(5, 2), "lives")
    assert found.failures == {"dies": "out of memory"}
    assert list(found.timings) == ["lives"] and found.timings["lives"].repeats == 5


def test_what_is_too_slow_is_left_out_and_long_races_are_cut_to_the_least(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def work(_):
            now[0] += seconds
            return seconds

        return Task(work)

    limits = Limits(repeats=30, least=10, seconds=6.0, slowest=20.0)
    found = race({"slow": takes(3.0), "long": takes(1.0), "ours": takes(0.01)}, Scripted(), limits, "ours")
    assert list(found.failures) == ["slow"] and "3.0 s" in found.failures["slow"]
    assert {name: t.repeats for name, t in found.timings.items()} == {"long": 10, "ours": 10}
    assert found.timings["long"].first == 1.0


def test_attempt_says_the_type_and_the_first_line():
    def fails(text):
        raise ValueError(text)

    assert attempt(WallClock(), fails, "one\ntwo").why == "ValueError: one"
    assert attempt(WallClock(), fails, "").why == "ValueError"
    assert attempt(WallClock(), abs, -1) == 1
