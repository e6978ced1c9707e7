"""Matching: which values of a tape are a pattern's formula, and why others are not."""
