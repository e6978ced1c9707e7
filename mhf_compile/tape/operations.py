"""What the tape must know of ATen operations that their schemas do not say.

These are facts about memory and autograd, also of operations that no rule reads; the rules are a room above.
"""


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


ONE_TO_ONE = _names(
    "view _unsafe_view _reshape_alias alias detach lift_fresh unsqueeze squeeze permute t transpose "
    "select slice split split_with_sizes unbind diagonal"
)
"""Views that show no element twice, and none that their base does not show: a write through one changes just
what it shows."""

CREATIONS = _names(
    "zeros zeros_like new_zeros ones ones_like new_ones full full_like new_full scalar_tensor "
    "empty empty_like new_empty rand rand_like randn randn_like"
)
"""Operations that make a tensor of their own, that is like an argument in shape at most."""

GATHERS = _names("index index_select gather embedding take")
"""Operations that take entries of their first argument by numbers in another, each any number of times."""

WHOLE_PRODUCTS = _names(
    "linear matmul _grouped_mm _scaled_mm _scaled_grouped_mm _int_mm _weight_int8pack_mm _weight_int4pack_mm"
)
"""Products that stay whole: of weights in another format, and those of subclasses of tensors."""

OVERWRITES = _names("copy zero fill")
"""Operations that in place keep nothing of what was there."""

NO_GRADIENT = CREATIONS | {"detach"}
"""Operations that have no gradient in their argument."""
