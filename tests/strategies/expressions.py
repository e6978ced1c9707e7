"""Values of tensors as text, and products of them in any spelling."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace


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
