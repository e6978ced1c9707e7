"""How programs fill a device: the rule is held against a schedule that is played through."""

import heapq

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from mhf_compile.kernels.flash_mhf import config, waves
from mhf_compile.kernels.flash_mhf.config import Sizes, Target, Tiles
from mhf_compile.kernels.flash_mhf.waves import Split, Tail, split

H100 = Target("sm_90", 132)

# Tiles, pieces, places and the cost of a wave of parts.
PROBLEMS = st.tuples(st.integers(1, 3000), st.integers(1, 500), st.integers(1, 400), st.integers(0, 40))


def sizes(head_dim=128, heads=8, **changes):
    paper = {"tokens": 16384, "kv_heads": heads, "subnetworks": 11, "width": 256, "dtype": torch.bfloat16}
    return Sizes(**{**paper, "gated": True, **changes}, heads=heads, head_dim=head_dim, out_dim=head_dim)


def walks(tiles, pieces, found):
    """The pieces that each program walks over, in the order of the grid: (tile, first, last)."""
    yield from ((tile, 0, pieces) for tile in range(found.whole))
    for program in range(found.whole, found.programs(tiles)):
        tile, part = divmod(program - found.whole, found.parts)
        first, last = (x * pieces // found.parts for x in (part, part + 1))
        yield found.whole + tile, first, last


def makespan(lengths, places):
    """When the last program ends, if each starts at the place that is the first to be free."""
    ends = [0] * places
    for length in lengths:
        heapq.heapreplace(ends, ends[0] + length)
    return max(ends)


@given(PROBLEMS)
@example((352, 256, 264, 10))
def test_every_piece_of_every_tile_is_walked_over_once_in_order(problem):
    tiles, pieces, _, _ = problem
    found = split(*problem) or Split(tiles, 1)
    at = [0] * tiles
    for tile, first, last in walks(tiles, pieces, found):
        assert at[tile] == first < last
        at[tile] = last
    assert at == [pieces] * tiles


@given(PROBLEMS)
@example((352, 256, 264, 10))
def test_a_split_is_sooner_done_by_what_it_is_worth(problem):
    tiles, pieces, places, cost = problem
    found = split(*problem)
    if found is None:
        return
    before = makespan([pieces] * tiles, places)
    after = makespan([last - first for _, first, last in walks(tiles, pieces, found)], places)
    parts = (tiles - found.whole) * found.parts
    assert after + cost * -(-parts // places) <= (1 - waves.WORTH) * before


@given(st.integers(0, 20), st.integers(1, 500), st.integers(1, 400))
def test_whole_waves_are_left_alone(number, pieces, places):
    assert split(number * places, pieces, places, 0) is None


@given(PROBLEMS)
def test_tiles_of_whole_waves_stay_whole_and_none_has_more_parts_than_pieces(problem):
    tiles, pieces, places, _ = problem
    found = split(*problem)
    assert found is None or (
        found.whole == tiles // places * places < tiles and 1 < found.parts <= min(pieces, places)
    )


@given(st.integers(1, 400), st.integers(2, 500), st.integers(1, 400))
def test_without_a_cost_few_tiles_fill_the_device(tiles, pieces, places):
    """As `config.parts` does where rows are split: all tiles are left, and take one wave of parts or more."""
    found = split(tiles, pieces, places, 0)
    if 2 * tiles <= places:
        assert found is not None and found.whole == 0
        assert -(-pieces // found.parts) <= -(
            -pieces // config.parts(tiles, pieces, Tiles(1, 1, 8, 1), places)
        )


@given(st.integers(1, 3000), st.integers(1, 20), st.integers(1, 400))
def test_a_walk_as_short_as_the_cost_is_not_split(tiles, pieces, places):
    assert split(tiles, pieces, places, pieces) is None


@pytest.mark.parametrize(
    ("kernel", "layer", "tiles", "expected"),
    [
        ("dk_du", sizes(), Tiles(64, 64, 4, 2, True), Tail(Split(264, 3), 264 * 64, 88 * 64)),
        ("dk_du", sizes(), Tiles(64, 128, 8, 2), Tail(Split(132, 3), 132 * 128, 44 * 128)),
        ("dv", sizes(), Tiles(128, 64, 4, 3, True), Tail(Split(264, 3), 264 * 64, 88 * 64)),
        ("weights", sizes(64, 16), Tiles(64, 64, 4, 3, True), Tail(Split(528, 3), 528 * 64, 176 * 64)),
        ("weights", sizes(64, 24, subnetworks=11), Tiles(64, 64, 4, 3, True), None),  # 1056: four waves
        ("dk_du", sizes(tokens=512), Tiles(64, 64, 4, 2, True), None),
        ("dk_du", sizes(heads=2), Tiles(64, 64, 4, 2, True), Tail(Split(0, 3), 0, 88 * 64)),
    ],
)
def test_layers_on_an_h100(kernel, layer, tiles, expected):
    assert waves.tail(kernel, layer, tiles, H100) == expected


@pytest.mark.parametrize(
    ("kernel", "arch", "tiles", "expected"),
    [
        ("dk_du", "sm_90", Tiles(64, 64, 4, 2), 2),  # 112 KB each
        ("dk_du", "sm_90", Tiles(64, 64, 4, 3), 1),
        ("dv", "sm_90", Tiles(64, 64, 4, 2), 2),
        ("dv", "sm_90", Tiles(128, 64, 4, 3), 1),
        ("dv", "sm_90", Tiles(32, 64, 8, 2), 1),
        ("dk_du", "sm_80", Tiles(64, 64, 4, 2), 1),
        ("dk_du", "sm_80", Tiles(32, 64, 4, 2), 2),
        ("dk_du", "sm_86", Tiles(16, 64, 4, 2), 1),
        ("dk_du", "gfx90a", Tiles(16, 16, 4, 1), 2),
    ],
)
def test_programs_of_a_multiprocessor(kernel, arch, tiles, expected):
    assert waves.programs(kernel, sizes(), tiles, arch) == expected


@given(st.integers(1, 4), st.integers(1, 12), st.integers(1, 300), st.integers(1, 20000), st.integers(1, 200))
def test_a_tail_is_the_rows_of_the_last_tiles(kv_heads, subnetworks, width, tokens, processors):
    layer = sizes(kv_heads=kv_heads, heads=2 * kv_heads, subnetworks=subnetworks, width=width, tokens=tokens)
    tiles = Tiles(64, 64, 4, 2)
    found = waves.tail("dk_du", layer, tiles, Target("sm_90", processors))
    if found is not None:
        blocks = [(i, f) for i in range(kv_heads * subnetworks) for f in range(0, width, 64)]
        i, f = blocks[found.split.whole]
        assert found.first == i * width + f
        assert found.rows == sum(min(64, width - f) for _, f in blocks[found.split.whole :])
