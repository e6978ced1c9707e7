import contextlib
import importlib
import io
import json
import math
import sys
from dataclasses import asdict, replace

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import protocol as gpu_protocol
from benchmarks.gpu import timing
from benchmarks.gpu.goals import requirements
from benchmarks.gpu.peers import SWIGLU_INDUCTOR, SWIGLU_LIGER
from benchmarks.gpu.protocol import DRY, FULL, Lab, Shape
from benchmarks.gpu.results import Decode, Errors, Memory, Results, Speed
from benchmarks.gpu.summary import summary
from benchmarks.gpu.timing import DeviceLost, Limits, Race, Task, Timing, WallClock, attempt, race
from benchmarks.results import Spread
from mhf_compile.models import CONFIGS, FlashMHF, SwiGLU

PEERS = """
import torch
from torch.nn import functional

def good(q, k, u, v, r):
    gate = functional.silu(torch.einsum("bthd,hefd->bthef", q, k))
    hidden = gate * torch.einsum("bthd,hefd->bthef", q, u) * r[..., None]
    return torch.einsum("bthef,hefo->btho", hidden, v)

def picky(q, k, u, v, r):
    raise ValueError("d_h must be a power of 2\\nand there is more to say")

def greedy(q, k, u, v, r):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 59.00 GiB.")

def inference_only(q, k, u, v, r):
    return good(q, k, u, v, r).detach()
"""

LIGER = """
from torch import nn

class LigerSwiGLUMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):
        return self.down(self.up(x))
"""

NAMES = ("good", "picky", "greedy", "inference_only")


def run(*arguments):
    """The exit status and the output of a run."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        status = gpu.main(["--dry-run", *map(str, arguments)])
    return status, output.getvalue()


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    """A dry run through every stage, with peers of all kinds and a stand-in for Liger: output and JSON."""
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "peers.py").write_text(PEERS)
    package = folder / "site" / "liger_kernel"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "transformers.py").write_text(LIGER)
    sys.path.insert(0, str(folder / "site"))
    importlib.invalidate_caches()
    peers = [argument for name in NAMES for argument in ("--peer", f"{folder / 'peers.py'}:{name}")]
    try:
        status, output = run("--config", "370M,d64", "--json", folder / "gpu.json", *peers)
    finally:
        sys.path.pop(0)
        for name in [name for name in sys.modules if name.partition(".")[0] == "liger_kernel"]:
            del sys.modules[name]
    assert status == 0
    return output, folder / "gpu.json"


def test_dry_run_goes_through_every_stage(dry):
    output, file = dry
    data = json.loads(file.read_text())
    assert data["failed"] == {} and data["left_out"] == []
    measured = {(one["level"], one["size"], one["tokens"], one["part"]) for one in data["speeds"]}
    parts = ("forward", "step", "backward")
    assert measured == {
        *(("op", size, n, part) for size in ("370M", "d64") for n in DRY.tokens for part in parts),
        *(("layer", "370M", n, part) for n in DRY.layer_tokens for part in parts),
        *(("dense", "dense", n, part) for n in DRY.dense_tokens for part in parts),
    }
    assert {(one["size"], one["tokens"]) for one in data["decodes"]} == {
        (size, n) for size in ("370M", "d64") for n in DRY.decode_tokens
    }
    assert {one["dtype"] for one in data["errors"]} == {"bfloat16", "float16", "float32"}
    assert {one["gradient"] for one in data["errors"]} == {"normal", "sum"}
    assert {one["tokens"] for one in data["errors"] if one["size"] == "d64"} == set(DRY.ragged)
    assert all(one["what"] in output for one in data["requirements"])
    assert "the figures mean nothing" in output
    for title in ("op backward, TFLOP/s", "layer step, TFLOP/s", "decode, cold, % of the copy's bandwidth"):
        assert f"\n{title}" in output


def test_dry_run_holds_to_the_law_of_errors(dry):
    for one in json.loads(dry[1].read_text())["errors"]:
        assert list(one["errors"]["flashmhf"]) == ["out", "dq", "dk", "du", "dv", "dr"]
        assert Errors(**one).over_allowed <= 1
        assert one["bit_equal"]


def test_every_entrant_is_timed_and_whatever_fails_is_recorded_with_its_reason(dry):
    data = json.loads(dry[1].read_text())
    for one in data["speeds"]:
        timings, over = one["race"]["timings"], one["race"]["over"]
        if one["level"] == "op":
            trained = one["part"] != "forward"
            assert list(timings) == [
                "eager", "Inductor", "peers:good", *([] if trained else ["peers:inference_only"]), "flashmhf",
            ]  # fmt: skip
            failures = one["race"]["failures"]
            assert failures.pop("peers:picky") == "ValueError: d_h must be a power of 2"
            assert failures.pop("peers:greedy") == "out of memory"
            assert "does not require grad" in failures.pop("peers:inference_only", "") or not trained
            assert not failures
        else:
            eager = ["SwiGLU cuBLAS"] if one["level"] == "dense" else []
            assert list(timings) == [*eager, SWIGLU_INDUCTOR, SWIGLU_LIGER, "flashmhf"]
        assert list(over) == list(timings) and over["flashmhf"]["median"] == 1
        assert all(DRY.limits.least <= t["repeats"] <= DRY.limits.repeats for t in timings.values())
    for one in data["decodes"]:
        assert list(one["cold"]["timings"]) == list(one["warm"]["timings"])
        assert one["layers"] * one["weights"] >= 4 * one["cached"]
        assert one["cold"]["failures"]["peers:greedy"] == "out of memory"
    for one in data["errors"]:
        assert "peers:good" in one["errors"] or one["size"] == "dense"


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux shows it")
def test_memory_is_measured_of_those_that_train(dry):
    data = json.loads(dry[1].read_text())
    assert {one["level"] for one in data["memories"]} == {"op", "layer", "dense"}
    for one in data["memories"]:
        assert one["peaks"]["flashmhf"] is not None and one["results"]["flashmhf"] > 0
        assert "peers:picky" not in one["peaks"]


@pytest.mark.parametrize(
    "keep",
    [
        [],
        ["machine"],
        ["machine", "errors"],
        ["speeds"],
        ["machine", "decodes"],
        ["memories", "requirements"],
    ],
)
def test_plots_draw_what_there_is(dry, tmp_path, capsys, keep):
    pytest.importorskip("matplotlib")
    from benchmarks.gpu import plot

    data = json.loads(dry[1].read_text())
    part = tmp_path / "part.json"
    part.write_text(json.dumps({key: data[key] for key in keep}))
    plot.main([str(part), "--out", str(tmp_path / "out")])
    drawn = {
        "errors": {"errors"},
        "speeds": {"throughput", "layers"},
        "decodes": {"decode"},
        "memories": {"memory"},
    }
    want = set().union(*(drawn.get(key, set()) for key in keep))
    assert {file.stem for file in (tmp_path / "out").iterdir()} == want
    assert all(file.read_bytes().startswith(b"\x89PNG") for file in (tmp_path / "out").iterdir())
    assert len(capsys.readouterr().out.splitlines()) == len(want)


def test_labels_move_apart_as_little_as_they_must():
    pytest.importorskip("matplotlib")
    from benchmarks.gpu.panels import apart

    assert apart([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert apart([0.5, 0.5], 0.1) == pytest.approx([0.45, 0.55])
    assert apart([0.2, 0.25, 0.32], 0.1) == pytest.approx([0.157, 0.257, 0.357], abs=1e-3)
    assert apart([], 0.1) == []


def test_time_that_is_up_leaves_the_rest_out_and_says_so(tmp_path):
    file = tmp_path / "gpu.json"
    status, output = run("--minutes", 0, "--only", "forward,decode", "--config", "128M", "--json", file)
    data = json.loads(file.read_text())
    assert status == 0 and not data["speeds"] and not data["decodes"]
    assert len(data["left_out"]) == len(DRY.tokens) + len(DRY.decode_tokens)
    assert all(f"left out  {unit}" in output for unit in data["left_out"])
    assert all(one["measured"] is None for one in data["requirements"])


def made_units(*runs):
    return [gpu.Unit("stage", str(number), run) for number, run in enumerate(runs)]


def test_units_start_until_the_time_is_up_and_each_is_written(tmp_path):
    now = [0.0]
    budget = gpu.Budget(10, clock=lambda: now[0])
    results, file = Results({}, {}), tmp_path / "gpu.json"
    written = []

    def takes(seconds):
        def run():
            written.append(file.exists())
            now[0] += seconds
            yield memory(1)

        return run

    gpu.work_off(made_units(*map(takes, (4, 5, 100, 1))), budget, WallClock(), results, file)
    assert written == [False, True, True]
    assert results.left_out == ["stage: 3"]
    assert len(results.memories) == 3 and results.seconds == 109


def test_a_unit_that_fails_is_recorded_and_the_next_one_runs(tmp_path):
    def fails():
        yield memory(1)
        raise RuntimeError("no such kernel")

    results = Results({}, {})
    gpu.work_off(
        made_units(fails, lambda: iter([memory(2)])),
        gpu.Budget(60),
        WallClock(),
        results,
        tmp_path / "gpu.json",
    )
    assert results.failed == {"stage: 0": "RuntimeError: no such kernel"}
    assert [one.tokens for one in results.memories] == [1, 2]


class LostClock(WallClock):
    def wait(self):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")


def test_a_lost_device_ends_the_run_in_an_orderly_way(tmp_path, monkeypatch):
    def lost():
        raise ValueError("launch")
        yield

    results = Results({}, {})
    units = made_units(lost, lambda: iter([memory(1)]))
    with pytest.raises(DeviceLost):
        gpu.work_off(units, gpu.Budget(60), LostClock(), results, tmp_path / "gpu.json")
    assert "illegal memory access" in results.failed["device"] and "launch" in results.failed["device"]
    assert results.left_out == ["stage: 1"]

    monkeypatch.setattr(gpu, "plan", lambda lab: units)
    monkeypatch.setattr(gpu, "describe", lambda lab: {})
    monkeypatch.setattr(gpu, "WallClock", LostClock)
    monkeypatch.setattr(gpu, "STAGES", ("stage",))
    status, output = run("--json", tmp_path / "lost.json")
    assert status == 1 and "failed  device: ValueError: launch" in output
    assert json.loads((tmp_path / "lost.json").read_text())["left_out"] == ["stage: 1"]


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


def shape(level="op", tokens=16384):
    return Shape(level, "370M", CONFIGS["370M"], tokens)


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


# The command line and the protocol.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "370M,7B"], "must be of 370M, 1.3B, 128M, d64, d256, not 7B"),
        (["--only", "speed"], "must be of correctness, forward, backward, layer, decode, dense, not speed"),
        (["--peer", "missing.py:f"], "must be file.py:function, of a file that exists, not 'missing.py:f'"),
        (["--peer", f"{__file__}"], "must be file.py:function"),
        (["--minutes", "long"], "--minutes"),
    ],
)
def test_bad_values_exit_with_2_and_say_what_is_allowed(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main(["--dry-run", *arguments])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_peer_that_is_not_there_is_named(tmp_path, capsys):
    (tmp_path / "peers.py").write_text(PEERS)
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", "--peer", f"{tmp_path / 'peers.py'}:best"])
    assert "has no function best" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_device_only_a_dry_run_is_possible(capsys):
    with pytest.raises(SystemExit) as error:
        gpu.main([])
    assert error.value.code == 2
    assert "--dry-run" in capsys.readouterr().err


@pytest.mark.parametrize("protocol", [FULL, DRY])
def test_the_plan_begins_with_errors_and_then_the_goals_own_shapes(protocol):
    units = list(gpu.plan(Lab(protocol, WallClock(), {})))
    assert {unit.stage for unit in units} == set(gpu.STAGES)
    assert len({str(unit) for unit in units}) == len(units)
    first = next(unit for unit in units if unit.stage != "correctness")
    assert first.what == f"op 370M, {protocol.goal_tokens} tokens, forward"
    assert {model.head_dim for model in FULL.sizes.values()} == {64, 96, 128, 256}


def test_settings_go_to_json_and_back():
    assert json.loads(json.dumps(asdict(gpu_protocol.FULL), default=str))["dtype"] == "torch.bfloat16"
