"""The fused operators of mhf_compile: torch and triton only, nothing of the compiler above them."""
