"""Strategies of programs: the first of all choices is the simplest, and examples shrink to it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import assume
from hypothesis import strategies as st

from tests.mutants import MUTANTS, Mutant
from tests.strategies import choices, functions
from tests.strategies.choices import LETTERS, Claims, Spec, Writing
from tests.strategies.render import render

Draw = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Program:
    """A program and what made it; its repr is its text."""

    spec: Spec
    writing: Writing
    mutant: Mutant | None = None

    @property
    def text(self) -> str:
        """The text of its module."""
        return render(self.spec, self.writing, self.changes)[0]

    @property
    def changes(self) -> tuple[tuple[str, str], ...]:
        """What its mutant changes."""
        return self.mutant.changes if self.mutant else ()

    @property
    def claims(self) -> Claims:
        """What is so of it."""
        writing = self.writing
        apart = writing.mode in ("checkpoint", "function")  # then a sum of two is two calls
        summed = writing.flow == "summed"
        return Claims(
            layers=choices.FLOWS[writing.flow][1] + (summed and apart),
            spec=self.spec,
            together=2 if summed and not apart else 1,
            checkpointed=writing.mode == "checkpoint",
            rounds="bfloat16" if writing.mode == "autocast" else self.spec.dtype,
            mutant=self.mutant is not None,
        )

    @property
    def source(self) -> str:
        """The text of a module that has the program and what is so of it."""
        return f"from tests.strategies.choices import Claims, Spec\n\nCLAIMS = {self.claims}\n\n\n{self.text}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How Hypothesis prints what fails; of itself it would name all choices."""
        printer.text(repr(self))

    def __repr__(self) -> str:
        what = f"# mutant: {self.mutant.name}\n" if self.mutant else ""
        return f"\n{what}{self.text}"


NUMBERS = [0.0, 0.0, 0.0, 1.0, -0.5]
"""What is added to scores: mostly nothing."""


@st.composite
def specs(draw: Draw, **given: Any) -> Spec:
    """What is computed."""
    gated = draw(st.sampled_from([True, True, False]))
    networks = draw(st.sampled_from([1, 2, 3]))
    routed = draw(st.booleans()) if networks > 1 else False
    head_dim = draw(st.sampled_from([2, 3, 4]))
    heads, group = draw(st.sampled_from([1, 2, 3])), draw(st.sampled_from([1, 1, 2]))
    several = heads > 1 and group == 1
    seldom = st.sampled_from([False, False, False, True])
    return Spec(
        **{
            "length": draw(st.sampled_from([3, 4])),
            "heads": heads,
            "group": group,
            "networks": networks,
            "width": draw(st.sampled_from([3, 5])),
            "head_dim": head_dim,
            "out_dim": draw(st.sampled_from([head_dim, 5])),
            "gated": gated,
            "routed": routed,
            "gate_bias": draw(st.booleans()),
            "up_bias": draw(st.booleans()) if gated else False,
            "gate_number": draw(st.sampled_from(NUMBERS)),
            "up_number": draw(st.sampled_from(NUMBERS)) if gated else 0.0,
            "gate_factor": draw(seldom),
            "up_factor": draw(seldom) and gated,
            "hidden_factor": draw(seldom),
            "value_bias": draw(seldom),
            "low_rank": draw(st.sampled_from(["", "", "", "k", "v", *(["u"] if gated else [])])),
            "bank": draw(seldom) and several,
            "summed": draw(seldom) and several,
            "activation": draw(st.sampled_from(list(choices.ACTIVATIONS))),
            "phi": draw(functions.of_gate() | functions.of_both() if gated else functions.of_gate())
            if draw(seldom)
            else "",
            "gate_scale": draw(st.sampled_from([1.0, 0.5])),
            "scale": draw(st.sampled_from([1.0, 3.0])),
            **given,
        }
    )


def layouts() -> st.SearchStrategy[str]:
    """An order of all letters; as often as not the plain one."""
    return st.just(LETTERS) | st.permutations(LETTERS).map("".join)


@st.composite
def writings(draw: Draw, spec: Spec, detours: int = 4, **given: Any) -> Writing:
    """How it is written."""

    def pick(options: Sequence[Any]) -> Any:
        return draw(st.sampled_from(list(options)))

    grouping = pick(choices.GROUPINGS) if spec.group > 1 else "unflatten"
    heads = spec.heads if grouping == "unflatten" else spec.heads * spec.group  # of the letter h
    looped = [n for n in ("", "h", "e", "he", "eh") if spec.networks > 1 or "e" not in n]
    if grouping == "divide":
        looped = [n for n in looped if "h" in n]
    loops = pick([n for n in looped if heads > 1 or "h" not in n])
    batched = heads > 1 and "h" not in loops
    routings = [r for r in choices.ROUTINGS if spec.gated or r != "up"]
    routings = [r for r in routings if r not in ("up", "activated") or not spec.is_joint]
    routings = [r for r in routings if r != "einsum" or spec.low_rank != "v"]
    routing = pick(routings) if spec.routed else "hidden"
    routed_apart = spec.routed and routing == "result" and "e" not in loops
    verbs = [verb for verb, no in choices.VERBS.items() if not (no and batched)]
    down = [verb for verb, no in choices.VERBS.items() if not (no and (batched or routed_apart))]
    whole = [x for x in choices.FUSED if x in ("", "weight") or spec.low_rank not in ("k", "u")]
    fused = pick(whole) if spec.gated else ""
    routers = [r for r in choices.ROUTERS if r != "beside" or (spec.routed and fused == "product")]
    chained = ("residual", "norm", "sequence", "broken", "again")  # as many channels come out as go in
    flows = [flow for flow in choices.FLOWS if spec.results == spec.channels or flow not in chained]
    points = [
        point
        for point in choices.POINTS
        if (spec.gated or point not in ("u", "up")) and (spec.routed or point != "r")
    ]
    detour = st.tuples(st.sampled_from(points), st.sampled_from(list(choices.DETOURS.values()))).filter(
        # A known gap: what is zeroed in place is not known to be computed alike.
        lambda at: "zero_()" not in at[1] or at[0] not in ("q", "k", "u", "v", "r")
    )
    return Writing(
        **{
            "loops": loops,
            "layout_q": draw(layouts()),
            "layout_r": draw(layouts()),
            "layout_k": draw(layouts()),
            "layout_u": draw(layouts()),
            "layout_v": draw(layouts()),
            "layout_hidden": draw(layouts()),
            "layout_y": draw(layouts()),
            "verb_gate": pick(verbs),
            "verb_up": pick(verbs),
            "verb_down": pick(down),
            "spelling": pick(range(len(choices.ACTIVATIONS[spec.activation]))),
            "storage": pick(choices.STORAGES),
            "fused": fused,
            "grouping": grouping,
            "routing": routing,
            "router": pick(routers),
            "heads_collected": pick(choices.HEADS_COLLECTED),
            "networks_collected": pick(choices.NETWORKS_COLLECTED),
            "up_first": draw(st.booleans()),
            # Drawn in any case: what needs fewer draws would count as simpler.
            "in_place": draw(st.booleans()) and fused in ("", "weight"),
            "detours": tuple(draw(st.lists(detour, max_size=detours))),
            "flow": pick(flows),
            "mode": pick(choices.MODES),
            **given,
        }
    )


@st.composite
def programs(draw: Draw, spec: dict[str, Any] | None = None, **given: Any) -> Program:
    """A right program, with some of its choices given."""
    drawn = draw(specs(**(spec or {})))
    return Program(drawn, draw(writings(drawn, **given)))


@st.composite
def mutants(draw: Draw, among: Sequence[Mutant] = MUTANTS, **given: Any) -> Program:
    """A right program with a change that does find its place in it."""
    mutant = draw(st.sampled_from(among))
    program = draw(programs(**given))
    _, applied = render(program.spec, program.writing, mutant.changes)
    assume(set(mutant.changes) <= applied)
    return Program(program.spec, program.writing, mutant)
