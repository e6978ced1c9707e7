"""The command line, `python -m mhf_compile`. Each command is a module with an `add_parser`."""

import argparse
from collections.abc import Sequence

from mhf_compile.commands import demo, explain, precompile, tune


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` name (default: those of the process); bad ones exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m mhf_compile",
        description="A torch.compile backend that fuses multi-head feed-forward networks, gated or not.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    for command in (demo, explain, precompile, tune):
        command.add_parser(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
