import pytest
import torch

from mhf_compile.models import CONFIGS, MHFFN, PKV, FlashMHF, LanguageModel, ModelConfig, SwiGLU

PAPER_VOCABULARY = 50432


def parameters(config, ffn):
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in LanguageModel(config, ffn).parameters())


# With the embeddings tied "128M" is 121M and "370M" is 350M: the names are rounded, some count them twice.
@pytest.mark.parametrize(("name", "millions"), [("128M", 128), ("370M", 370), ("1.3B", 1300)])
def test_sizes_are_near_their_names(name, millions):
    config = CONFIGS[name]
    embedding = (PAPER_VOCABULARY - config.vocabulary) * config.hidden
    assert parameters(config, FlashMHF) + embedding == pytest.approx(millions * 1e6, rel=0.06)


@pytest.mark.parametrize(
    ("name", "head_dim", "ffn_width", "swiglu_width"),
    [("128M", 96, 2048, 2560), ("370M", 128, 2816, 3499), ("1.3B", 128, 5632, 6997)],
)
def test_widths(name, head_dim, ffn_width, swiglu_width):
    config = CONFIGS[name]
    assert (config.head_dim, config.ffn_width, config.swiglu_width) == (head_dim, ffn_width, swiglu_width)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("ffn", [SwiGLU, MHFFN, PKV])
def test_networks_of_a_size_have_equal_parameters(name, ffn):
    # The router, H * D * E of them in a layer, is what the others lack.
    assert parameters(CONFIGS[name], ffn) == pytest.approx(parameters(CONFIGS[name], FlashMHF), rel=2e-3)


@pytest.mark.parametrize("heads", ["attention_heads", "ffn_heads"])
def test_heads_must_divide_the_width(heads):
    sizes = {"attention_heads": 2, "ffn_heads": 2, heads: 3}
    with pytest.raises(ValueError, match=f"{heads}=3 does not divide hidden=16"):
        ModelConfig(hidden=16, layers=1, subnetworks=2, subnetwork_width=4, **sizes)
