"""The benchmark on a GPU: dry runs of all its stages, the units of work, the command line."""

import contextlib
import importlib
import io
import json
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import protocol as gpu_protocol
from benchmarks.gpu.peers import STAGES, SWIGLU_INDUCTOR, SWIGLU_LIGER
from benchmarks.gpu.plan import plan
from benchmarks.gpu.protocol import DRY, FULL, Lab
from benchmarks.gpu.results import Errors
from benchmarks.gpu.timing import WallClock

H100 = Path(gpu.__file__).parents[1] / "results/h100"

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

def for_decode(q, k, u, v, r):
    return good(q, k, u, v, r)
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
    names = [*NAMES, "for_decode@decode"]
    peers = [argument for name in names for argument in ("--peer", f"{folder / 'peers.py'}:{name}")]
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
        *(("layer", size, DRY.tokens[0], part) for size in ("370M", "d64") for part in parts),
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
        assert "peers:for_decode" in one["cold"]["timings"]
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


def test_sizes_at_one_number_of_tokens_are_places_in_one_panel():
    pytest.importorskip("matplotlib")
    from benchmarks.gpu.panels import Panel, Point, Row, across

    def panels(*tokens):
        return [
            Panel(
                title,
                [Point(name, n, 1.0, 1.0, 1.0) for name in ("eager", "flashmhf") for n in tokens],
                ["why"],
            )
            for title in ("a", "b")
        ]

    row = across(Row("y", panels(1024)))
    (panel,) = row.panels
    assert (row.categories, panel.title, panel.notes) == (["a", "b"], "N 1k", ["a: why", "b: why"])
    assert [(p.name, p.x) for p in panel.points] == [
        ("eager", -0.15), ("flashmhf", 0.15), ("eager", 0.85), ("flashmhf", 1.15)
    ]  # fmt: skip
    for other in (Row("y", panels(1024, 2048)), Row("y", panels(1024)[:1])):
        assert across(other) is other


def test_the_results_of_an_h100_can_be_drawn_together(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    from benchmarks.gpu import plot

    files = [str(file) for file in H100.glob("*.json") if file.name != "sweep.json"]
    plot.main([*files, "--out", str(tmp_path)])
    assert {file.stem for file in tmp_path.iterdir()} == set(plot.PICTURES)
    with pytest.raises(SystemExit):
        plot.main([files[0], files[0], "--out", str(tmp_path)])
    assert "measured more than once" in capsys.readouterr().err
    (tmp_path / "other.json").write_text('{"machine": {"gpu": "another"}}')
    with pytest.raises(SystemExit):
        plot.main([files[0], str(tmp_path / "other.json")])
    assert "results of several machines: NVIDIA H100 80GB HBM3, another" in capsys.readouterr().err


def test_time_that_is_up_leaves_the_rest_out_and_says_so(tmp_path):
    file = tmp_path / "gpu.json"
    status, output = run("--minutes", 0, "--only", "forward,decode", "--config", "128M", "--json", file)
    data = json.loads(file.read_text())
    assert status == 0 and not data["speeds"] and not data["decodes"]
    assert len(data["left_out"]) == len(DRY.tokens) + len(DRY.decode_tokens)
    assert all(f"left out  {unit}" in output for unit in data["left_out"])
    assert all(one["measured"] is None for one in data["requirements"])


# The command line and the protocol.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config", "370M,7B"], "must be of 370M, 1.3B, 128M, d64, d256, not 7B"),
        (["--only", "speed"], "must be of correctness, forward, backward, layer, decode, dense, not speed"),
        (["--peer", "missing.py:f"], "must be file.py:function, of a file that exists, not 'missing.py:f'"),
        (["--peer", f"{__file__}"], "must be file.py:function"),
        (["--peer", f"{__file__}:run@train"], "train: stages are correctness, forward, backward, layer"),
        (["--limit", "long"], "--limit"),
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


def test_a_peer_that_cannot_be_read_is_named(tmp_path, capsys):
    (tmp_path / "peers.py").write_text("def good(:")
    with pytest.raises(SystemExit):
        gpu.main(["--dry-run", "--peer", f"{tmp_path / 'peers.py'}:good"])
    assert "is not Python" in capsys.readouterr().err


def units(protocol):
    return list(plan(Lab(protocol, WallClock(), {})))


@pytest.mark.parametrize("protocol", [FULL, DRY])
def test_the_plan_is_of_all_stages_and_nothing_twice(protocol):
    found = units(protocol)
    assert {unit.stage for unit in found} == set(STAGES)
    assert len({str(unit) for unit in found}) == len(found)
    errors = {unit.what for unit in found if unit.stage == "correctness"}
    assert len(errors) == len(protocol.sizes) * len(protocol.ragged) + len(protocol.other_dtypes) + 1
    assert {model.head_dim for model in FULL.sizes.values()} == {64, 96, 128, 256}


def test_layer_and_decode_of_every_size_come_within_four_minutes_then_the_goals_own_shapes():
    """Most of a unit is compiling: the seven of a size took 77 s on an H100, others not much longer."""
    run = json.loads((H100 / "370M.json").read_text())
    chosen = replace(FULL, sizes={"370M": FULL.sizes["370M"]})
    measured = {(one["level"], one["tokens"], one["part"]) for one in run["speeds"]}
    assert len(measured) == 6 and len(run["decodes"]) == len(chosen.decode_tokens)
    took = run["seconds"] / 7  # forward and training of operator and layer, and three times decode

    found = [str(unit) for unit in units(FULL)]
    wanted = {f"decode: {size}, 1 tokens" for size in FULL.sizes}
    wanted |= {
        f"layer: layer {size}, {FULL.goal_tokens} tokens, {part}"
        for size in FULL.sizes
        for part in ("forward", "training")
    }
    number = 1 + max(found.index(unit) for unit in wanted)
    assert number * took < 240
    assert found[number] == f"forward: op 370M, {FULL.goal_tokens} tokens, forward"
    assert found[0].startswith("correctness: op 370M")


def test_settings_go_to_json_and_back():
    assert json.loads(json.dumps(asdict(gpu_protocol.FULL), default=str))["dtype"] == "torch.bfloat16"
