"""The three model sizes of FlashMHF (arXiv 2512.06989)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class ModelConfig:
    """Sizes of a language model and of its feed-forward networks.

    Attributes:
        hidden: model width d.
        layers: number of Transformer blocks.
        attention_heads: heads of the self-attention; must divide `hidden`.
        ffn_heads: heads H of a multi-head feed-forward network; must divide `hidden`.
        subnetworks: sub-networks E of a FlashMHF head.
        subnetwork_width: width d_e of one sub-network.
        vocabulary: number of token ids. The default reads text as bytes.

    Raises:
        ValueError: a number of heads does not divide `hidden`.
    """

    hidden: int
    layers: int
    attention_heads: int
    ffn_heads: int
    subnetworks: int
    subnetwork_width: int
    vocabulary: int = 256

    def __post_init__(self) -> None:
        for name in ("attention_heads", "ffn_heads"):
            heads = getattr(self, name)
            if self.hidden % heads:
                raise ValueError(f"{name}={heads} does not divide hidden={self.hidden}")

    @property
    def head_dim(self) -> int:
        """Width d_h of a feed-forward head."""
        return self.hidden // self.ffn_heads

    @property
    def ffn_width(self) -> int:
        """Width d_ff of a multi-head feed-forward network: E * d_e, in every head."""
        return self.subnetworks * self.subnetwork_width

    @property
    def swiglu_width(self) -> int:
        """Width w of the SwiGLU with as many parameters, W_q and W_out counted: 3 d w = 3 d d_ff + 2 d^2."""
        return self.ffn_width + round(2 * self.hidden / 3)


# The names are the paper's and count its vocabulary of 50432: 121M, 350M and 1298M with tied embeddings. Over
# bytes the same blocks have 83M, 299M and 1197M parameters. 370M has the 20 layers its authors published; 21
# would come nearer to its name.
CONFIGS = {
    "128M": ModelConfig(
        hidden=768, layers=10, attention_heads=12, ffn_heads=8, subnetworks=8, subnetwork_width=256
    ),
    "370M": ModelConfig(
        hidden=1024, layers=20, attention_heads=16, ffn_heads=8, subnetworks=11, subnetwork_width=256
    ),
    "1.3B": ModelConfig(
        hidden=2048, layers=20, attention_heads=32, ffn_heads=16, subnetworks=22, subnetwork_width=256
    ),
}
