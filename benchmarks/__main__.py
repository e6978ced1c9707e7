"""The command line: `python -m benchmarks [NAME]`, of one benchmark or of all."""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.cpu import analysis, compilation, functions, layer, memory, op, programs
from benchmarks.settings import Settings, machine
from mhf_compile.commands.arguments import DTYPES, positive
from mhf_compile.models import CONFIGS


@dataclass(frozen=True)
class Benchmark:
    """A benchmark, and the size and number of repeats that it has unless others are asked for."""

    run: Callable[[Settings], dict[str, object]]
    config: str
    repeats: int


BENCHMARKS = {
    "layer": Benchmark(layer.run, "370M", 9),
    "memory": Benchmark(memory.run, "370M", 1),
    "analysis": Benchmark(analysis.run, "1.3B", 3),
    "compilation": Benchmark(compilation.run, "370M", 1),
    "op": Benchmark(op.run, "370M", 9),
    "programs": Benchmark(programs.run, "370M", 7),
    "functions": Benchmark(functions.run, "370M", 7),
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what `arguments` name (default: those of the process); bad ones exit with status 2."""
    options = parser().parse_args(arguments)
    names = list(BENCHMARKS) if options.benchmark == "all" else [options.benchmark]
    here = machine()
    results: dict[str, object] = {"machine": here}
    print("\n".join(f"{what}: {value}" for what, value in here.items()), flush=True)
    for name in names:
        print(f"\n-- {name} --\n")
        benchmark = BENCHMARKS[name]
        settings = Settings(
            model=CONFIGS[options.config or benchmark.config],
            tokens=options.tokens,
            repeats=options.repeats or benchmark.repeats,
            threads=options.threads,
            dtype=options.dtype,
        )
        results[name] = {"settings": asdict(settings), **benchmark.run(settings)}
        if options.json:  # after each benchmark: a later one may be interrupted
            options.json.write_text(json.dumps(results, indent=2) + "\n")


def parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    defaults = {
        what: ", ".join(f"{getattr(benchmark, what)} for {name}" for name, benchmark in BENCHMARKS.items())
        for what in ("config", "repeats")
    }
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measure on the CPU: a FlashMHF layer (eager, Inductor, flashmhf), what it keeps for "
        "the backward, the analysis and the compilation of a whole model, the operator alone, and a "
        "program of each kind that is found.",
    )
    parser.add_argument(
        "benchmark", nargs="?", choices=[*BENCHMARKS, "all"], default="all", help="all: default"
    )
    parser.add_argument("--config", choices=CONFIGS, help=f"size of the model; {defaults['config']}")
    parser.add_argument("--tokens", type=positive, default=4096, help="tokens of a step; 4096")
    parser.add_argument("--repeats", type=positive, help=f"measurements; {defaults['repeats']}")
    parser.add_argument("--threads", type=positive, default=2, help="threads that torch computes with; 2")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of weights and activations; float32"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all that was measured to FILE as well"
    )
    return parser


if __name__ == "__main__":
    main()
