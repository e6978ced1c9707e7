import ast
from pathlib import Path

import pytest
import torch

import mhf_compile.models
from mhf_compile.models import MHFFN, PKV, FlashMHF, LanguageModel, ModelConfig, SwiGLU
from mhf_compile.models.language_model import rotate, rotation

CONFIG = ModelConfig(hidden=24, layers=2, attention_heads=3, ffn_heads=4, subnetworks=3, subnetwork_width=5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("ffn", [SwiGLU, MHFFN, PKV, FlashMHF])
def test_logits_and_gradients(ffn):
    model = LanguageModel(CONFIG, ffn)
    logits = model(torch.randint(256, (2, 7)))
    assert logits.shape == (2, 7, 256)
    logits.logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_prediction_sees_no_later_token():
    model = LanguageModel(CONFIG).double()
    tokens = torch.randint(256, (2, 7))
    changed = tokens.clone()
    changed[:, 4:] = (changed[:, 4:] + 1) % 256
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4], after[:, 4])


def test_rotation_depends_on_distance_only():
    like = torch.empty(0, dtype=torch.float32)
    cos, sin = rotation(12, 8, like)
    q, k = torch.randn(8), torch.randn(8)
    scores = rotate(q.expand(12, 8), cos, sin) @ rotate(k.expand(12, 8), cos, sin).T
    for distance in range(-11, 12):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)


def test_models_know_only_torch_and_themselves():
    for path in Path(mhf_compile.models.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                imported = [node.module]
            elif isinstance(node, ast.Import):
                imported = [alias.name for alias in node.names]
            else:
                continue
            for name in imported:
                assert not name.startswith("mhf_compile") or name.startswith("mhf_compile.models"), path
