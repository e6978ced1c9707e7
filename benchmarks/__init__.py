"""What the package costs and saves, measured: `python -m benchmarks` from the root of the repository."""
