"""The demo: train a FlashMHF language model on real text, eager and compiled, and compare the two.

Each run has a process of its own, so that neither sees the other's memory, and starts from the same seed.
`train` is what a run does; `compile_model` is what a user of the package would write; `compare` prints what
came of both runs.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

import mhf_compile
from mhf_compile.commands.arguments import DTYPES, device, positive
from mhf_compile.commands.measure import Cost, in_fresh_process, progress, saved_bytes
from mhf_compile.models import CONFIGS, FlashMHF, LanguageModel, ModelConfig

SEQUENCE = 512  # longest sequence of a batch, in tokens
LEARNING_RATE = 0.005
BACKEND = "flashmhf"
INNER = ("aot_eager", "inductor", "eager")

Network = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Settings:
    """What both runs share.

    Attributes:
        model: sizes of the model.
        steps: training steps.
        tokens: bytes of text in a step.
        device, dtype: torch's names.
        inner: the backend that compiles what is not rewritten.
        whole: whether the model is compiled as one graph, not block by block.
    """

    model: ModelConfig
    steps: int
    tokens: int
    device: str
    dtype: str
    inner: str = INNER[0]
    whole: bool = False


@dataclass(frozen=True)
class Run:
    """What a run measured.

    Attributes:
        losses: mean cross entropy of each step, in nats a byte.
        seconds: time of the fastest step: what else the machine does only adds to it.
        peak: most bytes in use during a step, over those in use at its start; None where it cannot be read.
        saved: bytes that the forward keeps for the backward.
        graphs: how many graphs were compiled.
        report: the backend's reports of them, printable; empty for eager.
    """

    losses: list[float]
    seconds: float
    peak: int | None
    saved: int
    graphs: int
    report: str


def train(settings: Settings, compiled: bool) -> Run:
    """Train the model of `settings` from seed 0, compiled or eager, printing progress.

    The optimizer is SGD without momentum: it keeps nothing, so that what a step needs beyond the weights is
    gradients and activations.
    """
    torch.manual_seed(0)
    model = LanguageModel(settings.model, FlashMHF).to(settings.device, getattr(torch, settings.dtype))
    if compiled:
        compile_model(model, settings)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)
    batches = text_batches(settings)

    # One pass that changes no weight: it compiles, and leaves first-time costs out of the measured steps. The
    # first block is enough where all share what it compiles.
    blocks = model.blocks
    model.blocks = blocks if settings.whole else blocks[:1]
    with progress("  compiling forward and backward" if compiled else "  warming up"):
        next_byte_loss(model, batches[0]).backward()
    model.blocks = blocks
    optimizer.zero_grad()
    saved = saved_bytes(lambda: next_byte_loss(model, batches[0]), [*model.parameters(), *batches])

    losses, costs = [], []
    for number, batch in enumerate(batches, start=1):
        with Cost(settings.device) as cost:
            loss = next_byte_loss(model, batch)
            loss.backward()
            optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        costs.append(cost)
        print(f"  step {number}/{settings.steps}: loss {losses[-1]:.4f}, {cost.seconds:.1f} s", flush=True)

    reports = mhf_compile.last_reports()
    return Run(
        losses=losses,
        seconds=min(cost.seconds for cost in costs),
        peak=max((cost.peak for cost in costs if cost.peak is not None), default=None),
        saved=saved,
        graphs=len(reports),
        report="\n".join(map(str, reports)),
    )


def compile_model(model: LanguageModel, settings: Settings) -> None:
    """Compile the blocks of a model, or all of it as one graph; its calls then run what was compiled.

    All blocks run the same code, and weights are inputs of a graph: what the first block compiles serves
    them all. A feed-forward network that is not found makes the first call fail.
    """
    parts: Sequence[nn.Module] = [model] if settings.whole else list(model.blocks)
    for part in parts:
        options = {"flashmhf.require": len(model.blocks) // len(parts), "flashmhf.inner": settings.inner}
        part.compile(backend=BACKEND, fullgraph=True, options=options)


def text_batches(settings: Settings) -> list[Tensor]:
    """Cut the text into one batch of bytes [B, T + 1] a step: T inputs and, one further, T targets.

    Sequences are drawn at random, from torch's current seed: neighbours in the text are too much alike.
    """
    length = min(settings.tokens, SEQUENCE)
    text = torch.frombuffer(bytearray(documentation()), dtype=torch.uint8).to(settings.device, torch.int64)
    sequences = text.unfold(0, length + 1, length)
    drawn = sequences[torch.randperm(len(sequences), device=settings.device)]
    return list(drawn.split(settings.tokens // length)[: settings.steps])


def documentation() -> bytes:
    """The language reference that every Python carries for `help()`: half a megabyte of English and code."""
    from pydoc_data.topics import topics  # a large literal: only the demo pays for it

    return "".join(topics.values()).encode()


def next_byte_loss(network: Network, batch: Tensor) -> Tensor:
    """Mean cross entropy, in nats, of predicting each byte of `batch` [B, T + 1] from those before it."""
    logits = network(batch[:, :-1])
    return functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())


def compare(settings: Settings) -> None:
    """Train eager and compiled, each in a fresh process, and print the two side by side."""
    print(describe(settings))
    print("\nEager", flush=True)
    eager = in_fresh_process(train, settings, compiled=False)
    what = "model" if settings.whole else "block"
    options = {"flashmhf.inner": settings.inner}
    print(f"\n{what}.compile(backend={BACKEND!r}, fullgraph=True, options={options})", flush=True)
    compiled = in_fresh_process(train, settings, compiled=True)

    print(f"\n{usage(settings, compiled.graphs)}\n{compiled.report}")
    print(f"\n{loss_table(eager, compiled)}")
    print(f"\n{cost_table(eager, compiled)}")
    print("\nA ratio above 1 favours the compiled run. The peak leaves out the weights, not their gradients.")


def usage(settings: Settings, graphs: int) -> str:
    """Say for how many blocks a graph was compiled, which its report does not know."""
    times = "once" if graphs == 1 else f"{graphs} times"
    what = "The model" if settings.whole else "A block"
    return f"{what} was compiled {times}, for {settings.model.layers} blocks; what was compiled:"


def describe(settings: Settings) -> str:
    """Say what is going to be trained, and on what."""
    model = settings.model
    with torch.device("meta"):
        parameters = sum(parameter.numel() for parameter in LanguageModel(model, FlashMHF).parameters())
    return (
        f"FlashMHF language model: {model.layers} layers of hidden width {model.hidden}, "
        f"{parameters / 1e6:.1f} M parameters, {settings.dtype} on {settings.device}.\n"
        f"A feed-forward network has {model.ffn_heads} heads of width {model.head_dim} and, in each, "
        f"{model.subnetworks} sub-networks of width {model.subnetwork_width}.\n"
        f"Training: {settings.steps} steps of SGD, {settings.tokens} bytes of Python's documentation in each."
    )


def loss_table(eager: Run, compiled: Run) -> str:
    """Lay out the loss of each step in both runs, and the largest difference."""
    rows = [f"{'loss':<28}{'eager':>12}{BACKEND:>12}{'difference':>12}"]
    differences = []
    for number, (before, after) in enumerate(zip(eager.losses, compiled.losses, strict=True), start=1):
        differences.append(abs(after - before))
        rows.append(f"step {number:<23}{before:>12.6f}{after:>12.6f}{differences[-1]:>12.1e}")
    rows.append(f"{'largest difference':<52}{max(differences):>12.1e}")
    return "\n".join(rows)


def cost_table(eager: Run, compiled: Run) -> str:
    """Lay out what a step costs in both runs, and eager's cost over the compiled run's."""
    rows = [f"{'cost of a step':<28}{'eager':>12}{BACKEND:>12}{'ratio':>12}"]
    for name, before, after in (
        ("saved for the backward, MiB", eager.saved / 2**20, compiled.saved / 2**20),
        ("time of fastest step, s", eager.seconds, compiled.seconds),
    ):
        rows.append(cost_row(name, before, after))
    if eager.peak is not None and compiled.peak is not None:
        rows.insert(2, cost_row("peak memory, MiB", eager.peak / 2**20, compiled.peak / 2**20))
    return "\n".join(rows)


def cost_row(name: str, before: float, after: float) -> str:
    """Lay out one cost before and after, and their ratio."""
    return f"{name:<28}{before:>12.2f}{after:>12.2f}{before / after:>11.2f}x"


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `demo` and its options to the command line."""
    parser = commands.add_parser(
        "demo",
        help="train a FlashMHF language model, eager and compiled, and compare",
        description="Train a FlashMHF language model on Python's own documentation, read as bytes, from one "
        "seed twice: eager, and compiled with backend='flashmhf', block by block. Print what was rewritten, "
        "the losses, and what a step costs in memory and time. To start soon, and without a C++ compiler, "
        "what is not rewritten runs as in eager mode: --inner inductor compiles it as well.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--config", choices=CONFIGS, default="128M", help="size of the model")
    parser.add_argument("--layers", type=positive, help="Transformer blocks, if not those of the size")
    parser.add_argument("--steps", type=positive, default=3, help="training steps")
    parser.add_argument("--tokens", type=tokens, default=1024, help="bytes of text in a step")
    parser.add_argument("--device", type=device, default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="dtype of the weights")

    parser.add_argument(
        "--inner", choices=INNER, default=INNER[0], help="what compiles the rest of the model"
    )
    parser.add_argument("--whole", action="store_true", help="compile the whole model as one graph")

    def run(options: argparse.Namespace) -> None:
        available = len(documentation())
        if options.steps * options.tokens >= available:
            parser.error(f"--steps times --tokens must be below {available}, the length of the text")
        model = CONFIGS[options.config]
        model = replace(model, layers=options.layers or model.layers)
        names = ("steps", "tokens", "device", "dtype", "inner", "whole")
        compare(Settings(model, **{name: getattr(options, name) for name in names}))

    parser.set_defaults(run=run)


def tokens(text: str) -> int:
    """Read a number of tokens that makes whole sequences: at most SEQUENCE, or a multiple of it.

    Raises:
        argparse.ArgumentTypeError: `text` is not one.
    """
    number = positive(text)
    if number > SEQUENCE and number % SEQUENCE:
        raise argparse.ArgumentTypeError(f"must be at most {SEQUENCE} or a multiple of it, not {text}")
    return number
