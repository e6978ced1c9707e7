"""What the GPU benchmark measures: sizes, tokens, repeats, and the goals' own shapes.

`FULL` is the protocol for a GPU. `DRY` goes the same way on a CPU with sizes so small that its figures mean
nothing: it shows that the way can be gone.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.timing import Limits, WallClock
from mhf_compile.models import CONFIGS, ModelConfig


@dataclass(frozen=True)
class Protocol:
    """All numbers of a run.

    Attributes:
        device: torch's name of it.
        dtype: of operands and weights.
        compiler: the backend of compiled peers, and the one below ours.
        sizes: by name; operators of all of them are measured.
        paper: the names of those whose layers are measured at all `layer_tokens`, and goals are about.
        tokens: N of forward and backward, the most important first.
        layer_tokens: those of them at which layers are measured; at the first, those of all sizes are.
        dense_tokens: N of the dense feed-forward, likewise.
        decode_tokens: N of decode.
        dense: the dense feed-forward, one head and one sub-network.
        ragged: N of the checks against float64, at all sizes.
        other_dtypes: checked as well, at the size `checked` and the largest of `ragged`.
        checked: see there.
        long: N of one more check at that size, by the dtype of the run.
        limits: how often a race measures.
        matmul: width of the square matrix product that is the ceiling of arithmetic.
        copied: bytes of the copy that is the ceiling of memory.
        goal_tokens: N at which goals in TFLOP/s hold.
        goal_head_dim: head width at which they hold.
        contest_from: N from which on ours must not be slower than any peer.
    """

    device: str
    dtype: torch.dtype
    compiler: str
    sizes: dict[str, ModelConfig]
    paper: tuple[str, ...]
    tokens: tuple[int, ...]
    layer_tokens: tuple[int, ...]
    dense_tokens: tuple[int, ...]
    decode_tokens: tuple[int, ...]
    dense: ModelConfig
    ragged: tuple[int, ...]
    other_dtypes: tuple[torch.dtype, ...]
    checked: str
    long: int
    matmul: int
    copied: int
    goal_tokens: int
    goal_head_dim: int
    contest_from: int
    limits: Limits = field(default_factory=Limits)

    def cache_bytes(self) -> int:
        """Size of the last cache before memory; on a CPU, where nothing flushes it, 4 KiB."""
        if self.device != "cuda":
            return 2**12
        return int(torch.cuda.get_device_properties().L2_cache_size)


@dataclass(frozen=True)
class Shape:
    """What a contest is about: a `level` ("op", "layer" or "dense"), a size and a number of tokens."""

    level: str
    size: str
    model: ModelConfig
    tokens: int

    def __str__(self) -> str:
        return f"{self.level} {self.size}, {self.tokens} tokens"

    def flop(self, part: str) -> float:
        """Floating-point operations of "forward", "backward" or "step", the two in one.

        Of the operator they are counted in products of the size of Q K: 3 forward, and 8 backward, which is
        what recomputing and every gradient take at least. All peers are counted alike, so that a rate is a
        time seen otherwise. A layer, whose backward need not recompute, has 3 and 6 products of the width of
        the SwiGLU with as many parameters.
        """
        model = self.model
        if self.level == "layer":
            product, units = model.hidden * model.swiglu_width, {"forward": 3, "backward": 6, "step": 9}
        else:
            product, units = model.hidden * model.ffn_width, {"forward": 3, "backward": 8, "step": 11}
        return 2.0 * self.tokens * product * units[part]


Op = Callable[..., Tensor]
"""Maps q, k, u, v, r, laid out as those of `flash_mhf`, to out."""


class Peer(NamedTuple):
    """An implementation that was named to us, and the stages that it takes part in."""

    function: Op
    stages: Sequence[str]


@dataclass(frozen=True)
class Lab:
    """What every measurement takes.

    Attributes:
        protocol: the numbers.
        clock: that times.
        peers: that were named to us.
        lost: entrants that hung or died at this very shape, or too often, and what happened.
    """

    protocol: Protocol
    clock: WallClock
    peers: Mapping[str, Peer]
    lost: dict[str, str] = field(default_factory=dict)

    def at(self, stage: str) -> "Lab":
        """The same with those peers only that take part in a stage."""
        peers = {name: peer for name, peer in self.peers.items() if stage in peer.stages}
        return replace(self, peers=peers)

    def turn(self, who: str) -> AbstractContextManager[None]:
        """Give an entrant its time."""
        return self.clock.turn(who, self.protocol.limits.turn)


FULL = Protocol(
    device="cuda",
    dtype=torch.bfloat16,
    compiler="inductor",
    sizes={
        "370M": CONFIGS["370M"],
        "1.3B": CONFIGS["1.3B"],
        "128M": CONFIGS["128M"],
        "d64": replace(CONFIGS["370M"], ffn_heads=16),
        "d256": replace(CONFIGS["370M"], ffn_heads=4),
    },
    paper=("370M", "1.3B", "128M"),
    tokens=(16384, 1024, 65536, 4096),
    layer_tokens=(16384, 1024, 65536),
    dense_tokens=(4096, 1024, 16384),
    decode_tokens=(1, 4, 16),
    dense=ModelConfig(
        hidden=4096, layers=1, attention_heads=32, ffn_heads=1, subnetworks=1, subnetwork_width=14336
    ),
    ragged=(1, 17, 129, 1000),
    other_dtypes=(torch.float16, torch.float32),
    checked="370M",
    long=16385,
    matmul=8192,
    copied=2**31,
    goal_tokens=16384,
    goal_head_dim=128,
    contest_from=1024,
)


def _tiny(hidden: int, heads: int) -> ModelConfig:
    return ModelConfig(
        hidden=hidden, layers=1, attention_heads=1, ffn_heads=heads, subnetworks=2, subnetwork_width=8
    )


DRY = Protocol(
    device="cpu",
    dtype=torch.bfloat16,
    compiler="aot_eager",  # Inductor's C++ compiler would take minutes
    sizes={
        "370M": _tiny(32, 4),
        "1.3B": _tiny(64, 8),
        "128M": _tiny(12, 2),
        "d64": _tiny(32, 8),
        "d256": _tiny(32, 2),
    },
    paper=("370M", "1.3B", "128M"),
    tokens=(16, 4),
    layer_tokens=(16,),
    dense_tokens=(16, 4),
    decode_tokens=(1, 3),
    dense=_tiny(16, 1),
    ragged=(1, 5),
    other_dtypes=(torch.float16, torch.float32),
    checked="370M",
    long=33,
    matmul=64,
    copied=2**16,
    goal_tokens=16,
    goal_head_dim=8,
    contest_from=4,
    limits=Limits(repeats=3, least=2),
)
