"""What is computed, and how it is written: all the choices that make up a program."""

from __future__ import annotations

from dataclasses import dataclass

LETTERS = "bthgefdo"
"""Batch, token, head (of the weights), head of a group, sub-network, width, channel in, channel out."""

# Numbers are written out: where all sizes are symbols, pi is one as well.
ACTIVATIONS = {
    "silu": ("silu({x})", "{x} * torch.sigmoid({x})", "{x} / (1 + torch.exp(-{x}))"),
    "gelu": (
        "gelu({x})",
        "0.5 * {x} * (1 + torch.erf({x} / 2**0.5))",
        "0.5 * {x} * torch.erfc(-{x} / 2**0.5)",
    ),
    "gelu_tanh": (
        'gelu({x}, approximate="tanh")',
        "0.5 * {x} * (1 + torch.tanh(0.7978845608028654 * ({x} + 0.044715 * {x} ** 3)))",
    ),
    "relu": ("relu({x})", "torch.relu({x})"),
    "relu_squared": ("relu({x}).square()", "relu({x}) ** 2"),
    "sigmoid": (
        "torch.sigmoid({x})",
        "1 / (1 + torch.exp(-{x}))",
        "glu(torch.cat([torch.ones_like({x}), {x}], -1), -1)",
    ),
}
"""Activations that the op knows, each in its spellings. Not the identity: what has no activation is read only
where gate and up are products without loops."""

VERBS = {
    "einsum": "",
    "matmul": "",
    "bmm": "",
    "einops": "",
    "mul_sum": "",
    "vmap": "",
    "baddbmm": "",
    "convolution": "",
    "linear": "hge",
    "tensordot": "hge",
    "addmm": "hge",
}
"""The ways to write a product of two tensors, and which axes they cannot have in both and in the result. A
linear is a module's where the weight is."""

STORAGES = ("stacked", "list", "flat", "slice", "linear")
"""A parameter for each weight; a ParameterList; one flat parameter for all; a part of a larger parameter;
the weight of an nn.Linear."""

FUSED = ("", "weight", "product", "interleaved")
"""Whether gate and up are one weight, and what is cut in two: the weight, or the product; or every second."""

GROUPINGS = ("unflatten", "repeat", "expand", "divide")
"""How a head of the queries gets the weights of its group; the last in a loop over heads."""

ROUTINGS = ("hidden", "activated", "up", "result", "einsum")
"""What the weights of the sub-networks are multiplied with; the values too, see ROUTED_VALUES."""

ROUTED_VALUES = "values"
"""The weights of the sub-networks on the values: left alone, as the values then differ for each token."""

ROUTERS = ("linear", "sigmoid", "softmax", "beside")
"""What the weights of the sub-networks are; the last is a column of the product that gate and up are of."""

RANK = 2
"""Of an update of low rank."""

HEADS_COLLECTED = ("stack", "cat", "buffer")
NETWORKS_COLLECTED = ("plus", "in_place", "list", "stack")

FLOWS = {
    "one": ("{a}", 1),
    "residual": ("x + {a}", 1),
    "norm": ("x + {a_of_norm}", 1),
    "projected": ("linear({a}, self.w_out)", 1),
    "biased": ("{a} + self.bias_out", 1),
    "summed": ("{a} + {b}", 1),
    "parallel": ("{a}, {b}", 2),
    "sequence": ("{b_of_a}", 2),
    "broken": ("{b_of_broken_a}", 2),
    "again": ("{a_of_a}", 2),
    "same_weights": ("{a}, {a_of_norm}", 2),
}
"""What surrounds feed-forwards a and b, and how many fused calls there are: two of the same input, when
their results are added, are one with the sub-networks of both."""

MODES = ("", "checkpoint", "autocast", "no_grad", "function")
"""What a feed-forward is in, or behind: of functions of autograd's, one is before it and one is behind."""

DETOURS = {
    "clone": "{x}.clone()",
    "contiguous": "{x}.contiguous()",
    "transpose": "{x}.transpose(0, -1).transpose(0, -1)",
    "copied_transpose": "{x}.mT.contiguous().mT",
    "unsqueeze": "{x}.unsqueeze(1).squeeze(1)",
    "view": "{x}.reshape({x}.shape)",
    "flatten": "{x}.flatten(0, 1).unflatten(0, {x}.shape[:2])",
    "wide": "{x}.to(wide).to({x}.dtype)",
    "negative": "-(-{x})",
    "slice": "{x}[:, :{x}.shape[1]]",
    "repeat": "{x}.repeat(*[1] * {x}.dim())",
    "split": "torch.cat({x}.split([1, {x}.shape[1] - 1], 1), 1)",
    "subtracted": "-(0 - {x})",
    "multiplied": "{x} * torch.ones(1, dtype={x}.dtype)",
    "multiplied_by_full": "{x} * torch.full((1,), 1.0, dtype={x}.dtype)",
    "multiplied_by_filled": "{x} * torch.full_like({x}, 1.0)",
    "multiplied_by_a_rounded": "{x} * torch.full((), 0.1, dtype=torch.bfloat16) / 0.10009765625",
    "multiplied_by_new": "{x} * {x}.new_ones(1) * {x}.new_full((1,), 1.0)",
    "added": "{x} + torch.zeros(1, dtype={x}.dtype)",
    "added_zeroed": "{x} + torch.empty_like({x}).zero_()",
    "multiplied_and_added": "torch.addcmul(torch.zeros_like({x}), {x}, torch.ones_like({x}))",
}
"""Ways to write a value that change nothing."""

POINTS = ("q", "k", "u", "v", "r", "gate", "up", "hidden", "y", "out")
"""The values of a feed-forward that another expression can stand for: y is of one turn of the loops."""


@dataclass(frozen=True)
class Spec:
    """What is computed, sizes by the letters of LETTERS: the first is the simplest.

    Factors are of each channel, of a score before its bias, and of the hidden value. Numbers are added to
    the scores, after their biases; a value bias to the product with the values. An update of low rank is
    added to the weight that ``low_rank`` names. In a bank all heads have the same input; heads that are
    ``summed`` have one result. Where there is a ``phi``, that is the activation, an expression of {gate}, or
    the hidden value, one of {gate} and {up}.
    """

    batch: int = 2
    length: int = 3
    heads: int = 1
    group: int = 1
    networks: int = 1
    width: int = 3
    head_dim: int = 2
    out_dim: int = 2
    gated: bool = True
    routed: bool = False
    gate_bias: bool = False
    up_bias: bool = False
    gate_number: float = 0.0
    up_number: float = 0.0
    gate_factor: bool = False
    up_factor: bool = False
    hidden_factor: bool = False
    value_bias: bool = False
    low_rank: str = ""
    bank: bool = False
    summed: bool = False
    activation: str = "silu"
    phi: str = ""
    gate_scale: float = 1.0
    scale: float = 1.0
    dtype: str = "float64"

    @property
    def weights(self) -> tuple[str, ...]:
        """The weights there are, and the letters of each."""
        return ("k", "u", "v") if self.gated else ("k", "v")

    @property
    def is_joint(self) -> bool:
        """Whether the hidden value is no product of an activation and the up score."""
        return "{up}" in self.phi

    @property
    def channels(self) -> int:
        """How many channels the input has."""
        return self.head_dim * (1 if self.bank else self.heads * self.group)

    @property
    def results(self) -> int:
        """How many channels the result has."""
        return self.out_dim * (1 if self.summed else self.heads * self.group)


@dataclass(frozen=True)
class Writing:
    """How it is written. A layout is an order of all letters, of which a tensor has some."""

    loops: str = ""
    layout_q: str = LETTERS
    layout_r: str = LETTERS
    layout_k: str = LETTERS
    layout_u: str = LETTERS
    layout_v: str = LETTERS
    layout_hidden: str = LETTERS
    layout_y: str = LETTERS
    verb_gate: str = "einsum"
    verb_up: str = "einsum"
    verb_down: str = "einsum"
    spelling: int = 0
    storage: str = "stacked"
    fused: str = ""
    grouping: str = "unflatten"
    routing: str = "hidden"
    router: str = "linear"
    heads_collected: str = "stack"
    networks_collected: str = "plus"
    up_first: bool = False
    in_place: bool = False
    detours: tuple[tuple[str, str], ...] = ()
    """Points and the expressions there, with {x} for the value, and {h} for the number of its dimension h."""
    flow: str = "one"
    mode: str = ""


@dataclass(frozen=True)
class Claims:
    """What is so of a program, whatever its text is.

    Attributes:
        layers: how many fused calls its forward is, where all of it is rewritten.
        spec: what each feed-forward computes; None where nobody says.
        together: of how many feed-forwards one call has the sub-networks.
        checkpointed: whether all of it runs again in the backward.
        rounds: the dtype that it rounds to on the way.
        mutant: whether it is another function than the formula, or of other operands.
    """

    layers: int
    spec: Spec | None = None
    together: int = 1
    checkpointed: bool = False
    rounds: str = "float64"
    mutant: bool = False
