"""A feed-forward as the text of a class, in any writing."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tests.strategies.choices import ACTIVATIONS, RANK, Spec, Writing
from tests.strategies.expressions import Sizes, Value, product


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
        beside = writing.router == "beside" and spec.routed
        inside |= {"d": spec.head_dim, "o": spec.out_dim, "p": 2 * spec.width + beside, "l": RANK}
        self.beside = beside
        self.size = Sizes({"b": "B", "t": "T", **{letter: str(n) for letter, n in inside.items()}})
        single = [letter for letter in "hge" if self.size[letter] == "1"]  # dimensions that nobody writes
        self.present = "".join(letter for letter in "bthgefdopl" if letter not in single)
        self.of_input = "btd" if spec.bank else "bthgd"
        self.of_result = "btgo" if spec.summed else "bthgo"
        self.init, self.forward = Lines(2), Lines(2)
        self.operands: dict[str, Value] = {}  # as they are before anything is computed
        self.flat = 0  # entries of the one parameter of all weights

    # Helpers.

    def layout(self, order: str, letters: Iterable[str]) -> str:
        """Those of some letters that are dimensions, in an order."""
        return "".join(x for x in dict.fromkeys(order + "l") if x in letters and x in self.present)

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
        factors = [n for n in ("gate_factor", "up_factor", "hidden_factor") if getattr(spec, n)]
        for name in factors:
            found[name] = self.weight(name, self.layout(writing.layout_k, "hef"), "d")
        if spec.value_bias:
            found["value_bias"] = self.weight("value_bias", self.layout(writing.layout_v, self.biased()), "d")
        if name := spec.low_rank:
            inside, outside = ("hefl", "helo") if name == "v" else ("held", "hefl")
            layout = layouts[name]
            found["inner"] = self.weight(
                "inner", self.layout(layout + "l", inside), "d" if name != "v" else "f"
            )
            found["outer"] = self.weight("outer", self.layout("l" + layout, outside), "l")
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

    def biased(self) -> str:
        """The letters of a bias of the values: those that it is added before the sum over."""
        spec, writing = self.spec, self.writing
        apart = spec.routed and writing.routing == "result"
        heads = "h" if apart or "h" in writing.loops or not spec.summed else ""
        return heads + ("e" if apart or "e" in writing.loops else "") + "o"

    # The computation.

    def render(self) -> str:
        """The class of the feed-forward."""
        spec, writing = self.spec, self.writing
        heads, group = self.size["h"], self.size["g"]
        init, forward = self.init, self.forward
        forward("B, T = x.shape[:2]")
        letters = self.layout("bthgd", self.of_input)
        values = {"q": Value(f"x.view({self.size.shape(letters)})", letters)}
        self.operands["q"] = values["q"]
        values["q"] = self.let("q", values["q"].ordered(self.layout(writing.layout_q, self.of_input)))
        if spec.routed and not self.beside:
            count = int(heads) * int(group) * spec.networks
            init(f"self.route = nn.Linear({spec.channels}, {count})")
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
        letters = self.layout("bthgo", self.of_result)
        forward(f"return {out.ordered(letters).text}.reshape(B, T, {self.size(self.of_result[2:])})")
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
        apart = letter == "h" and not self.spec.summed
        how = self.writing.heads_collected if apart else self.writing.networks_collected
        looped = self.writing.loops[: -len(loops)] if loops != self.writing.loops else ""
        inner = self.layout(
            self.writing.layout_y, "".join(x for x in self.of_result if x not in looped + letter)
        )
        own = self.layout(self.writing.layout_y, "".join(x for x in self.of_result if x not in looped))
        if how == "plus":
            forward(f"{name} = 0")
        elif how in ("in_place", "buffer"):
            forward(f"{name} = x.new_zeros({self.size.shape(own)})")
        else:
            forward(f"{name}s = []")
        forward(f"for {letter} in range({self.size[letter]}):")
        forward.depth += 1
        y = self.loop(loops[1:], {key: value.at(letter) for key, value in values.items()}).ordered(inner)
        dim = own.index("h") if apart else 0
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
            forward(f"{name} = torch.stack({name}s, {dim})" + ("" if apart else ".sum(0)"))
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
                self.forward(f"gate, up{', beside' * self.beside} = both.split({spec.width}, {dim})")
                gate, up = "gate", "up"
                if self.beside:
                    own = Value(f"torch.sigmoid(beside.squeeze({dim}))", hidden.replace("f", ""))
                    values["r"] = self.let("r", own.ordered(self.layout(writing.layout_r, own.letters)))
            both_of = {"gate": Value(gate, hidden), "up": Value(up, hidden)}
        else:
            verbs = {"gate": ("k", writing.verb_gate), "up": ("u", writing.verb_up)}
            both_of = {
                name: product(verb, values["q"], values[weight], hidden, self.size)
                for name, (weight, verb) in verbs.items()
                if weight in values
            }
            if spec.low_rank in ("k", "u"):
                name = "gate" if spec.low_rank == "k" else "up"
                both_of[name] = self.low_rank(both_of[name], values["q"], values, hidden)
        for name in sorted(both_of, reverse=writing.up_first):
            value = both_of[name]
            if value.text != name:
                self.forward(f"{name} = {value.text}")
            value = replace(value, text=name)
            if f"{name}_factor" in values:
                self.update(value, "*", values[f"{name}_factor"].whole().aligned(hidden), saved=True)
            if name == "gate" and spec.gate_scale != 1:
                self.update(value, "*", str(spec.gate_scale))
            if f"{name}_bias" in values:
                self.update(value, "+", values[f"{name}_bias"].whole().aligned(hidden))
            if number := getattr(spec, f"{name}_number"):
                self.update(value, "+", str(number))
            self.let(name, value)
        return self.down(hidden, values)

    def low_rank(self, full: Value, x: Value, values: dict[str, Value], to: str) -> Value:
        """A product with a weight, and that with its update of low rank."""
        inner, outer = (values[name].whole() for name in ("inner", "outer"))
        kept = "".join(
            letter for letter in x.letters if letter not in inner.letters or letter in outer.letters
        )
        more = "".join(letter for letter in inner.letters if letter in outer.letters and letter not in kept)
        first = product("einsum", x, inner, kept + more, self.size)
        update = product("einsum", first, outer, to, self.size)
        return Value(f"({full.ordered(to).text} + {update.text})", to)

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
        if spec.is_joint:
            gated = spec.phi.format(gate="gate", up="up")
        forward(f"hidden = {gated if spec.gated else act}")
        value, saved = Value("hidden", hidden), not spec.gated or spec.is_joint
        if "hidden_factor" in values:
            self.update(value, "*", values["hidden_factor"].whole().aligned(hidden), saved=saved)
        if r is not None and routing == "hidden":
            self.update(value, "*", r.aligned(hidden), saved=saved)
        value = self.let("hidden", value)
        v = values["v"]
        kept = "".join(x for x in writing.layout_y if (x in hidden and x != "f") or x == "o")
        y = self.layout(kept, "".join(x for x in kept if x != "e" and not (x == "h" and spec.summed)))
        if r is not None and routing == "einsum":
            equation = f"{hidden},{v.letters},{r.letters}->{y}"
            found = Value(f'torch.einsum("{equation}", hidden, {v.text}, {r.text})', y)
            return self.with_bias(self.let("y", found), values)
        if r is not None and routing == "values":
            routed = self.layout(writing.layout_hidden, r.letters + "".join(set(v.letters) - set(r.letters)))
            forward(f"routed = {v.aligned(routed)} * {r.aligned(routed)}")
            found = product(writing.verb_down, value, Value("routed", routed), y, self.size)
            return self.with_bias(self.let("y", found), values)
        if r is not None and routing == "result":
            each = self.of_values(value, v, kept, values)
            forward(f"y = {each.text}")
            self.with_bias(Value("y", kept), values)
            self.update(Value("y", kept), "*", r.aligned(kept))
            dims = [str(kept.index(x)) for x in kept if x not in y]
            return self.let("y", Value(f"y.sum(({', '.join(dims)},))" if dims else "y", y))
        return self.with_bias(self.let("y", self.of_values(value, v, y, values)), values)

    def of_values(self, hidden: Value, v: Value, to: str, values: dict[str, Value]) -> Value:
        """The product with the values, and with their update."""
        full = product(self.writing.verb_down, hidden, v, to, self.size)
        return self.low_rank(full, hidden, values, to) if self.spec.low_rank == "v" else full

    def with_bias(self, y: Value, values: dict[str, Value]) -> Value:
        """A product with the values, which has a name, and their bias."""
        if "value_bias" in values:
            self.update(y, "+", values["value_bias"].whole().aligned(y.letters))
        return y

    def act(self, x: str) -> str:
        if self.spec.phi and not self.spec.is_joint:
            return self.spec.phi.format(gate=x)
        spellings = ACTIVATIONS[self.spec.activation]
        return spellings[self.writing.spelling % len(spellings)].format(x=x)
