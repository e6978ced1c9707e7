"""Which matches of a tape are replaced: those with a region that can be left out, and a proof."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from mhf_compile.matching.match import Match, Unmatched
from mhf_compile.matching.reasons import NoMatch, TooDear
from mhf_compile.matching.search import find
from mhf_compile.rewriting.proof import Proofs
from mhf_compile.rewriting.recomputing import recompute_copies
from mhf_compile.rewriting.refusals import check
from mhf_compile.rewriting.region import Region
from mhf_compile.rewriting.surgery import Surgeon
from mhf_compile.tape.tape import Tape
from mhf_compile.tape.values import Value


@dataclass(frozen=True)
class Replacement:
    """A match that can be replaced, its region, and what was proved of it."""

    match: Match
    region: Region
    proof: str


def plan(tape: Tape, prove: str, dense: str) -> tuple[list[Replacement], list[Unmatched]]:
    """What can be replaced on a tape, in its order, and why the other activations are left alone.

    Args:
        tape: the recorded graph.
        prove: which regions are proved, as in the options.
        dense: whether dense feed-forwards are replaced, as in the options.
    """
    proofs = Proofs(prove)
    accepted: dict[Match, Replacement] = {}

    dear: set[Value] = set()  # the activations of what costs more as a fused call

    def accept(match: Match) -> None:
        region = Region(tape, match)
        try:
            check(region, dense, is_part=not match.anchors.isdisjoint(dear))
        except TooDear:
            dear.update(match.anchors)
            raise
        accepted[match] = Replacement(match, region, proofs.prove(match, region))

    results = find(tape, accept)
    left = [result for result in results if isinstance(result, Unmatched)]
    planned = [accepted[result] for result in results if isinstance(result, Match)]
    inside = {value for one in planned for value in one.region.computed if value is not one.match.root}
    kept = [one for one in planned if inside.isdisjoint(one.region.leaves)]
    for one in planned:
        if one not in kept:
            left += _left(one.match, NoMatch("an operand is inside another match"))
    return kept, left


def carry_out(
    planned: Sequence[Replacement], module: fx.GraphModule, tape: Tape, constants: Mapping[str, Any]
) -> tuple[list[Replacement], list[Unmatched]]:
    """Replace what is planned on a graph and its bodies, but for what turns out to be none; and why.

    ``constants`` are arguments of every op, beside what a match gives.
    """
    done: list[Replacement] = []
    left: list[Unmatched] = []
    if planned:
        surgeon = Surgeon(module, tape, constants)
        for one in planned:
            try:
                surgeon.replace(one.match, one.region)
                recompute_copies(one.match, one.region, tape)
                done.append(one)
            except NoMatch as error:
                left += _left(one.match, error)
        surgeon.finish()
    return done, left


def _left(match: Match, why: NoMatch) -> list[Unmatched]:
    return [Unmatched(match.pattern, anchor, why) for anchor in match.anchors]
