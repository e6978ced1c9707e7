import pytest
import torch
from torch.nn import functional

from mhf_compile.models import MHFFN, PKV, FlashMHF, ModelConfig, SwiGLU

NETWORKS = [SwiGLU, MHFFN, PKV, FlashMHF]
CONFIG = ModelConfig(hidden=24, layers=1, attention_heads=3, ffn_heads=4, subnetworks=3, subnetwork_width=5)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("ffn", NETWORKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_shape_and_dtype_are_kept(ffn, dtype):
    x = torch.randn(2, 7, CONFIG.hidden, dtype=dtype)
    out = ffn(CONFIG).to(dtype)(x)
    assert out.shape == x.shape
    assert out.dtype == dtype


@pytest.mark.parametrize("ffn", NETWORKS)
def test_every_parameter_gets_a_gradient(ffn):
    network = ffn(CONFIG)
    x = torch.randn(2, 7, CONFIG.hidden, requires_grad=True)
    network(x).square().sum().backward()
    for name, tensor in [("x", x), *network.named_parameters()]:
        assert tensor.grad is not None and tensor.grad.abs().max() > 0, name


@pytest.mark.parametrize("ffn", NETWORKS)
def test_tokens_do_not_mix(ffn):
    network = ffn(CONFIG).double()
    x = torch.randn(1, 4, CONFIG.hidden, dtype=torch.float64)
    alone = torch.cat([network(x[:, t : t + 1]) for t in range(4)], dim=1)
    torch.testing.assert_close(network(x), alone)


def test_flash_mhf_is_its_equation():
    network = FlashMHF(CONFIG).double()
    x = torch.randn(2, 7, CONFIG.hidden, dtype=torch.float64)

    q = functional.linear(x, network.query.weight).unflatten(-1, (CONFIG.ffn_heads, CONFIG.head_dim))
    score = torch.einsum("bthd,hde->bthe", q, network.router).sigmoid()
    hidden = functional.silu(torch.einsum("bthd,hefd->bthef", q, network.keys)) * torch.einsum(
        "bthd,hefd->bthef", q, network.up
    )
    out = torch.einsum("bthe,bthef,hefd->bthd", score / score.sum(-1, keepdim=True), hidden, network.values)

    torch.testing.assert_close(network(x), functional.linear(out.flatten(-2), network.out.weight))


def test_flash_mhf_of_one_subnetwork_is_mhffn():
    config = ModelConfig(
        hidden=24, layers=1, attention_heads=3, ffn_heads=4, subnetworks=1, subnetwork_width=5
    )
    flash, naive = FlashMHF(config).double(), MHFFN(config).double()
    with torch.no_grad():
        for name, parameter in naive.named_parameters():
            parameter.copy_(flash.get_parameter(name).reshape(parameter.shape))
    x = torch.randn(2, 7, config.hidden, dtype=torch.float64)
    torch.testing.assert_close(flash(x), naive(x))


def test_router_is_fp32_and_sums_to_one():
    network = FlashMHF(CONFIG).bfloat16()
    r = network.route(torch.randn(2, 7, CONFIG.ffn_heads, CONFIG.head_dim, dtype=torch.bfloat16))
    assert r.dtype == torch.float32
    assert r.shape == (2, 7, CONFIG.ffn_heads, CONFIG.subnetworks)
    torch.testing.assert_close(r.sum(-1), torch.ones(2, 7, CONFIG.ffn_heads))


def test_pkv_is_attention_over_its_parameters():
    network = PKV(CONFIG).double()
    x = torch.randn(1, 7, CONFIG.hidden, dtype=torch.float64)
    q = network.split_heads(x).transpose(1, 2)
    out = functional.scaled_dot_product_attention(q, network.keys[None], network.values[None])
    torch.testing.assert_close(network(x), network.merge_heads(out.transpose(1, 2)))
