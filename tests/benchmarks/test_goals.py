"""The requirements and the summary, of results made by hand."""

import math
from dataclasses import replace

import pytest
import torch

from benchmarks.gpu.goals import requirements
from benchmarks.gpu.protocol import FULL
from benchmarks.gpu.results import Results, Speed
from benchmarks.gpu.summary import summary
from mhf_compile.models import CONFIGS, FlashMHF, SwiGLU
from tests.benchmarks.made import decoded, errors, made_race, memory, shape


def judged(**found):
    """Whether each requirement on a run of the 370M alone holds, by the beginning of its name."""
    protocol = replace(FULL, sizes={"370M": CONFIGS["370M"]}, paper=("370M",))
    results = Results({"bandwidth": 4e12}, {}, **found)
    return {one.what: (one.holds, one.measured) for one in requirements(results, protocol)}


def one_of(found, start):
    (value,) = [value for what, value in found.items() if what.startswith(start)]
    return value


def test_nothing_measured_is_nothing_held():
    assert all(value == (None, None) for value in judged().values())
    assert len(judged()) == 7


@pytest.mark.parametrize(
    ("part", "seconds", "holds"),
    [
        ("forward", 480e-6, True),
        ("forward", 520e-6, False),
        ("forward", None, False),
        ("backward", 1.9e-3, True),
        ("backward", 2.1e-3, False),
    ],
)
def test_rates(part, seconds, holds):
    found = judged(speeds=[Speed.of(shape(), part, made_race(flashmhf=seconds))])
    assert one_of(found, part)[0] is holds


def test_flop_are_those_of_the_floors():
    assert shape().flop("forward") / 790e12 == pytest.approx(359e-6, rel=0.01)
    assert shape().flop("backward") / 790e12 == pytest.approx(957e-6, rel=0.01)
    with torch.device("meta"):
        layers = [SwiGLU(CONFIGS["370M"]), FlashMHF(CONFIGS["370M"])]
    swiglu, ours = (sum(w.numel() for name, w in layer.named_parameters() if name != "router")
                    for layer in layers)  # fmt: skip
    assert shape("layer", 3).flop("forward") == 2 * 3 * swiglu
    assert ours == pytest.approx(swiglu, rel=1e-3)


def test_memory_is_judged_at_the_most_tokens():
    assert one_of(judged(memories=[memory(4096, theirs=10), memory(65536)]), "peak") == (True, 6)
    assert one_of(judged(memories=[memory(65536, ours=20)]), "peak") == (False, 3)
    assert one_of(judged(memories=[memory(65536, ours=None)]), "peak") == (None, None)
    assert one_of(judged(memories=[memory(65536, failures={"flashmhf": "failed"})]), "peak") == (False, 0)


def test_bandwidth_is_judged_where_weights_do_not_fit_the_cache():
    assert one_of(judged(decodes=[decoded(20e-6)]), "decode of 1.3B")[0]
    assert not one_of(judged(decodes=[decoded(30e-6)]), "decode of 1.3B")[0]
    assert not one_of(judged(decodes=[decoded(None)]), "decode of 1.3B")[0]
    assert one_of(judged(decodes=[decoded(20e-6, weights=9_000_000)]), "decode, N 1")[0] is None


def test_no_peer_may_be_faster_from_1k_tokens_on():
    def at(tokens, level="op", **seconds):
        return Speed.of(shape(level, tokens), "step", made_race(**seconds))

    found = judged(
        speeds=[
            at(512, eager=1.0, flashmhf=9.0),
            at(1024, eager=3.0, Inductor=1.9, flashmhf=2.0),
            at(4096, eager=2.5, Inductor=None, flashmhf=2.0),
            at(4096, "dense", eager=1.0, flashmhf=None),
        ]
    )
    assert found["op: time of eager over ours, least at 370M, N 4096, step"] == (True, 1.25)
    assert found["op: time of Inductor over ours, least at 370M, N 1024, step"] == (False, 0.95)
    assert found["dense: time of eager over ours, least at 370M, N 4096, step"] == (False, 0)


@pytest.mark.parametrize(
    ("found", "holds"),
    [
        ([errors()], True),
        ([errors(), errors(ours=3.1e-3)], False),
        ([errors(ours=2.9e-3)], True),
        ([errors(ours=math.nan), errors()], False),
        ([errors(), replace(errors(), errors={"eager": {"out": 1e-3}})], False),
    ],
)
def test_the_law_of_errors(found, holds):
    assert one_of(judged(errors=found), "error")[0] is holds


def test_summary_compares_with_the_fastest_peer():
    slow, quick = (made_race(eager=3.0, Inductor=2.5, flashmhf=ours) for ours in (5.0, 2.0))
    speeds = [
        Speed.of(shape(tokens=tokens), "forward", race) for tokens, race in ((4096, slow), (1024, quick))
    ]
    lines = summary(Results({"bandwidth": 6.9e12}, {}, speeds=speeds, decodes=[decoded(20e-6)])).splitlines()
    assert lines[0].split() == ["op", "forward,", "TFLOP/s", "N", "1024", "N", "4096"]
    assert lines[2].split() == ["370M,", "fastest", "peer", "/", "ours", "1.25", "0.50"]
    assert lines[-1].split() == ["1.3B", "50.00"]


def test_bits_that_change_once_are_too_many():
    assert one_of(judged(errors=[errors(), errors()]), "share of checks") == (True, 1)
    assert one_of(judged(errors=[errors(), errors(bit_equal=False)]), "share of checks") == (False, 0.5)
