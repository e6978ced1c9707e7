"""Benchmarks on the CPU: the analysis, the layer, the op."""
