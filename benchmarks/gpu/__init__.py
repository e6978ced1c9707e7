"""Benchmarks of the kernels on a GPU, and of their machine code without one."""
