"""What the commands and the benchmarks take in common on their command lines."""

import argparse

import torch

DTYPES = ("float32", "bfloat16", "float16")


def positive(text: str) -> int:
    """Read a whole number of at least 1.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def device(text: str) -> str:
    """Read the name of a device that this machine has.

    Raises:
        argparse.ArgumentTypeError: it has no such device.
    """
    devices = ["cpu"]
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    if text not in devices:
        raise argparse.ArgumentTypeError(f"must be one of {', '.join(devices)} on this machine, not {text!r}")
    return text
