"""Law 1, do no harm: what is not rewritten is compiled as it came; errors of the analysis stay with it."""

from __future__ import annotations

import copy
import itertools
import json
import logging
import os
import re
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, fx, nn
from torch._dynamo.backends import registry
from torch._dynamo.exc import BackendCompilerFailed
from torch._dynamo.utils import counters
from torch.nn import functional

import mhf_compile
from mhf_compile import backend
from mhf_compile import inner as inner_compilers
from mhf_compile.errors import FlashMHFError, NotRewritten, OptionError
from mhf_compile.inner import package_hash
from mhf_compile.kernels.source import source_hash
from mhf_compile.rewriting import plan
from mhf_compile.tape.recorder import fake_mode_of
from tests.comparison import compare, counted_calls
from tests.programs import BY_NAME, D, F, H

EAGER = {"flashmhf.inner": "eager"}


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    counters.clear()
    yield
    torch._dynamo.reset()
    backend.flashmhf.reset()  # Dynamo resets the backends that it called itself


def run_python(program: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with nothing of this one."""
    inherited = {name: v for name, v in os.environ.items() if not name.startswith(("TORCH", "PYTHONPATH"))}
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**inherited, **environment},
    )


@contextmanager
def registered(name: str, compiler: Callable[..., Any]) -> Iterator[None]:
    torch._dynamo.register_backend(compiler, name=name)
    try:
        yield
    finally:
        del registry._COMPILER_FNS[name], registry._BACKENDS[name]


# -- a graph without a match --------------------------------------------------------------------------------


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 48))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(48)
        self.qkv = nn.Linear(48, 3 * 48)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 4, 12)).permute(2, 0, 3, 1, 4)
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return x + out.transpose(1, 2).flatten(2)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv1d(48, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.second = nn.Conv1d(16, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(functional.silu(self.norm(self.first(x.mT)))).mT


class InPlace(nn.Module):
    """An embedding, writes to a buffer and to a view, a read of an older view."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 48)
        self.register_buffer("seen", torch.zeros(48))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.embedding((x.detach()[..., 0] > 0).long())
        view = x[:, 0]
        x[:, 1:].mul_(0.5)
        x += view.unsqueeze(1)
        self.seen.add_(x.detach().mean((0, 1)))
        return x.clamp_(min=-2)


class Missed(nn.Module):
    """A gated feed-forward whose activation is used elsewhere as well."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(48, 20), nn.Linear(48, 20), nn.Linear(20, 48)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.silu(self.gate(x)) * self.up(x)
        return self.down(hidden) + hidden.mean()


MODELS = [Mlp, Attention, Convolutions, InPlace, Missed]


def described(module: fx.GraphModule) -> list[tuple[object, ...]]:
    return [
        (n, n.op, n.name, n.target, str(n.args), str(n.kwargs), tuple(n.users)) for n in module.graph.nodes
    ]


def metas(module: fx.GraphModule) -> list[dict[str, int]]:
    """Which object stands in each entry of each node's meta."""
    return [{key: id(value) for key, value in node.meta.items()} for node in module.graph.nodes]


@pytest.mark.parametrize("model", MODELS, ids=lambda m: m.__name__)
def test_reaches_the_inner_compiler_node_for_node(model: type[nn.Module]) -> None:
    seen: list[Any] = []

    def inner(module: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> fx.GraphModule:
        seen.append((module, module.graph, described(module), metas(module), module.code, inputs, kwargs))
        return module

    def outer(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        inner(module, inputs)
        return backend.flashmhf(module, inputs, options={"flashmhf.inner": "spy", "flashmhf.strict": True})

    x = torch.randn(2, 6, 48)
    eager = model()
    compiled = copy.deepcopy(eager)
    expected = eager(x.clone())
    with registered("spy", inner):
        found = torch.compile(compiled, backend=outer)(x.clone())
    before, after = seen
    assert before[0] is after[0]
    assert before[1] is after[1]
    assert before[2:6] == after[2:6]
    assert after[6] == {}
    assert torch.equal(found, expected)
    assert [r.rewrites for r in mhf_compile.last_reports()] == [()]
    assert len(mhf_compile.last_reports()[0].misses) == (model in (Mlp, Missed, Convolutions))


def test_bit_equal_to_inductor() -> None:
    """All the models in one, values and gradients."""

    def outcome(name: str) -> list[Tensor]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = nn.Sequential(*(kind() for kind in MODELS))
        x = torch.randn(2, 6, 48, requires_grad=True)
        result = torch.compile(model, backend=name)(x)
        result.square().mean().backward()
        return [result, x.grad, *(p.grad for p in model.parameters()), *model.buffers()]

    expected = outcome("inductor")
    assert counters["stats"]["unique_graphs"] == 1
    for a, b in zip(expected, outcome("flashmhf"), strict=True):
        assert torch.equal(a, b)


# -- internal errors ----------------------------------------------------------------------------------------


def two_layers(x: Tensor, *weights: Tensor) -> Tensor:
    return BY_NAME["loop"].program(BY_NAME["loop"].program(x, *weights), *weights)


def two_checkpoints(x: Tensor, *weights: Tensor) -> Tensor:
    return BY_NAME["checkpointed"].program(BY_NAME["checkpointed"].program(x, *weights), *weights)


def fails(*args: Any, **kwargs: Any) -> Any:
    raise ZeroDivisionError("planted")


def fails_the_second_time(original: Callable[..., Any]) -> Callable[..., Any]:
    calls: list[int] = []

    def function(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return fails() if len(calls) == 2 else original(*args, **kwargs)

    return function


SURGEON = plan.Surgeon
STAGES: dict[str, Callable[[], Any]] = {
    "record": lambda: mock.patch.object(backend, "record", fails),
    "find": lambda: mock.patch.object(plan, "find", fails),
    "region": lambda: mock.patch.object(plan, "check", fails),
    "prove": lambda: mock.patch.object(plan.Proofs, "prove", fails),
    "second replacement, nothing done": lambda: mock.patch.object(
        SURGEON, "replace", fails_the_second_time(SURGEON.replace)
    ),
    "second replacement, nodes put in": lambda: mock.patch.object(
        SURGEON, "_redirect", fails_the_second_time(SURGEON._redirect)
    ),
    "second replacement, result redirected": lambda: mock.patch.object(
        SURGEON, "_erase", fails_the_second_time(SURGEON._erase)
    ),
    "describe": lambda: mock.patch.object(backend, "rewrite_of", fails),
    "finish": lambda: mock.patch.object(SURGEON, "finish", fails),
}


def texts(module: fx.GraphModule) -> list[tuple[str, ...]]:
    """A graph and its bodies as text; nodes may be other objects."""
    own = [
        (
            n.op,
            n.name,
            str(n.target),
            str(n.args),
            str(n.kwargs),
            str(sorted(n.meta)),
            n.meta.get("stack_trace", ""),
        )
        for n in module.graph.nodes
    ]
    bodies = [part for _, part in module.named_children() if isinstance(part, fx.GraphModule)]
    return [*own, (module.code,), *(line for body in bodies for line in texts(body))]


@pytest.mark.parametrize("program", [two_layers, two_checkpoints], ids=lambda p: p.__name__)
@pytest.mark.parametrize("stage", STAGES)
def test_an_internal_error_leaves_the_graph_alone(
    stage: str, program: Callable[..., Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    tensors = BY_NAME["loop"].tensors()
    expected = program(*tensors)
    graphs: list[list[tuple[str, ...]]] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        graphs.append(texts(module))
        compiled = backend.flashmhf(module, inputs, options=EAGER)
        graphs.append(texts(module))
        return compiled

    caplog.clear()
    with STAGES[stage](), counted_calls() as calls:
        found = torch.compile(program, backend=around)(*tensors)
    assert torch.equal(found, expected)
    for a, b in zip(gradients(found, tensors), gradients(expected, tensors), strict=True):
        assert torch.equal(a, b)
    assert calls == [0]
    before, after = graphs
    assert before == after
    (report,) = mhf_compile.last_reports()
    assert (report.rewrites, report.misses) == ((), ())
    assert re.fullmatch(r"the analysis failed, with \w+: .*", report.notes[0])
    (warning,) = [record for record in caplog.records if record.name.startswith("mhf_compile")]
    assert warning.levelname == "WARNING"
    assert warning.exc_info is not None
    assert warning.exc_info[0] is ZeroDivisionError


def gradients(result: Tensor, tensors: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(result.square().sum(), tensors)


@pytest.mark.parametrize("stage", STAGES)
def test_strict_raises_an_internal_error(stage: str) -> None:
    options = {**EAGER, "flashmhf.strict": True}
    with STAGES[stage](), pytest.raises(BackendCompilerFailed, match="planted") as raised:
        torch.compile(two_layers, backend="flashmhf", options=options)(*BY_NAME["loop"].tensors())
    assert isinstance(raised.value.inner_exception, ZeroDivisionError)


def test_state_does_not_leak_from_an_error() -> None:
    def program(q: Tensor, k: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            return functional.silu(torch.vmap(torch.matmul)(q, k)) + 1

    def state() -> tuple[object, ...]:
        return (
            torch.is_grad_enabled(),
            torch.is_autocast_enabled("cpu"),
            torch.is_autocast_cache_enabled(),
            torch._C._functorch.get_dynamic_layer_stack_depth(),
            torch._C._len_torch_dispatch_stack(),
        )

    states: list[object] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        states.append(state())
        compiled = backend.flashmhf(module, inputs, options=EAGER)
        states.append(state())
        return compiled

    tensors = torch.randn(3, 4, 5), torch.randn(3, 5, 4)
    expected = program(*tensors)
    with mock.patch("mhf_compile.tape.tape.Tape.record", fails):
        found = torch.compile(program, backend=around)(*tensors)
    assert states[0] == states[1]
    assert torch.equal(found, expected)


# -- options and modes --------------------------------------------------------------------------------------


def config_patches(**kwargs: Any) -> dict[str, Any]:
    """What Inductor is told when a function is compiled."""
    given: list[dict[str, Any]] = []

    def compile_fx(module: fx.GraphModule, inputs: object, config_patches: dict[str, Any], **_: Any) -> Any:
        given.append(config_patches)
        return module

    with mock.patch("torch._inductor.compile_fx.compile_fx", compile_fx):
        torch.compile(lambda x: x + 1, backend=kwargs.pop("backend", "flashmhf"), **kwargs)(torch.ones(2))
    (patches,) = given
    return patches


@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_a_mode_reaches_inductor(mode: str) -> None:
    patches = config_patches(mode=mode)
    assert patches == config_patches(mode=mode, backend="inductor")
    assert mode == "default" or patches


def test_options_reach_inductor_and_ours_do_not() -> None:
    patches = config_patches(
        options={"max_autotune": True, "flashmhf.prove": "always", "trace.enabled": False}
    )
    assert patches == {"max_autotune": True, "trace.enabled": False}
    assert config_patches() == {}


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        (
            {"options": {"no_such_option": 1}},
            "Unexpected optimization option no_such_option, known options are",
        ),
        ({"options": {"max_autotune": "yes"}}, "Unexpected type of attr max_autotune"),
        ({"mode": "no-such-mode"}, "Unrecognized mode=no-such-mode, should be one of: default"),
        ({"options": {"flashmhf.prof": 1}}, "unknown option 'flashmhf.prof'; the options are flashmhf.inner"),
        ({"options": {**EAGER, "max_autotune": True}}, "flashmhf.inner is 'eager', which takes no mode or"),
    ],
)
def test_wrong_options_are_told_first(kwargs: dict[str, Any], said: str) -> None:
    """Before the analysis, and with the message before everything else."""
    with mock.patch.object(backend, "record", fails), pytest.raises(OptionError) as raised:
        torch.compile(lambda x: x + 1, backend="flashmhf", **kwargs)(torch.ones(2))
    assert str(raised.value).startswith(said)
    assert isinstance(raised.value, (ValueError, FlashMHFError))
    assert mhf_compile.last_reports() == []
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert not {"_compile", "call_user_compiler"} & set(frames)


def test_require() -> None:
    def program(x: Tensor, *weights: Tensor) -> Tensor:
        return Missed()(BY_NAME["loop"].program(x, *weights))

    tensors = BY_NAME["loop"].tensors()
    torch.compile(program, backend="flashmhf", options={**EAGER, "flashmhf.require": 1})(*tensors)
    torch._dynamo.reset()
    with pytest.raises(NotRewritten, match="is used elsewhere as well, by mean") as raised:
        torch.compile(program, backend="flashmhf", options={**EAGER, "flashmhf.require": 2})(*tensors)
    assert str(raised.value).startswith("flashmhf.require is 2, but 1 of 2 feed-forwards")


@pytest.mark.parametrize("inner", ["eager", "aot_eager"])
def test_inner_backends(inner: str) -> None:
    tensors = BY_NAME["loop"].tensors()
    made: list[object] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        made.append(backend.flashmhf(module, inputs, options={"flashmhf.inner": inner}))
        return made[-1]

    torch.compile(two_layers, backend=around)(*tensors)
    assert isinstance(made[0], fx.GraphModule) == (inner == "eager")
    backend.flashmhf.reset()
    found = compare(two_layers, tensors, options={"flashmhf.inner": inner})
    assert (found.rewrites, found.calls) == (2, 2)
    found.check_error()


# -- caches -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [False, True])
def test_the_cache_key_carries_the_package(error: bool) -> None:
    tags: list[str] = []

    def inner(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        tags.append(torch.compiler.config.cache_key_tag)
        return fails() if error else module

    with (
        registered("spy", inner),
        torch.compiler.config.patch(cache_key_tag="the user's own"),
        pytest.raises(BackendCompilerFailed) if error else nullcontext(),
    ):
        torch.compile(lambda x: x + 1, backend="flashmhf", options={"flashmhf.inner": "spy"})(torch.ones(2))
        assert torch.compiler.config.cache_key_tag == "the user's own"
    (tag,) = tags
    assert tag.split() == ["the", "user's", "own", package_hash()]


def test_the_hash_changes_with_any_source(tmp_path: Path) -> None:
    package = shutil.copytree(Path(backend.__file__).parent, tmp_path / "mhf_compile")

    def digest() -> str:
        with mock.patch.object(inner_compilers, "__file__", str(package / "inner.py")):
            source_hash.cache_clear()
            return package_hash()

    assert digest() == package_hash()
    seen = {digest()}
    for name in ("kernels/flash_mhf/blocked.py", "patterns/flash_mhf.py", "reading/reader.py"):
        with (package / name).open("a") as file:
            file.write("\n# changed\n")
        seen.add(digest())
    (package / "kernels" / "new.py").write_text("")
    seen.add(digest())
    (package / "kernels" / "new.py").rename(package / "kernels" / "renamed.py")
    seen.add(digest())
    assert len(seen) == 6
    assert {len(name) for name in seen} == {len("mhf_compile-") + 16}


def test_a_hit_in_inductors_cache_is_reported(tmp_path: Path) -> None:
    tensors = BY_NAME["one_einsum"].tensors()
    options = {"flashmhf.strict": True}
    results = []
    with mock.patch.dict(os.environ, {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}):
        for hits in (0, 1):
            torch._dynamo.reset()
            counters.clear()
            compiled = torch.compile(BY_NAME["one_einsum"].program, backend="flashmhf", options=options)
            with counted_calls() as calls:
                results.append(compiled(*tensors))
            assert counters["inductor"]["fxgraph_cache_hit"] == hits
            assert calls == [1]
            (report,) = mhf_compile.last_reports()
            assert [rewrite.proof for rewrite in report.rewrites] == ["exact"]
    assert torch.equal(*results)


# -- guards -------------------------------------------------------------------------------------------------

SHAPES = [(2, 6), (3, 6), (3, 7), (5, 8), (1, 9), (16, 16)]


@pytest.mark.parametrize(("name", "inner"), [("head_list", "eager"), ("fused_gate_up", "aot_eager")])
def test_no_recompile_is_added(name: str, inner: str) -> None:
    """Automatic dynamic shapes: as many graphs and the same guards as without us."""
    arguments = BY_NAME[name].arguments.split()
    tensors = BY_NAME[name].tensors()

    def compiles(**kwargs: Any) -> tuple[int, list[str]]:
        torch._dynamo.reset()
        counters.clear()
        guards: list[str] = []

        def guard_filter(entries: Sequence[Any]) -> list[bool]:
            guards.extend(sorted(re.sub(r"\d+", "", f"{entry.guard_type} {entry.name}") for entry in entries))
            return [True] * len(entries)

        options = {**kwargs.pop("options", {}), "guard_filter_fn": guard_filter}
        compiled = torch.compile(BY_NAME[name].program, options=options, **kwargs)
        for batch, length in SHAPES:
            varied = [
                torch.randn(batch, length, *t.shape[2:]) if n in ("x", "q", "r") else t
                for n, t in zip(arguments, tensors, strict=True)
            ]
            compiled(*varied)
        return counters["stats"]["unique_graphs"], guards

    expected = compiles(backend=inner)
    assert expected[0] < len(SHAPES)
    assert (
        compiles(backend="flashmhf", options={"flashmhf.inner": inner, "flashmhf.strict": True}) == expected
    )
    assert all(len(report.rewrites) == 1 for report in mhf_compile.last_reports())


def test_the_shape_environment_is_as_it_was() -> None:
    def snapshot(module: fx.GraphModule) -> tuple[object, ...]:
        mode = fake_mode_of(module)
        assert mode is not None
        environment = mode.shape_env
        assert environment is not None
        return (
            list(map(str, environment.guards)),
            dict(environment.replacements),
            dict(environment.var_to_range),
            dict(environment.backed_var_to_val),
            dict(environment.deferred_runtime_asserts),
            list(environment.pending_fresh_unbacked_symbols),
        )

    seen: list[tuple[object, ...]] = []

    def around(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        seen.append(snapshot(module))
        compiled = backend.flashmhf(module, inputs, options={**EAGER, "flashmhf.strict": True})
        seen.append(snapshot(module))
        return compiled

    x, *weights = BY_NAME["loop"].tensors()
    torch._dynamo.mark_dynamic(x, 0)
    torch._dynamo.mark_dynamic(x, 1)
    torch.compile(BY_NAME["loop"].program, backend=around)(x, *weights)
    assert len(mhf_compile.last_reports()[0].rewrites) == 1
    assert seen[0] == seen[1]


# -- reports ------------------------------------------------------------------------------------------------


def test_a_report_for_each_graph_until_reset() -> None:
    q, k, u, v = BY_NAME["exponential"].tensors()

    def program(q: Tensor) -> Tensor:
        first = BY_NAME["exponential"].program(q, k, u, v)
        torch._dynamo.graph_break()
        return BY_NAME["exponential"].program(first, k, u, v) + q

    compiled = torch.compile(program, backend="flashmhf", options=EAGER)
    compiled(q)
    assert [len(report.rewrites) for report in mhf_compile.last_reports()] == [1, 1]
    compiled(q)
    assert len(mhf_compile.last_reports()) == 2
    compiled(q[:, :5])  # both graphs again
    reports = mhf_compile.last_reports()
    assert [len(report.rewrites) for report in reports] == [1] * 4
    assert reports[0].rewrites[0].tokens == 80
    assert isinstance(reports[2].rewrites[0].tokens, str)
    reports.clear()  # a list of one's own
    assert len(mhf_compile.last_reports()) == 4
    torch._dynamo.reset()
    assert mhf_compile.last_reports() == []


def test_the_report_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "mhf_compile"):
        torch.compile(BY_NAME["loop"].program, backend="flashmhf", options=EAGER)(*BY_NAME["loop"].tensors())
    entries = [(r.levelname, r.getMessage()) for r in caplog.records if r.name == "mhf_compile.backend"]
    (report,) = mhf_compile.last_reports()
    assert ("INFO", str(report)) in entries
    assert ("DEBUG", f"{report.rewrites[0].source}: {report.rewrites[0].equation}") in entries


# -- other processes ----------------------------------------------------------------------------------------

PROGRAM = f"""
import torch
from torch.nn.functional import silu

def program(x, k, u, v):
    q = x.unflatten(-1, ({H}, {D}))
    gate, up = (torch.einsum("bthd,hfd->bthf", q, w) for w in (k, u))
    return torch.einsum("bthf,hfo->btho", silu(gate) * up, v)

tensors = [torch.randn(2, 5, {H * D}), *(torch.randn({H}, {F}, {D}) for _ in range(3))]
"""


COMPILED = """
import sys
assert "mhf_compile.backend" not in sys.modules
assert "flashmhf" in torch._dynamo.list_backends()
torch.compile(program, backend="flashmhf", options={OPTIONS})(*tensors)
assert torch._dynamo.lookup_backend("flashmhf") is sys.modules["mhf_compile"].flashmhf
(report,) = sys.modules["mhf_compile"].last_reports()
print(report.to_json())
print(report, file=sys.stderr)
counters = torch._dynamo.utils.counters
print(counters["inductor"]["fxgraph_cache_hit"], counters["aot_autograd"]["autograd_cache_hit"])
"""


def traced(folder: Path) -> str:
    """The report in a structured trace."""
    (trace,) = folder.glob("*.log")
    lines = trace.read_text().splitlines()
    position = next(i for i, line in enumerate(lines) if '"flashmhf_rewrites"' in line)
    payload = itertools.takewhile(lambda line: line.startswith("\t"), lines[position + 1 :])
    return "\n".join(line.removeprefix("\t") for line in payload)


def test_by_name_with_logs_and_trace(tmp_path: Path) -> None:
    """No import of the package: PyTorch finds it; its log and its trace say what the report says."""
    program = PROGRAM + COMPILED.replace("{OPTIONS}", str(EAGER))
    trace = tmp_path / "trace"
    done = run_python(program, tmp_path, TORCH_LOGS="+mhf_compile", TORCH_TRACE=str(trace))
    assert done.returncode == 0, done.stderr
    report = "".join(done.stdout.splitlines(keepends=True)[:-1]).strip()
    assert [rewrite["heads"] for rewrite in json.loads(report)["rewrites"]] == [H]
    assert traced(trace) == report
    printed = done.stderr.splitlines()[-3:]  # by the program, after the logs
    assert printed[0].startswith("1 of 1 feed-forwards rewritten")
    logged = [
        line.partition("] ")[2] for line in done.stderr.splitlines() if "mhf_compile/backend.py" in line
    ]
    assert all(any(line.endswith(text) for line in logged) for text in printed)
    assert "sum_{f} silu(" in done.stderr  # the equation, at the level of debugging


def test_a_second_process_is_served_from_the_caches_and_reports_the_same(tmp_path: Path) -> None:
    outputs = []
    for number in range(2):
        trace = tmp_path / f"trace{number}"
        done = run_python(
            PROGRAM + COMPILED.replace("{OPTIONS}", "{}"),
            tmp_path,
            TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
            TORCH_TRACE=str(trace),
        )
        assert done.returncode == 0, done.stderr
        *report, hits = done.stdout.splitlines()
        assert traced(trace) == "\n".join(report)
        outputs.append((hits, report))
    assert [hits for hits, _ in outputs] == ["0 0", "1 1"]
    assert outputs[0][1] == outputs[1][1]


def test_logs_are_quiet_unless_asked_for(tmp_path: Path) -> None:
    done = run_python(
        PROGRAM + 'torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "eager"})(*tensors)',
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_minifier_takes_our_graphs(tmp_path: Path) -> None:
    """A failure of the inner compiler is written down as a program to reproduce it."""
    done = run_python(
        PROGRAM
        + """
import torch._dynamo
@torch._dynamo.register_backend
def failing(module, inputs):
    raise RuntimeError("the inner compiler failed")
torch.compile(program, backend="flashmhf", options={"flashmhf.inner": "failing"})(*tensors)
""",
        tmp_path,
        TORCHDYNAMO_REPRO_AFTER="dynamo",
        TORCHDYNAMO_REPRO_LEVEL="2",
    )
    assert done.returncode != 0
    assert "the inner compiler failed" in done.stderr
    (launcher,) = tmp_path.rglob("minifier_launcher.py")
    assert "flashmhf" in launcher.read_text()
