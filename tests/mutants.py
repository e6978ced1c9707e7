"""Changes that make a right program a subtly different one, each an expression in the place of a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of a right program.

    Attributes:
        name: what it does.
        kind: what is wrong with it, one of KINDS.
        changes: points of the program and the expressions there, as in the writing's detours.
        still: whether it is still the formula, of other operands, and may be rewritten.
    """

    name: str
    kind: str
    changes: tuple[tuple[str, str], ...]
    still: bool = False


def at(point: str, change: str) -> tuple[tuple[str, str], ...]:
    return ((point, change),)


FUNCTIONS = {
    **{name: f"nn.functional.{name}({{x}})" for name in ("celu", "elu", "leaky_relu", "mish", "softplus")},
    **{name: f"nn.functional.{name}({{x}})" for name in ("hardsigmoid", "hardswish", "hardtanh")},
    **{name: f"torch.{name}({{x}})" for name in ("cos", "erfc", "exp", "sin", "tanh")},
    "threshold": "nn.functional.threshold({x}, 0.1, 0.0)",
    "clamp": "{x}.clamp(-0.5, 0.5)",
    "clamp_min": "{x}.clamp_min(-0.5)",
    "clamp_max": "{x}.clamp_max(0.5)",
    "abs": "{x}.abs()",
    "log": "torch.log({x}.abs() + 0.5)",
    "sqrt": "torch.sqrt({x}.abs() + 0.5)",
    "rsqrt": "torch.rsqrt({x}.abs() + 0.5)",
    "reciprocal": "torch.reciprocal({x}.abs() + 0.5)",
}
"""Functions of one number that the reader knows, and that are no activations of the op."""

MUTANTS = [
    # Axes: a neighbour's entry, or a sum in the place of an entry.
    Mutant("gate of the token before", "axis", at("gate", "{x}.roll(1, {t})")),
    Mutant("hidden of the batch entry before", "axis", at("hidden", "{x}.roll(1, {b})")),
    Mutant("gate is its mean over the width", "axis", at("gate", "{x}.mean({f}, True).expand_as({x})")),
    Mutant("up is its sum over tokens", "axis", at("up", "{x}.sum({t}, True).expand_as({x})")),
    Mutant("hidden is summed over heads", "axis", at("hidden", "{x}.sum({h}, True).expand_as({x})")),
    Mutant("query of the token before", "axis", at("q", "{x}.roll(1, {t})"), still=True),
    # Order.
    Mutant("up of the next head", "order", at("up", "{x}.roll(1, {h})")),
    Mutant("heads of hidden in the opposite order", "order", at("hidden", "{x}.flip({h})")),
    Mutant("sub-networks of hidden in another order", "order", at("hidden", "{x}.roll(1, {e})")),
    Mutant("width of hidden in the opposite order", "order", at("hidden", "{x}.flip({f})")),
    Mutant("keys of the next head", "order", at("k", "{x}.roll(1, {h})"), still=True),
    Mutant("values in the opposite order", "order", at("v", "{x}.flip({f})"), still=True),
    Mutant("r of the next sub-network", "order", at("r", "{x}.roll(1, {e})"), still=True),
    # Signs and numbers.
    Mutant("hidden is negative", "sign", at("hidden", "-{x}"), still=True),
    Mutant("gate is negative", "sign", at("gate", "-{x}"), still=True),
    Mutant("absolute hidden", "sign", at("hidden", "{x}.abs()")),
    Mutant("up plus one", "sign", at("up", "{x} + 1")),
    Mutant("a scale less", "sign", at("y", "{x} / 3"), still=True),
    Mutant("a scale of the gate", "sign", at("gate", "{x} * 1.25"), still=True),
    # Another activation.
    *(Mutant(f"gate through {name}", "activation", at("gate", text)) for name, text in FUNCTIONS.items()),
    Mutant("hidden is activated again", "activation", at("hidden", "relu({x})")),
    Mutant("up is activated", "activation", at("up", "silu({x})")),
    Mutant("hidden is rounded", "activation", at("hidden", "{x}.round()")),
    Mutant("hidden is normalised", "activation", at("hidden", "layer_norm({x}, {x}.shape[-1:])")),
    # Barriers of gradients.
    Mutant("detached gate", "gradient", at("gate", "{x}.detach()")),
    Mutant("detached up", "gradient", at("up", "{x}.detach()")),
    Mutant("detached hidden", "gradient", at("hidden", "{x}.detach()")),
    Mutant("half of the gradient", "gradient", at("hidden", "0.5 * {x} + 0.5 * {x}.detach()")),
    Mutant("detached keys", "gradient", at("k", "{x}.detach()"), still=True),
    Mutant("detached query", "gradient", at("q", "{x}.detach()"), still=True),
    Mutant("detached result", "gradient", at("out", "{x}.detach() + q.sum()"), still=True),
    # The wide activation is seen from outside.
    Mutant("hidden escapes", "escape", (("hidden", "(seen := {x})"), ("out", "{x} + seen.mean()"))),
    Mutant("gate escapes", "escape", (("gate", "(seen := {x})"), ("out", "{x} + seen.mean()"))),
    Mutant(
        "a detached up escapes", "escape", (("up", "(seen := {x})"), ("out", "{x} + seen.detach().mean()"))
    ),
    # Slices that are off by one.
    Mutant(
        "channels of hidden off by one",
        "slice",
        at("hidden", "{x}.narrow({f}, 1, {F} - 1).repeat_interleave(2, {f}).narrow({f}, 0, {F})"),
    ),
    Mutant(
        "a channel of the keys twice",
        "slice",
        at("k", "torch.cat([{x}.narrow({f}, 1, {F} - 1), {x}.narrow({f}, {F} - 1, 1)], {f})"),
        still=True,
    ),
    # Aliases: memory that is written to.
    Mutant(
        "hidden written into", "alias", at("hidden", "{x}.clone().index_fill_({f}, torch.tensor([0]), 1.0)")
    ),
    Mutant("gate and up share memory", "alias", (("q", "{x} * 1"), ("up", "{x} + 0 * q.mul_(2).sum()"))),
]
"""All changes. Those that are ``still`` the formula change the values of operands alone."""

KINDS = tuple(dict.fromkeys(mutant.kind for mutant in MUTANTS))
