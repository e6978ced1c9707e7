"""The command `precompile`: compile the kernels that a model needs, before it runs and without its GPU."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from mhf_compile.commands.arguments import DTYPES, positive
from mhf_compile.commands.factory import SpecError, made
from mhf_compile.models import CONFIGS, FlashMHF
from mhf_compile.report.text import headline

if TYPE_CHECKING:
    from mhf_compile.commands.calls import FusedCall
    from mhf_compile.kernels.flash_mhf.config import Target
    from mhf_compile.kernels.flash_mhf.launch import Launch

TOKENS = 4096  # of the layer of a configuration, where no number is given

EXAMPLE = """\
examples:

    python -m mhf_compile precompile --arch sm_90 --config 1.3B
    python -m mhf_compile precompile --arch sm_80 --arch gfx942 small.py:small --tokens 2048 8192

A kernel is compiled for some properties of the number of tokens: whether it is one, a multiple of 16, a
multiple of a block, enough to fill the device, and enough to be walked over in parts. So a few numbers stand
for all that are like them. What is compiled lies in Triton's cache (TRITON_CACHE_DIR), which counts at the
path where it was made, for the same versions of Triton and mhf_compile. The tiles are those that `tune`
stored, if a GPU of the architecture is in this machine, and otherwise those of the tables.
"""

HEADING = f"{'kernel':<16}{'arch':<8}{'tokens':>7}  {'tiles':<30}{'shared':>9}"


def layer(name: str, dtype: torch.dtype) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The FlashMHF layer of a configuration and its input, without memory, as a factory makes a model."""
    with torch.device("meta"):
        model = FlashMHF(CONFIGS[name]).to(dtype)
        return model, (torch.empty(1, TOKENS, CONFIGS[name].hidden, dtype=dtype),), {}


def counts(call: FusedCall, numbers: Sequence[int], block: int, few: int) -> list[int]:
    """The numbers of tokens to compile a call for: for each of `numbers` itself, and others of its kind.

    These fill whole blocks, or not, by a multiple of 16, or not. Up to `few` tokens the kernels are others,
    and up to 16 these may have a block of 16. A forward call is compiled for one token as well.
    """
    tokens = [] if call.grad else [1]
    for number in numbers:
        even = few if number <= few else -(-number // block) * block
        low = [16, 15] if number <= 16 else []
        tokens += [number, *low, even, even - 16, even - 1]
    return list(dict.fromkeys(tokens))


@dataclass
class Tally:
    """How many kernels were compiled, were in the cache already, and could not be compiled."""

    compiled: int = 0
    cached: int = 0
    failed: int = 0


def compile_all(launches: Iterator[tuple[int, Launch]], target: Target, tally: Tally) -> None:
    """Compile launches of so many tokens into Triton's cache, and print a line for each new kernel.

    Raises:
        OSError: the cache cannot be written, or a tool of Triton's not be run.
    """
    from mhf_compile.kernels.flash_mhf.ahead import compile_or_find

    for tokens, launch in launches:
        line = f"{launch.name:<16}{target.arch:<8}{tokens:>7}  {tiles_of(launch):<30}"
        try:
            done = compile_or_find(launch, target.arch)
        except OSError:
            raise
        except Exception as error:  # of Triton, LLVM or ptxas: it may not know the architecture
            tally.failed += 1
            why = str(error).strip().partition("\n")[0]
            print(f"{line}fails: {type(error).__name__}: {why}", flush=True)
            continue
        if done.cached is None:
            continue
        tally.cached += done.cached
        tally.compiled += not done.cached
        how = "already in the cache" if done.cached else f"{done.seconds:.1f} s"
        print(f"{line}{done.kernel.metadata.shared / 1024:>8.1f}K  {how}", flush=True)


def tiles_of(launch: Launch) -> str:
    """The tiles of a launch, for people."""
    from mhf_compile.kernels.flash_mhf.tuned import spelled

    given = launch.options
    if launch.tiles is None:
        return f"{given['BLOCK']} w{given['num_warps']} s{given['num_stages']}"
    return spelled(launch.tiles)


def launches_of(
    calls: Sequence[FusedCall], numbers: Sequence[int], target: Target
) -> Iterator[tuple[int, Launch]]:
    """All that some calls launch on a device, on their own number of tokens and on others."""
    from mhf_compile.kernels.flash_mhf import config

    block = max(tiles.tokens for row in config.table(target.arch).values() for tiles in row)
    for call in calls:
        own = [call.tokens] if call.tokens else []
        for tokens in dict.fromkeys([*own, *counts(call, numbers, block, config.FEW)]):
            for launch in call.of_tokens(tokens).launches(target):
                yield tokens, launch


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command `precompile` and its options to the command line."""
    parser = commands.add_parser(
        "precompile",
        help="compile the kernels that a model needs, before it runs and without its GPU",
        description="Find the fused calls of a model, forward and backward, and compile what they launch\n"
        "into Triton's cache, so that the first step of a run has no kernel to compile.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "factory",
        nargs="?",
        help="package.module:name or path/to/file.py:name of a function that returns (model, inputs), as "
        "`explain` takes it",
    )
    parser.add_argument(
        "--arch",
        action="append",
        required=True,
        help="such as sm_90 or gfx942; may be given several times",
    )
    parser.add_argument(
        "--config",
        choices=CONFIGS,
        action="append",
        default=[],
        help="beside a factory or instead: the FlashMHF layer of a configuration, on "
        f"{TOKENS} tokens if there is no --tokens; may be given several times",
    )
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="dtype of a configuration (default: bfloat16); of a factory's model, where it is to run in "
        "another one than it has",
    )
    parser.add_argument(
        "--tokens",
        metavar="N",
        type=positive,
        nargs="+",
        help="numbers of tokens in all sequences together, beside the model's own; each stands for those "
        "like it, whether they fill blocks or not",
    )
    parser.add_argument(
        "--dense",
        choices=("auto", "always", "never"),
        default="auto",
        help="the option flashmhf.dense that the model will be compiled with",
    )
    parser.add_argument(
        "--workspace",
        metavar="BYTES",
        type=positive,
        help="the option flashmhf.workspace that the model will be compiled with",
    )

    def run(options: argparse.Namespace) -> None:
        def stop(why: object) -> NoReturn:
            parser.exit(2, f"{parser.prog}: error: {why}\n")

        if not options.factory and not options.config:
            parser.error("a factory or --config is needed")
        if importlib.util.find_spec("triton") is None:
            stop("Triton is not installed")
        from triton import knobs

        from mhf_compile.commands.calls import UnknownSize, fused_calls
        from mhf_compile.kernels.flash_mhf.ahead import target_for
        from mhf_compile.kernels.support import DTYPES as allowed

        if knobs.runtime.interpret:
            stop("TRITON_INTERPRET is set: its kernels are not compiled")
        try:
            targets = [target_for(arch) for arch in options.arch]
        except ValueError as error:
            stop(error)
        dtype = getattr(torch, options.dtype) if options.dtype else None
        ours = {"flashmhf.dense": options.dense, "flashmhf.workspace": options.workspace}
        models = {name: layer(name, dtype or torch.bfloat16) for name in options.config}
        try:
            models |= {options.factory: made(options.factory)} if options.factory else {}
            fused = {name: fused_calls(*model, ours) for name, model in models.items()}
        except (SpecError, UnknownSize) as error:
            stop(error)
        for name, (calls, report) in fused.items():
            if not calls:
                print(report)
                parser.exit(1, f"{parser.prog}: {name} has no fused call\n")
            print(f"{name}: {headline(report)}", flush=True)
        print(HEADING)
        tally = Tally()
        for name, (calls, _) in fused.items():
            numbers = options.tokens or ([TOKENS] if name in options.config else [])
            cast = [call if dtype is None else call.cast(dtype) for call in calls]
            if any(call.q.dtype not in allowed["cuda"] for call in cast):
                stop(f"{name} computes in float64, which the kernels do not take; give --dtype")
            for target in targets:
                try:
                    compile_all(launches_of(cast, numbers, target), target, tally)
                except OSError as error:
                    stop(f"{error.filename}: {error.strerror}")
        print(f"{tally.compiled} kernels compiled, {tally.cached} were in the cache; it is {knobs.cache.dir}")
        if tally.failed:
            parser.exit(1, f"{parser.prog}: {tally.failed} kernels failed\n")

    parser.set_defaults(run=run)
