"""The command `explain`: what would be rewritten in a model that a factory of the user's makes."""

from __future__ import annotations

import argparse
from pathlib import Path

from mhf_compile.api import explain_call
from mhf_compile.commands.arguments import positive
from mhf_compile.commands.factory import SpecError, made
from mhf_compile.report.report import Report

EXAMPLE = """\
example, in a file small.py:

    import torch
    from mhf_compile.models import CONFIGS, FlashMHF, LanguageModel

    def small():
        return LanguageModel(CONFIGS["128M"], FlashMHF), (torch.randint(256, (2, 512)),)

    python -m mhf_compile explain small:small
    python -m mhf_compile explain small.py:small --html small.html
"""

LEGEND = (
    "N tokens; H heads, Hk with weights of their own; E sub-networks; widths: D head, O output, F sub-network"
)


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `explain` and its options to the command line."""
    parser = commands.add_parser(
        "explain",
        help="say what would be rewritten in a model, and what not and why",
        description="Run a model once, and print which of its feed-forwards, gated or not, the backend\n"
        "would rewrite, and why it would leave the others alone.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory",
        help="package.module:name or path/to/file.py:name of a function that takes nothing and returns "
        "(model, inputs); inputs: a tuple of arguments, a dict of keyword arguments, or (tuple, dict)",
    )
    parser.add_argument("--equations", action="store_true", help="show what was read, in index notation")
    parser.add_argument("--all", action="store_true", help="show activations that are in no feed-forward too")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with all of it")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--dense",
        choices=("auto", "always", "never"),
        default="auto",
        help="whether to rewrite dense feed-forwards: one head, one sub-network",
    )
    parser.add_argument(
        "--require", metavar="N", type=positive, default=0, help="status 1 if fewer were rewritten"
    )

    def run(options: argparse.Namespace) -> None:
        try:
            model, args, kwargs = made(options.factory)
        except SpecError as error:
            parser.exit(2, f"{parser.prog}: error: {error}\n")
        report = explain_call(model, args, kwargs, {"flashmhf.dense": options.dense})
        print(report.to_json() if options.json else table(report, options.equations, options.all))
        if options.html is not None:
            try:
                report.save(options.html)
            except OSError as error:
                parser.exit(2, f"{parser.prog}: error: cannot write {options.html}: {error.strerror}\n")
        if len(report.rewrites) < options.require:
            rewritten = f"{len(report.rewrites)} of {report.total} were rewritten"
            parser.exit(1, f"{parser.prog}: {rewritten}, --require asks for {options.require}\n")

    parser.set_defaults(run=run)


def table(report: Report, equations: bool, others: bool) -> str:
    """The report, with a legend for its columns."""
    return report.text(equations, others) + f"\n{LEGEND}" * bool(report.rewrites)
