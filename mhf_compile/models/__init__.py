"""The layers of FlashMHF (arXiv 2512.06989) and the language model around them, as plain `nn.Module`s.

They are written as their authors would write them and know nothing of the compiler: `torch.compile` finds the
feed-forward networks in them by what they compute.
"""

from mhf_compile.models.configs import CONFIGS, ModelConfig
from mhf_compile.models.ffn import MHFFN, PKV, FlashMHF, SwiGLU
from mhf_compile.models.language_model import LanguageModel

__all__ = ["CONFIGS", "MHFFN", "PKV", "FlashMHF", "LanguageModel", "ModelConfig", "SwiGLU"]
