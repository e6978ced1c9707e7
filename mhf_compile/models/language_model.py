"""A decoder-only language model: RMSNorm, rotary self-attention and a feed-forward network of your choice."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from mhf_compile.models.configs import ModelConfig
from mhf_compile.models.ffn import FlashMHF

FeedForward = Callable[[ModelConfig], nn.Module]


class Attention(nn.Module):
    """Causal multi-head self-attention with rotary positions (arXiv 2104.09864)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.attention_heads
        self.qkv = nn.Linear(config.hidden, 3 * config.hidden, bias=False)
        self.out = nn.Linear(config.hidden, config.hidden, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d], with the rotation [T, head width / 2] of each position."""
        batch, length, hidden = x.shape
        heads: Tensor = self.qkv(x).view(batch, length, 3, self.heads, hidden // self.heads)
        q, k, v = heads.permute(2, 0, 3, 1, 4).unbind()
        out = functional.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True
        )
        mixed: Tensor = self.out(out.transpose(1, 2).reshape(batch, length, hidden))
        return mixed


class Block(nn.Module):
    """A pre-norm Transformer block: x + attention(norm(x)), then x + ffn(norm(x))."""

    def __init__(self, config: ModelConfig, ffn: FeedForward) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(config.hidden, eps=1e-5)
        self.attention = Attention(config)
        self.ffn_norm = nn.RMSNorm(config.hidden, eps=1e-5)
        self.ffn = ffn(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Map x [B, T, d] to [B, T, d]."""
        x = x + self.attention(self.attention_norm(x), cos, sin)
        out: Tensor = x + self.ffn(self.ffn_norm(x))
        return out


class LanguageModel(nn.Module):
    """Next-token prediction with input and output embeddings tied.

    Args:
        config: the sizes, e.g. `CONFIGS["128M"]`.
        ffn: makes the feed-forward network of a block: `SwiGLU`, `MHFFN`, `PKV`, `FlashMHF` or a class of
            your own.
    """

    def __init__(self, config: ModelConfig, ffn: FeedForward = FlashMHF) -> None:
        super().__init__()
        self.rotary_dim = config.hidden // config.attention_heads
        self.embedding = nn.Embedding(config.vocabulary, config.hidden)
        self.blocks = nn.ModuleList(Block(config, ffn) for _ in range(config.layers))
        self.norm = nn.RMSNorm(config.hidden, eps=1e-5)
        # The embedding is the output projection too: from N(0, 1) the first losses would be in the hundreds.
        nn.init.normal_(self.embedding.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """Predict from tokens [B, T] (int64) the logits [B, T, vocabulary] of each next token."""
        x: Tensor = self.embedding(tokens)
        cos, sin = rotation(tokens.shape[1], self.rotary_dim, x)
        for block in self.blocks:
            x = block(x, cos, sin)
        return functional.linear(self.norm(x), self.embedding.weight)


def rotation(length: int, dim: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine of position * 10000^(-2i / dim), [length, dim / 2] each, dtype and device of `like`."""
    # Angles in fp32: positions are not exact in bf16.
    position = torch.arange(length, device=like.device, dtype=torch.float32)
    frequency = 10000.0 ** (-torch.arange(0, dim, 2, device=like.device, dtype=torch.float32) / dim)
    angle = torch.outer(position, frequency)
    return angle.cos().to(like.dtype), angle.sin().to(like.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (x_i, x_{i + D/2}) of x [B, heads, T, D] by the angle of their position."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
