import subprocess
import sys

import pytest
import torch

from mhf_compile.__main__ import main
from mhf_compile.commands import demo


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


def test_saved_bytes_counts_a_storage_once_and_owned_ones_not_at_all():
    weight = torch.randn(8, 8, requires_grad=True)
    x = torch.randn(4, 8)

    def forward():
        hidden = x @ weight  # saves x
        return (hidden.sigmoid() * hidden.view(4, 8)).sum()  # saves hidden under two names, and its sigmoid

    assert demo.saved_bytes(forward, owned=[weight, x]) == 2 * 4 * 8 * 4
    assert demo.saved_bytes(forward, owned=[weight]) == 3 * 4 * 8 * 4


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux shows it")
def test_cost_sees_memory_that_is_freed_again():
    size = 64 * 2**20
    with demo.Cost("cpu") as cost:
        torch.ones(size // 4)
    with demo.Cost("cpu") as nothing:
        pass
    assert cost.peak == pytest.approx(size, rel=0.1)
    assert nothing.peak < size / 10


def test_demo_reports_rewrites_losses_and_costs():
    command = [sys.executable, "-m", "mhf_compile", "demo", "--layers", "1", "--steps", "2", "--tokens", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "1 of 1 feed-forward networks fused" in done.stdout
    lines = {line.split("  ")[0]: line.split() for line in done.stdout.splitlines()}
    # The second loss follows an update, so gradients count too. An fp32 ulp of a loss near 5.5 is 4.8e-7.
    assert float(lines["largest difference"][-1]) < 8 * 4.8e-7
    ratio = float(lines["saved for the backward, MiB"][-1].removesuffix("x"))
    assert ratio > 1
    assert "time of fastest step, s" in lines
