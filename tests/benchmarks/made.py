"""Results that are made by hand."""

from benchmarks.gpu.peers import SWIGLU_INDUCTOR
from benchmarks.gpu.protocol import Shape
from benchmarks.gpu.results import Decode, Errors, Memory
from benchmarks.gpu.timing import Race, Timing
from benchmarks.results import Spread
from mhf_compile.models import CONFIGS

# Requirements, on results made by hand.


def spread(seconds):
    return Spread(seconds, seconds, seconds)


def made_race(**seconds):
    timings = {name: Timing(spread(s), 30, 0.0, 0) for name, s in seconds.items() if s is not None}
    ours = seconds["flashmhf"]
    over = {name: spread(t.seconds.median / ours) for name, t in timings.items()} if ours else {}
    return Race(timings, over, {name: "failed" for name, s in seconds.items() if s is None})


def memory(tokens, ours=10, theirs=60, failures=None):
    peaks = {SWIGLU_INDUCTOR: theirs} if failures else {SWIGLU_INDUCTOR: theirs, "flashmhf": ours}
    return Memory("layer", "370M", 128, tokens, peaks, dict.fromkeys(peaks, 5), failures or {})


def errors(ours=1e-3, eager=1e-3, bit_equal=True):
    found = {"eager": {"out": eager, "dq": eager}, "flashmhf": {"out": 1e-3, "dq": ours}}
    return Errors("370M", 128, 17, "bfloat16", "normal", found, 1e-3, bit_equal, {})


def decoded(seconds, weights=69_000_000):
    race = made_race(flashmhf=seconds)
    return Decode("1.3B", 128, 1, weights, weights, 4, 52_000_000, [], race, race)


def shape(level="op", tokens=16384):
    return Shape(level, "370M", CONFIGS["370M"], tokens)
