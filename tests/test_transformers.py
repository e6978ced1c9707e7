"""The feed-forwards of transformers: its classes one by one, and whole models."""

from __future__ import annotations

import copy
import math

import pytest
import torch

import mhf_compile

transformers = pytest.importorskip("transformers")

from tests.transformers import census  # noqa: E402
from tests.transformers.build import randomise  # noqa: E402

SIZES = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS = ("Llama", "Qwen3", "Mistral", "Phi3", "Glm", "Glm4", "Gemma", "Gemma2", "Olmo2", "Granite")


@pytest.fixture(autouse=True)
def one_thread():
    transformers.logging.set_verbosity_error()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the modules are tiny
    yield
    torch.set_num_threads(threads)


def test_the_classes(capsys):
    """Every third; all of them are ``python -m tests.transformers.census``."""
    rows = census.census(census.specimens(), step=3)
    with capsys.disabled():
        print("\n" + census.totals(rows))
    assert {row.name: row.outcome for row in rows if row.outcome.verdict in ("WRONG", "failed")} == {}
    counted = [row for row in rows if row.specimens[0].counts]
    missed = [row for row in counted if row.outcome.verdict != "rewritten"]
    total, misses = (sum(len(row.specimens) for row in some) for some in (counted, missed))
    assert total >= 50
    assert misses <= 0.15 * total, {row.name: row.outcome for row in missed}


@pytest.mark.parametrize("name", MODELS)
def test_a_model(name):
    torch._dynamo.reset()
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**SIZES)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    randomise(model)
    tokens = torch.randint(3, config.vocab_size, (2, 16))

    def results(program, parameters):
        result = program(input_ids=tokens, labels=tokens, use_cache=False)
        gradients = torch.autograd.grad(result.loss, list(parameters))
        return float(result.loss), [result.logits.detach(), *gradients]

    double = copy.deepcopy(model).double()
    exact_loss, exact = results(double, double.parameters())
    _, before = results(model, model.parameters())
    compiled = torch.compile(model, backend="flashmhf", options=census.OPTIONS)
    loss, after = results(compiled, model.parameters())

    reports = "\n".join(map(str, mhf_compile.last_reports()))
    rewrites = sum(len(report.rewrites) for report in mhf_compile.last_reports())
    assert rewrites == config.num_hidden_layers, reports
    assert not census.beyond(exact, before, after)
    # The gradient of a mean of n cross-entropies by its logits is at most sqrt(2 / n) long.
    slope = math.sqrt(2 / (2 * 15))
    error = float((after[0].double() - exact[0]).norm())
    assert abs(loss - exact_loss) <= slope * error + 2 * census.ROUNDING * exact_loss
