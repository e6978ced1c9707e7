"""Rewriting: whether a match may be replaced, the proof that it is the formula, and the replacement."""
