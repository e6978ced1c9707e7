"""The operands of the formula that a drawn feed-forward is, as the text of a method."""

from __future__ import annotations

from tests.strategies.expressions import Value
from tests.strategies.layer import Lines, Renderer


def revealed(layer: Renderer) -> list[str]:
    """A method that gives the operands of the formula that a layer is, once it is rendered."""
    forward = Lines(2)
    forward("B, T = x.shape[:2]")
    found = dict(layer.operands)
    if "gate_up" in found:
        both = found.pop("gate_up")
        dim, letters = both.letters.index("p"), both.letters.replace("p", "f")
        for number, name in enumerate("ku"):
            part = f"{both.text}.split({layer.spec.width}, {dim})[{number}]"
            if layer.writing.fused == "interleaved":
                part = f"{both.text}[{':, ' * dim}{number}::2]"
            found[name] = Value(part, letters)
        if layer.beside:
            column = Value(f"{both.text}.select({dim}, -1)", letters.replace("f", ""))
            column = column.ordered(layer.layout("hed", "hed"))
            forward(f"beside = {column.aligned('hed')}")
    weights = {"k": "hefd", "u": "hefd", "v": "hefo", "gate_bias": "hef", "up_bias": "hef"}
    weights |= {"gate_factor": "hef", "up_factor": "hef", "hidden_factor": "hef", "value_bias": "heo"}
    weights |= dict(
        zip(
            ("inner", "outer"),
            ("hefl", "helo") if layer.spec.low_rank == "v" else ("held", "hefl"),
            strict=True,
        )
    )
    for name, value in found.items():
        letters = {"q": "bthgd", "r": "bthge"}.get(name) or weights[name]
        text = value.ordered("".join(x for x in letters if x in value.letters)).text
        text += f"[{', '.join(':' if x in value.letters else 'None' for x in letters)}]"
        forward(f"{name} = {text}{'.flatten(2, 3)' if 'g' in letters else ''}")
    if layer.spec.bank:
        forward(f"q = q.expand(-1, -1, {layer.size['h']}, -1)")
    if layer.beside:
        forward(f"rows = beside.expand({layer.spec.heads}, {layer.spec.networks}, -1)")
        forward("logits = torch.einsum('bthgd,hed->bthge', q.unflatten(2, (rows.shape[0], -1)), rows)")
        forward("r = torch.sigmoid(logits).flatten(2, 3)")
        found["r"] = Value("", "bthge")
    if name := layer.spec.low_rank:
        equation = "hefl,helo->hefo" if name == "v" else "held,hefl->hefd"
        forward(f'{name} = {name} + torch.einsum("{equation}", inner, outer)')
    for factor, name in (("gate_factor", "k"), ("up_factor", "u"), ("hidden_factor", "v")):
        if factor in found:
            forward(f"{name} = {name} * {factor}[..., None]")
    for name in ("inner", "outer", "gate_factor", "up_factor", "hidden_factor"):
        found.pop(name, None)
    for name in ("gate", "up"):
        if number := getattr(layer.spec, f"{name}_number"):
            bias = f"{name}_bias" if f"{name}_bias" in found else "torch.zeros_like(k[..., 0])"
            forward(f"{name}_bias = {bias} + {number}")
            found.setdefault(f"{name}_bias", Value("", "hef"))
    forward(f"return dict({', '.join(f'{name}={name}' for name in found)})")
    return ["", "    def operands(self, x):", *forward.text]
