"""The operator with functions that are compiled from their text, against the silu that is written by hand."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from benchmarks.cpu.contest import Workload, prepare, rounds
from benchmarks.cpu.op import workload
from benchmarks.results import Spread, at_most, number_table, ratio
from benchmarks.settings import Settings
from mhf_compile.kernels.ops import flash_mhf

FUNCTIONS = {
    "silu": "silu",
    "swish": "gate * sigmoid(1.702 * gate)",
    "gpt-oss": "(clamp(up, -7, 7) + 1) * (clamp(gate, -inf, 7) * sigmoid(1.702 * clamp(gate, -inf, 7)))",
    "mish": "mish(gate)",
    "leaky relu, by a comparison": "where(gt(gate, 0), gate, 0.1 * gate)",
}
"""Hidden values by their texts; the first is what others are compared with."""

BOUND = 1.05
"""Times that of silu, at most, that swish and gpt-oss' function may take."""


def of_functions(settings: Settings) -> Workload:
    """The operator with each function, of the operands that the operator's own benchmark has."""
    own = workload(settings)
    ways: dict[str, Callable[..., Tensor]] = {
        name: partial(flash_mhf, activation=text) for name, text in FUNCTIONS.items()
    }
    return Workload(ways, own.inputs, own.trained, own.gradient)


def run(settings: Settings) -> dict[str, object]:
    """Time each function in rounds; print the table and whether none of the two is slower than it may be."""
    print(f"Functions of the scores: {settings}", flush=True)
    made = prepare(of_functions, settings)
    times = {
        "training": rounds("training", made, made.train, settings.repeats),
        "inference": rounds("inference", made, made.infer, settings.repeats),
    }
    rows: dict[str, list[float]] = {}
    for what, seconds in times.items():
        for name in FUNCTIONS:
            median = 1e3 * Spread.of(seconds[name]).median
            rows[f"{name}, {what}"] = [median, ratio(seconds[name], seconds["silu"]).median]
    print("\n" + number_table("", ["ms", "over silu"], rows, 2))
    slowest = max(rows[f"{name}, {what}"][1] for name in ("swish", "gpt-oss") for what in times)
    requirement = at_most("swish and gpt-oss, over silu", slowest, BOUND)
    print(f"\n{requirement}", flush=True)
    return {"seconds": times, "requirements": [requirement.__dict__]}
