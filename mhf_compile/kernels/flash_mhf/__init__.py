"""Implementations of the FlashMHF operator. None imports another; `mhf_compile.kernels.ops` chooses."""
