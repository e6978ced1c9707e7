"""The command line, `python -m mhf_compile`. Each command is a module with an `add_parser`."""

import argparse
from collections.abc import Sequence

from mhf_compile.commands import demo
from mhf_compile.commands import explain as explain_command
from mhf_compile.commands import precompile as precompile_command
from mhf_compile.commands import tune as tune_command


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that `arguments` name (default: those of the process); bad ones exit with status 2."""
    parser = argparse.ArgumentParser(
        prog="python -m mhf_compile",
        description="A torch.compile backend that fuses multi-head feed-forward networks, gated or not.",
    )
    commands = parser.add_subparsers(metavar="command", required=True)
    demo.add_parser(commands)
    explain_command.add_parser(commands)
    precompile_command.add_parser(commands)
    tune_command.add_parser(commands)
    options = parser.parse_args(arguments)
    options.run(options)


if __name__ == "__main__":
    main()
