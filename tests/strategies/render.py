"""A program as the text of a module, ``make()`` of which gives a model and its inputs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from tests.strategies.choices import ACTIVATIONS, FLOWS, Spec, Writing

# -- values and products of them -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Value:
    """An expression that another can be made of by a dot or a bracket, and the letters of its dimensions.

    Of a list, the first letter counts its entries. Where ``shared``, as many heads as that use one entry.
    Where ``module``, it is all of the weight of that module.
    """

    text: str
    letters: str
    listed: bool = False
    shared: int = 1
    module: str = ""

    def at(self, letter: str) -> Value:
        """The part in a turn of a loop, of which the letter is the variable."""
        if letter not in self.letters:
            return self
        dim = self.letters.index(letter)
        if self.listed and dim:
            return self.whole().at(letter)
        number = f"{letter} // {self.shared}" if self.shared > 1 and letter == "h" else letter
        text = f"{self.text}[{':, ' * dim}{number}]"
        return Value(text, self.letters.replace(letter, ""), shared=self.shared)

    def whole(self) -> Value:
        """As one tensor."""
        return replace(self, text=f"torch.stack([*{self.text}])", listed=False) if self.listed else self

    def ordered(self, letters: str) -> Value:
        if self.letters == letters:
            return self
        order = ", ".join(str(self.letters.index(letter)) for letter in letters)
        return Value(f"{self.text}.permute({order})", letters)

    def aligned(self, letters: str) -> str:
        """With a dimension for each of some letters, to be broadcast."""
        have = "".join(letter for letter in letters if letter in self.letters)
        text = self.ordered(have).text
        if have == letters[len(letters) - len(have) :]:
            return text
        return f"{text}[{', '.join(':' if letter in have else 'None' for letter in letters)}]"

    def grouped(self, groups: Sequence[str], size: Sizes) -> str:
        """With a dimension for each group of letters."""
        text = self.ordered("".join(groups)).text
        if all(len(group) == 1 for group in groups):
            return text
        return f"{text}.reshape({', '.join(map(size, groups))})"


class Sizes(dict[str, str]):
    """The text of the size of each letter, and of groups of them."""

    def __call__(self, letters: str) -> str:
        numbers = [self[letter] for letter in letters if self[letter].isdigit()]
        names = [self[letter] for letter in letters if not self[letter].isdigit()]
        if numbers or not names:
            names.append(str(math.prod(map(int, numbers))))
        return " * ".join(names)

    def shape(self, letters: str) -> str:
        return ", ".join(map(self, letters))


def product(verb: str, a: Value, b: Value, to: str, size: Sizes) -> Value:
    """The product of two tensors, summed over the letters that both have and the result has not."""
    batch = "".join(x for x in to if x in a.letters and x in b.letters)
    inner = "".join(x for x in a.letters if x in b.letters and x not in to)
    rows = "".join(x for x in a.letters if x not in b.letters)
    columns = "".join(x for x in b.letters if x not in a.letters)

    def shaped(text: str, groups: Sequence[str]) -> Value:
        """A result of these groups of letters."""
        letters = "".join(groups)
        ungrouped = text if all(len(g) == 1 for g in groups) else f"{text}.reshape({size.shape(letters)})"
        return Value(ungrouped, letters).ordered(to)

    if verb == "einsum":
        return Value(f'torch.einsum("{a.letters},{b.letters}->{to}", {a.text}, {b.text})', to)
    if verb == "einops":
        spaced = f"{' '.join(a.letters)}, {' '.join(b.letters)} -> {' '.join(to)}"
        return Value(f'einops.einsum({a.text}, {b.text}, "{spaced}")', to)
    if verb == "mul_sum":
        everything = to + inner
        dims = ", ".join(str(-1 - i) for i in range(len(inner)))
        return Value(f"({a.aligned(everything)} * {b.aligned(everything)}).sum(({dims},))", to)
    if verb == "linear" and b.module and inner == b.letters[-1]:
        return shaped(f"{b.module}({a.grouped([*rows, inner], size)})", [*rows, columns])
    if verb == "linear":
        assert not batch
        text = f"linear({a.grouped([*rows, inner], size)}, {b.grouped([columns, inner], size)})"
        return shaped(text, [*rows, columns])
    if verb == "tensordot":
        assert not batch
        dims_a, dims_b = ([v.letters.index(x) for x in inner] for v in (a, b))
        text = f"torch.tensordot({a.text}, {b.text}, dims=({dims_a}, {dims_b}))"
        return Value(text, rows + columns).ordered(to)
    if verb == "vmap" and batch:
        letter, x, y = batch[0], replace(a, text="x"), replace(b, text="y")
        bare = [Value(v.text, v.letters.replace(letter, "")) for v in (x, y)]
        body = product("einsum", bare[0], bare[1], to.replace(letter, ""), size).text
        dims_in = f"({a.letters.index(letter)}, {b.letters.index(letter)})"
        mapped = f"torch.vmap(lambda x, y: {body}, {dims_in}, {to.index(letter)})"
        return Value(f"{mapped}({a.text}, {b.text})", to)
    if verb == "convolution":
        first, rest = rows[:1], rows[1:]
        left, right = a.grouped([first, batch + inner, rest], size), b.grouped([batch + columns, inner], size)
        groups = f", groups={size(batch)}" if batch else ""
        return shaped(f"conv1d({left}, {right}.unsqueeze(-1){groups})", [first, batch + columns, rest])
    verb = "matmul" if verb == "vmap" else verb  # without a batch
    flat = [*batch] if verb == "matmul" else [batch] if verb in ("bmm", "baddbmm") else []
    left, right = a.grouped([*flat, rows, inner], size), b.grouped([*flat, inner, columns], size)
    if verb == "matmul":
        return shaped(f"({left} @ {right})", [*flat, rows, columns])
    added = f"{left}.new_zeros(1), " if verb in ("addmm", "baddbmm") else ""
    return shaped(f"torch.{verb}({added}{left}, {right})", [*flat, rows, columns])


# -- the feed-forward ---------------------------------------------------------------------------------------


@dataclass
class Lines:
    """Lines of text, indented."""

    depth: int = 0
    text: list[str] = field(default_factory=list)

    def __call__(self, line: str) -> None:
        self.text.append("    " * self.depth + line)


Changes = Iterable[tuple[str, str]]
"""Points and the expressions there."""


class Renderer:
    """Renders a feed-forward; ``applied`` are the changes that found their place."""

    def __init__(self, spec: Spec, writing: Writing, changes: Changes = ()) -> None:
        self.spec, self.writing = spec, writing
        self.changes = [*writing.detours, *changes]
        self.applied: set[tuple[str, str]] = set()
        shares = writing.grouping != "unflatten"  # then h are all heads, of queries and weights
        heads = spec.heads * spec.group if shares else spec.heads
        inside = {"h": heads, "g": 1 if shares else spec.group, "e": spec.networks, "f": spec.width}
        inside |= {"d": spec.head_dim, "o": spec.out_dim, "p": 2 * spec.width}
        self.size = Sizes({"b": "B", "t": "T", **{letter: str(n) for letter, n in inside.items()}})
        single = [letter for letter in "hge" if self.size[letter] == "1"]  # dimensions that nobody writes
        self.present = "".join(letter for letter in "bthgefdop" if letter not in single)
        self.init, self.forward = Lines(2), Lines(2)
        self.operands: dict[str, Value] = {}  # as they are before anything is computed
        self.flat = 0  # entries of the one parameter of all weights

    # Helpers.

    def layout(self, order: str, letters: Iterable[str]) -> str:
        """Those of some letters that are dimensions, in an order."""
        return "".join(x for x in order if x in letters and x in self.present)

    def let(self, name: str, value: Value, at: str = "") -> Value:
        """A value with a name, changed as there are changes at it: at the point of its name, or another."""
        if value.text != name:
            self.forward(f"{name} = {value.text}")
        value = replace(value, text=name, module="")
        for point, change in self.changes:
            if point != (at or name) or len(value.letters) < 2:
                continue
            dims = {letter: value.letters.index(letter) for letter in value.letters}
            try:
                text = change.format(x=name, E=self.spec.networks, F=self.spec.width, **dims)
            except KeyError:  # it has no such dimension here
                continue
            self.applied.add((point, change))
            self.forward(f"{name} = {text}")
        return value

    def changed(self, point: str) -> bool:
        """Whether there are changes at a point that have not found their place."""
        return any(change[0] == point and change not in self.applied for change in self.changes)

    def update(self, value: Value, operator: str, operand: str, saved: bool = False) -> None:
        """Change a named value, in place or not; not where autograd has saved it."""
        if self.writing.in_place and not saved:
            self.forward(f"{value.text} {operator}= {operand}")
        else:
            self.forward(f"{value.text} = {value.text} {operator} {operand}")

    # Weights.

    def weight(self, name: str, letters: str, fan: str) -> Value:
        """Make a weight of some letters, stored as the writing has it."""
        bare = Sizes({**self.size, "h": str(self.spec.heads)})
        numbers = [int(bare[letter]) for letter in letters]
        scaled = f"* {bare(fan)} ** -0.5"
        storage, init = self.writing.storage, self.init
        if storage == "list" and letters[0] in "he" and len(letters) > 1:
            one = f"torch.randn({', '.join(map(str, numbers[1:]))}) {scaled}"
            init(f"self.{name} = nn.ParameterList({one} for _ in range({numbers[0]}))")
            return Value(f"self.{name}", letters, listed=True)
        if storage == "linear" and len(letters) > 1:
            rows, columns = math.prod(numbers[:-1]), numbers[-1]
            init(f"self.{name} = nn.Linear({columns}, {rows}, bias=False)")
            text = f"self.{name}.weight"
            viewed = text if len(letters) == 2 else f"{text}.view({bare.shape(letters)})"
            return Value(viewed, letters, module=f"self.{name}")
        if storage == "slice":
            larger = ", ".join(map(str, [*numbers[:-1], numbers[-1] + 3]))
            init(f"self.{name} = nn.Parameter(torch.randn({larger}) {scaled})")
            return Value(f"self.{name}[..., 2:{numbers[-1] + 2}]", letters)
        if storage == "flat":
            start, self.flat = self.flat, self.flat + math.prod(numbers)
            return Value(f"self.weights[{start}:{self.flat}].view({bare.shape(letters)})", letters)
        init(f"self.{name} = nn.Parameter(torch.randn({bare.shape(letters)}) {scaled})")
        return Value(f"self.{name}", letters)

    def shared(self, value: Value) -> Value:
        """A weight for all heads that share it."""
        group, grouping = self.spec.group, self.writing.grouping
        if group == 1 or grouping == "unflatten" or "h" not in value.letters:
            return value
        if grouping == "divide":
            return replace(value, shared=group)
        value = value.whole()
        dim = value.letters.index("h")
        if grouping == "repeat":
            return replace(value, text=f"{value.text}.repeat_interleave({group}, {dim})", module="")
        sizes = ", ".join(["-1"] * (dim + 1) + [str(group)] + ["-1"] * (len(value.letters) - dim - 1))
        expanded = f"{value.text}.unsqueeze({dim + 1}).expand({sizes}).flatten({dim}, {dim + 1})"
        return replace(value, text=expanded, module="")

    def weights(self) -> dict[str, Value]:
        """All weights and biases."""
        spec, writing = self.spec, self.writing
        layouts = {"k": writing.layout_k, "u": writing.layout_u, "v": writing.layout_v}
        letters = {"k": "hefd", "u": "hefd", "v": "hefo"}
        found: dict[str, Value] = {}
        for name in spec.weights:
            if writing.fused and name != "v":
                continue
            layout = self.layout(layouts[name], letters[name])
            found[name] = self.weight(name, layout, "d" if name != "v" else "ef")
        if writing.fused:
            layout = self.layout(writing.layout_k, "hefd").replace("f", "p")
            found["gate_up"] = self.weight("gate_up", layout, "d")
        for name in ("gate_bias", "up_bias"):
            if getattr(spec, name):
                found[name] = self.weight(name, self.layout(writing.layout_k, "hef"), "d")
        if self.flat:
            self.init(f"self.weights = nn.Parameter(torch.randn({self.flat}) * 0.5)")
        self.operands |= {name: value.whole() for name, value in found.items()}
        found = {name: self.shared(value) for name, value in found.items()}
        if writing.fused == "weight":
            both = found.pop("gate_up").whole()
            dim = both.letters.index("p")
            self.forward(f"keys, ups = {both.text}.chunk(2, {dim})")
            names = {"k": "keys", "u": "ups"}
            letters = both.letters.replace("p", "f")
            found |= {
                name: replace(both, text=whole, letters=letters, module="") for name, whole in names.items()
            }
        for name, whole in (("k", "keys"), ("u", "ups"), ("v", "values")):
            if name in found and not found[name].listed and self.changed(name):
                found[name] = self.let(whole, found[name], name)
        return found

    def revealed(self) -> list[str]:
        """A method that gives the operands of the formula."""
        forward = Lines(2)
        forward("B, T = x.shape[:2]")
        found = dict(self.operands)
        if "gate_up" in found:
            both = found.pop("gate_up")
            dim, letters = both.letters.index("p"), both.letters.replace("p", "f")
            for number, name in enumerate("ku"):
                part = f"{both.text}.chunk(2, {dim})[{number}]"
                if self.writing.fused == "interleaved":
                    part = f"{both.text}[{':, ' * dim}{number}::2]"
                found[name] = Value(part, letters)
        weights = {"k": "hefd", "u": "hefd", "v": "hefo", "gate_bias": "hef", "up_bias": "hef"}
        for name, value in found.items():
            letters = {"q": "bthgd", "r": "bthge"}.get(name) or weights[name]
            text = value.ordered("".join(x for x in letters if x in value.letters)).text
            text += f"[{', '.join(':' if x in value.letters else 'None' for x in letters)}]"
            forward(f"{name} = {text}{'.flatten(2, 3)' if 'g' in letters else ''}")
        forward(f"return dict({', '.join(f'{name}={name}' for name in found)})")
        return ["", "    def operands(self, x):", *forward.text]

    # The computation.

    def render(self) -> str:
        """The class of the feed-forward."""
        spec, writing = self.spec, self.writing
        heads, group = self.size["h"], self.size["g"]
        init, forward = self.init, self.forward
        forward("B, T = x.shape[:2]")
        letters = self.layout("bthgd", "bthgd")
        values = {"q": Value(f"x.view({self.size.shape(letters)})", letters)}
        self.operands["q"] = values["q"]
        values["q"] = self.let("q", values["q"].ordered(self.layout(writing.layout_q, "bthgd")))
        if spec.routed:
            count = int(heads) * int(group) * spec.networks
            init(f"self.route = nn.Linear({spec.heads * spec.group * spec.head_dim}, {count})")
            letters = self.layout("bthge", "bthge")
            router = {
                "linear": "{r}",
                "sigmoid": "torch.sigmoid({r})",
                "softmax": "torch.softmax({r}, -1)",
            }[writing.router]
            text = router.format(r=f"self.route(x).view({self.size.shape(letters)})")
            self.operands["r"] = Value(text, letters)
            values["r"] = self.let("r", Value(text, letters).ordered(self.layout(writing.layout_r, "bthge")))
        values |= self.weights()
        out = self.loop(writing.loops, values)
        if spec.scale != 1:
            self.update(out, "*", str(spec.scale))
        out = self.let("out", out)
        letters = self.layout("bthgo", "bthgo")
        forward(f"return {out.ordered(letters).text}.reshape(B, T, {self.size('hgo')})")
        return "\n".join(
            [
                "class FeedForward(nn.Module):",
                "    def __init__(self):",
                "        super().__init__()",
                *self.init.text,
                "",
                "    def forward(self, x):",
                *forward.text,
            ]
        )

    def loop(self, loops: str, values: dict[str, Value]) -> Value:
        """The sum over all sub-networks of all heads, in loops over some letters."""
        if not loops:
            return self.turn({name: value.whole() for name, value in values.items()})
        letter, forward = loops[0], self.forward
        name = "out" if loops == self.writing.loops else "part"
        how = self.writing.heads_collected if letter == "h" else self.writing.networks_collected
        looped = self.writing.loops[: -len(loops)] if loops != self.writing.loops else ""
        inner = self.layout(self.writing.layout_y, "".join(x for x in "bthgo" if x not in looped + letter))
        own = self.layout(self.writing.layout_y, "".join(x for x in "bthgo" if x not in looped))
        if letter == "e" and how == "plus":
            forward(f"{name} = 0")
        elif how in ("in_place", "buffer"):
            forward(f"{name} = x.new_zeros({self.size.shape(own)})")
        else:
            forward(f"{name}s = []")
        forward(f"for {letter} in range({self.size[letter]}):")
        forward.depth += 1
        y = self.loop(loops[1:], {key: value.at(letter) for key, value in values.items()}).ordered(inner)
        dim = own.index("h") if letter == "h" else 0
        if how == "plus":
            forward(f"{name} = {name} + {y.text}")
        elif how == "in_place":
            forward(f"{name} += {y.text}")
        elif how == "buffer":
            forward(f"{name}[{':, ' * dim}h] = {y.text}")
        elif how == "cat":
            forward(f"{name}s.append({y.text}.unsqueeze({dim}))")
        else:
            forward(f"{name}s.append({y.text})")
        forward.depth -= 1
        if how == "cat":
            forward(f"{name} = torch.cat({name}s, {dim})")
        elif how == "list":
            forward(f"{name} = sum({name}s)")
        elif how == "stack":
            forward(f"{name} = torch.stack({name}s, {dim})" + (".sum(0)" if letter == "e" else ""))
        return Value(name, own)

    def turn(self, values: dict[str, Value]) -> Value:
        """One turn of all loops."""
        spec, writing = self.spec, self.writing
        here = [x for x in "bthgefdo" if x not in writing.loops]
        hidden = self.layout(writing.layout_hidden, "".join(x for x in here if x in "bthgef"))
        for name in ("k", "u", "v"):
            if name in values and self.changed(name):
                values[name] = self.let(name, values[name])
        if "gate_up" in values:
            wide = hidden.replace("f", "p")
            both = product(writing.verb_gate, values["q"], values["gate_up"], wide, self.size).text
            dim = hidden.index("f")
            self.forward(f"both = {both}")
            if writing.fused == "interleaved":
                before = ":, " * dim
                gate, up = (f"both[{before}{start}::2]" for start in (0, 1))
            else:
                self.forward(f"gate, up = both.chunk(2, {dim})")
                gate, up = "gate", "up"
            both_of = {"gate": Value(gate, hidden), "up": Value(up, hidden)}
        else:
            verbs = {"gate": ("k", writing.verb_gate), "up": ("u", writing.verb_up)}
            both_of = {
                name: product(verb, values["q"], values[weight], hidden, self.size)
                for name, (weight, verb) in verbs.items()
                if weight in values
            }
        for name in sorted(both_of, reverse=writing.up_first):
            value = both_of[name]
            if value.text != name:
                self.forward(f"{name} = {value.text}")
            value = replace(value, text=name)
            if name == "gate" and spec.gate_scale != 1:
                self.update(value, "*", str(spec.gate_scale))
            if f"{name}_bias" in values:
                self.update(value, "+", values[f"{name}_bias"].whole().aligned(hidden))
            self.let(name, value)
        return self.down(hidden, values)

    def down(self, hidden: str, values: dict[str, Value]) -> Value:
        """The activation, and its product with the values."""
        spec, writing, forward = self.spec, self.writing, self.forward
        act = self.act("gate")
        r, routing = values.get("r"), writing.routing if spec.routed else ""
        if r is not None and routing == "activated":
            act = f"({act}) * {r.aligned(hidden)}"
        if r is not None and routing == "up":
            self.update(Value("up", hidden), "*", r.aligned(hidden))
        gated = f"({act}) * up" if " " in act else f"{act} * up"
        if writing.up_first:
            gated = f"up * ({act})" if " " in act else f"up * {act}"
        forward(f"hidden = {gated if spec.gated else act}")
        value = Value("hidden", hidden)
        if r is not None and routing == "hidden":
            self.update(value, "*", r.aligned(hidden), saved=not spec.gated)
        value = self.let("hidden", value)
        v = values["v"]
        kept = "".join(x for x in writing.layout_y if (x in hidden and x != "f") or x == "o")
        y = self.layout(kept, kept.replace("e", ""))
        if r is not None and routing == "einsum":
            equation = f"{hidden},{v.letters},{r.letters}->{y}"
            return self.let("y", Value(f'torch.einsum("{equation}", hidden, {v.text}, {r.text})', y))
        if r is not None and routing == "values":
            routed = self.layout(writing.layout_hidden, r.letters + "".join(set(v.letters) - set(r.letters)))
            forward(f"routed = {v.aligned(routed)} * {r.aligned(routed)}")
            return self.let("y", product(writing.verb_down, value, Value("routed", routed), y, self.size))
        if r is not None and routing == "result":
            each = product(writing.verb_down, value, v, kept, self.size)
            forward(f"y = {each.text}")
            self.update(Value("y", kept), "*", r.aligned(kept))
            if "e" in kept:
                return self.let("y", Value(f"y.sum({kept.index('e')})", y))
            return self.let("y", Value("y", y))
        return self.let("y", product(writing.verb_down, value, v, y, self.size))

    def act(self, x: str) -> str:
        spellings = ACTIVATIONS[self.spec.activation]
        return spellings[self.writing.spelling % len(spellings)].format(x=x)


# -- the module ---------------------------------------------------------------------------------------------

HEAD = """\
import einops
import torch
from torch import nn
from torch.nn.functional import conv1d, gelu, glu, layer_norm, linear, relu, silu
from torch.utils.checkpoint import checkpoint

dtype = torch.{dtype}
wide = torch.promote_types(dtype, torch.float32)
"""

BROKEN = '''\
def broken(x):
    """A value behind a graph break."""
    torch._dynamo.graph_break()
    return x
'''

SCALED = '''\
class Scaled(torch.autograd.Function):
    """A factor that its backward knows as well."""

    @staticmethod
    def forward(ctx, x):
        return 0.5 * x

    @staticmethod
    def backward(ctx, grad):
        return 0.5 * grad
'''

MAKE = """\
def make():
    torch.manual_seed(0)
    model = Model().to(dtype)
    return model, (torch.randn({shape}).to(dtype).requires_grad_(),)
"""


def render(
    spec: Spec, writing: Writing, changes: Changes = (), reveal: bool = False
) -> tuple[str, set[tuple[str, str]]]:
    """The text of a program, and which of the changes found their place.

    With ``reveal``, a feed-forward has a method that gives the operands of the formula.
    """
    renderer = Renderer(spec, writing, changes)
    layer = renderer.render()
    if reveal:
        layer = "\n".join([layer, *renderer.revealed()])
    channels = spec.heads * spec.group * spec.head_dim
    results = spec.heads * spec.group * spec.out_dim
    made, lines = Lines(2), Lines(2)
    flow, _ = FLOWS[writing.flow]
    made("self.a = FeedForward()")
    if "{b" in flow:
        made("self.b = FeedForward()")
    if "w_out" in flow:
        made(f"self.w_out = nn.Parameter(torch.randn(4, {results}))")
    if "bias_out" in flow:
        made(f"self.bias_out = nn.Parameter(torch.randn({results}))")

    def call(ffn: str, x: str) -> str:
        if writing.mode == "checkpoint":
            return f"checkpoint(self.{ffn}, {x}, use_reentrant=False)"
        if writing.mode == "function":
            return f"Scaled.apply(self.{ffn}(Scaled.apply({x})))"
        return f"self.{ffn}({x})"

    if writing.mode in ("autocast", "no_grad"):
        context = {"autocast": 'torch.autocast("cpu", torch.bfloat16)', "no_grad": "torch.no_grad()"}
        lines(f"with {context[writing.mode]}:")
        lines.depth += 1
    a = call("a", "x")
    norm = call("a", f"layer_norm(x, ({channels},))")
    chained = {"b_of_a": call("b", a), "b_of_broken_a": call("b", f"broken({a})"), "a_of_a": call("a", a)}
    result = flow.format(a=a, b=call("b", "x"), a_of_norm=norm, **chained)
    lines(f"return {result}")
    model = [
        "class Model(nn.Module):",
        "    def __init__(self):",
        "        super().__init__()",
        *made.text,
        "",
        "    def forward(self, x):",
        *lines.text,
        "",
    ]
    parts = [HEAD.format(dtype=spec.dtype), layer + "\n", "\n".join(model)]
    if writing.mode == "function":
        parts.insert(1, SCALED)
    if "broken" in flow:
        parts.insert(1, BROKEN)
    parts.append(MAKE.format(shape=f"{spec.batch}, {spec.length}, {channels}"))
    return "\n\n".join(parts), renderer.applied
