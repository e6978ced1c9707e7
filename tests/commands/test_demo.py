import subprocess
import sys

import pytest
import torch

import mhf_compile
from mhf_compile.__main__ import main
from mhf_compile.commands import demo
from mhf_compile.models import FlashMHF, LanguageModel, ModelConfig, SwiGLU

TINY = ModelConfig(
    hidden=16, layers=2, attention_heads=2, ffn_heads=2, subnetworks=2, subnetwork_width=8, vocabulary=8
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: command"),
        (["--layers", "0"], "argument --layers: must be a whole number of at least 1, not '0'"),
        (["--steps", "many"], "argument --steps: must be a whole number of at least 1, not 'many'"),
        (["--tokens", "-5"], "argument --tokens: must be a whole number of at least 1, not '-5'"),
        (["--tokens", "700"], "argument --tokens: must be at most 512 or a multiple of it, not 700"),
        (["--tokens", "512000"], "--steps times --tokens must be below"),
        (["--device", "abacus"], "argument --device: must be one of cpu"),
        (["--dtype", "int8"], "float32"),
        (["--config", "7B"], "128M"),
        (["--inner", "tvm"], "inductor"),
    ],
)
def test_bad_values_exit_with_2_and_say_what_is_allowed(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(["demo", *arguments] if arguments else [])
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_batches_are_runs_of_text_one_byte_longer_than_their_sequences():
    settings = demo.Settings(demo.CONFIGS["128M"], steps=3, tokens=1024, device="cpu", dtype="float32")
    batches = demo.text_batches(settings)
    assert [batch.shape for batch in batches] == [(2, 513)] * 3
    assert bytes(batches[1][0].tolist()) in demo.documentation()


@pytest.fixture(params=[False, True], ids=["block", "whole"])
def settings(request):
    torch._dynamo.reset()
    return demo.Settings(TINY, steps=1, tokens=4, device="cpu", dtype="float32", whole=request.param)


def test_one_graph_serves_all_blocks(settings):
    model = LanguageModel(TINY, FlashMHF)
    tokens = torch.randint(8, (1, 4))
    expected = model(tokens)
    demo.compile_model(model, settings)
    torch.testing.assert_close(model(tokens), expected)
    assert [len(report.rewrites) for report in mhf_compile.last_reports()] == [2 if settings.whole else 1]


def test_what_is_not_rewritten_makes_the_first_call_fail(settings):
    model = LanguageModel(TINY, SwiGLU)
    demo.compile_model(model, settings)
    said = "is 2, but 0 of 2 " if settings.whole else "is 1, but 0 of 1 "
    with pytest.raises(Exception, match=rf"flashmhf\.require {said}"):
        model(torch.zeros(1, 4, dtype=torch.int64))


@pytest.mark.parametrize("inner", demo.INNER)
def test_what_is_not_rewritten_goes_to_the_inner_compiler(inner, monkeypatch):
    given = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, options, **_: given.append(options))
    model = LanguageModel(TINY, FlashMHF)
    demo.compile_model(model, demo.Settings(TINY, 1, 4, "cpu", "float32", inner))
    assert given == [{"flashmhf.require": 1, "flashmhf.inner": inner}] * 2


def test_a_block_is_compiled_once_for_all():
    command = [sys.executable, "-m", "mhf_compile", "demo", "--layers", "2", "--steps", "2", "--tokens", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    out = done.stdout
    assert "A block was compiled once, for 2 blocks; what was compiled:\n1 of 1 feed-forwards" in out
    lines = {line.split("  ")[0]: line.split() for line in out.splitlines()}
    # The second loss follows an update, so gradients count too. An fp32 ulp of a loss near 5.5 is 4.8e-7.
    assert float(lines["largest difference"][-1]) < 8 * 4.8e-7
    ratio = float(lines["saved for the backward, MiB"][-1].removesuffix("x"))
    assert ratio > 1
    assert "time of fastest step, s" in lines
