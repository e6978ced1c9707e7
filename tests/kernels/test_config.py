"""The choice of kernels, tiles and chunks: pure, so tested without a device. Costs are in test_static.py."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mhf_compile.kernels.flash_mhf import config
from mhf_compile.kernels.flash_mhf.config import Sizes, Tiles, columns

ARCHES = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_120", "gfx90a", "gfx942"]
DTYPES = [torch.float16, torch.bfloat16, torch.float32]
PAPER = {"tokens": 16384, "heads": 8, "kv_heads": 8, "subnetworks": 11, "width": 256}


def sizes(head_dim=128, out_dim=None, *, dtype=torch.bfloat16, gated=True, **changes):
    return Sizes(
        **{**PAPER, **changes}, head_dim=head_dim, out_dim=out_dim or head_dim, gated=gated, dtype=dtype
    )


@given(st.integers(1, 5000))
def test_columns_hold_all_and_little_more(size):
    tiles = columns(size)
    assert all(tile >= 16 and tile & (tile - 1) == 0 for tile in tiles)
    assert size <= sum(tiles) < max(2 * size, 17)
    assert len(tiles) <= 3
    assert sum(tiles[:-1]) < size  # none is only padding


def test_columns_of_the_models():
    assert [columns(n) for n in (64, 96, 128, 256)] == [(64,), (64, 32), (128,), (256,)]
    assert [columns(n) for n in (1, 16, 20, 100)] == [(16,), (16,), (32,), (64, 32, 16)]


@pytest.mark.parametrize("arch", ARCHES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_size_has_a_kernel_for_each_pass(arch, dtype):
    table = config.table(arch)
    for head_dim in (1, 16, 17, 64, 80, 96, 100, 128, 200, 256, 257, 4096):
        for out_dim in (1, 64, 128, 513):
            for tokens in (1, 64, 65, 16384):
                x = sizes(head_dim, out_dim, dtype=dtype, tokens=tokens)
                on_chip = config.forward_chunk(x, None) is None
                kernels = [config.forward_kernel(x) if on_chip else config.chunk_kernel(tokens)]
                if config.backward_chunk(x, None, arch) is None:
                    kernels += ["dq", *config.weight_kernels(x, arch)]
                assert all(config.key(kernel, x) in table for kernel in kernels)


@pytest.mark.parametrize("family", config.FAMILIES)
def test_tables_are_sound(family):
    for (kernel, size, held), candidates in config.FAMILIES[family].items():
        assert kernel in config.KERNELS and size in (2, 4)
        assert (held == 0) == kernel.startswith("chunk") and held in (0, *config.CLASSES)
        assert len(set(candidates)) == len(candidates) > 0
        for tiles in candidates:
            for side in (tiles.tokens, tiles.rows, tiles.warps, tiles.columns or 16):
                assert side & (side - 1) == 0
            assert min(tiles.tokens, tiles.rows) >= 16 and tiles.stages >= 1
            assert (tiles.columns > 0) == kernel.startswith("chunk")
            assert tiles.described == 0 or (tiles.described in (1, 2) and family in ("sm_90", "sm_100"))
            assert not tiles.resident or kernel in ("forward", "decode", "dq")
            assert not tiles.collected or kernel == "dq"
            assert not tiles.joined or kernel == "decode"
            assert not tiles.specialised or (
                kernel in ("dk_du", "dv") and tiles.described and tiles.warps == 8
            )
        assert not all(tiles.specialised for tiles in candidates)


@pytest.mark.parametrize("arch", ["sm_75", "sm_9", "gfx1100", "cpu", ""])
def test_an_unknown_architecture_is_an_error(arch):
    with pytest.raises(ValueError, match="want sm_80 or later"):
        config.family(arch)


def test_heads_up_to_256_columns_stay_on_the_chip_in_forward():
    for head_dim in (16, 96, 128, 256):
        assert config.forward_chunk(sizes(head_dim), None) is None
        assert config.forward_chunk(sizes(head_dim), 2**34) is None
    assert config.forward_chunk(sizes(257), None) is not None
    assert config.forward_chunk(sizes(64, 300), None) is not None
    assert config.forward_chunk(sizes(256, dtype=torch.float32), None) is not None  # too many registers


@pytest.mark.parametrize("workspace", [None, 0, 10**12])
def test_heads_up_to_128_columns_stay_on_the_chip_in_backward(workspace):
    for head_dim in (16, 64, 96, 128):
        assert config.backward_chunk(sizes(head_dim), workspace, "sm_80") is None


def test_heads_too_wide_for_the_chip_take_a_workspace_unasked():
    x = sizes(256)
    per_token = 3 * x.wide_bytes
    assert config.backward_chunk(x, None, "sm_80") == config.WORKSPACE // per_token // 128 * 128
    assert config.backward_chunk(x, 0, "sm_80") == config.LEAST_CHUNK
    assert config.backward_chunk(sizes(256, tokens=10), 0, "sm_80") == 10
    assert config.backward_chunk(x, 2048 * per_token, "sm_80") == 2048
    assert config.backward_chunk(sizes(256, gated=False), 2048 * per_token * 2 // 3, "sm_80") == 2048
    assert config.backward_chunk(sizes(256), 0, "sm_90") is None
    assert config.backward_chunk(sizes(256), 1, "sm_90") == config.LEAST_CHUNK


def test_all_tokens_are_one_chunk_where_the_sums_over_chunks_would_take_more():
    def dense(tokens, heads=1):
        return config.Sizes(tokens, heads, 1, 1, 14336, 4096, 4096, True, torch.bfloat16)

    per_token = 3 * dense(1).wide_bytes
    summed = config.sum_bytes(dense(1))
    assert summed == 4 * 14336 * (4 * 4096 + 3)
    chunk = config.WORKSPACE // per_token // 128 * 128
    most = chunk + summed // per_token
    assert config.backward_chunk(dense(most), None, "sm_90") == most
    assert config.backward_chunk(dense(most + 1), None, "sm_90") == chunk
    assert config.backward_chunk(dense(most, heads=2), None, "sm_90") < most  # they share: sums there are


@given(st.integers(1, 2000), st.integers(1, 200), st.sampled_from([4, 8]), st.integers(1, 300))
def test_parts_fill_the_device_and_not_more(programs, pieces, warps, processors):
    parts = config.parts(programs, pieces, Tiles(128, 64, warps, 2), processors)
    wave = processors * (2 if warps == 4 else 1)
    assert parts == 1 or (parts * programs <= wave and 2 * parts <= pieces)
    more = parts + 1
    assert more * programs > wave or 2 * more > pieces


def test_the_models_fill_a_hopper_at_one_token_and_at_many():
    rows = [config.table("sm_90")[config.key("decode", sizes(d))][0] for d in (64, 96, 128, 256)]
    assert all(tiles.warps <= 4 for tiles in rows)  # two programs beside each other
    assert all(config.parts(8, 11 * 256 // tiles.rows, tiles, 132) * 8 > 132 for tiles in rows)
    assert config.parts(1024, 44, Tiles(128, 64, 8, 3), 132) == 1


@pytest.mark.parametrize("family", config.FAMILIES)
@pytest.mark.parametrize("kernel", ["decode", "chunk_decode"])
def test_few_tokens_are_in_one_block_where_a_candidate_holds_them(family, kernel):
    for key, candidates in config.FAMILIES[family].items():
        if key[0] != kernel:
            continue
        most = max(tiles.tokens for tiles in candidates)
        for tokens in range(1, config.FEW + 1):
            found = config.fitting(kernel, tokens, candidates)
            assert found and [tiles for tiles in candidates if tiles in found] == list(found)
            assert found == candidates if tokens > most else min(t.tokens for t in found) >= tokens


def test_all_other_kernels_choose_from_all():
    candidates = (Tiles(16, 64, 4, 3), Tiles(64, 64, 4, 3))
    assert config.fitting("forward", 65, candidates) == candidates
    assert config.fitting("decode", 16, candidates) == candidates
    assert config.fitting("decode", 17, candidates) == candidates[1:]
    assert config.fitting("decode", 65, candidates) == candidates  # none holds them
