"""Fuzz: ``python -m tests.fuzz --help``."""

import sys

from tests.fuzz.soak import main

if __name__ == "__main__":
    sys.exit(main())
