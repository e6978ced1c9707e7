"""The commands of ``python -m mhf_compile``, and what they share."""
