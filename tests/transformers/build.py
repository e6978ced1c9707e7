"""Make a tiny instance of a module class of transformers, with random weights, and an input that it runs on.

Constructors are met by the names of their parameters: a config is looked for in the model's own package, a
width, a layer's number or an activation gets a small value. What a class accepts is found by trying.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

HIDDEN, INNER = 32, 48

SIZES = (  # the first row whose expression is in the name of a number tells how large it is
    (r"experts_per_tok|top_?k$|num_selected|n_group|topk_group", 2),
    (r"num_.*experts$|n_routed_experts|num_experts|moe_.*num_experts", 4),
    (r"(moe|shared|expert|ffn|mlp|decoder|encoder|inter|feedforward|feed_forward).*_(size|dim)$", INNER),
    (r"intermediate|d_ff|dim_ff|d_inner|n_inner|inner_|ffn_dim|hidden_features|dim_hidden", INNER),
    (r"hidden_size|d_model|n_embd|embedding_size|width|^dim$|_dim$|_features$|channels$", HIDDEN),
    (r"rank$", 8),
    (r"num_.*layers|n_layers?$", 2),
    (r"heads$", 4),
    (r"vocab_size", 64),
)

LARGEST = 2**21
"""A module of more parameters is not run."""


class NotBuilt(Exception):
    """Why there is no running instance of a class."""


def small(name: str) -> int | None:
    """The size that a name asks for."""
    return next((size for pattern, size in SIZES if re.search(pattern, name)), None)


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config with its sizes made small, its sub-configs' too."""
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            shrink(value)
        elif type(value) is int or value is None:
            size = small(name)
            absent = not value and re.search(r"experts|_size$", name)
            if size is not None and (absent or size < (value or 0)):
                vars(config)[name] = size
    return config


def configs(cls: type, parameter: inspect.Parameter) -> Iterator[PreTrainedConfig]:
    """Configs of the model that a class belongs to, the likeliest first: the annotated, those named alike."""
    module = import_module(cls.__module__)
    package = import_module(cls.__module__.rpartition(".")[0])
    found = {
        name: value
        for place in (module, *_configuration_modules(package))
        for name, value in vars(place).items()
        if inspect.isclass(value) and issubclass(value, PreTrainedConfig) and value is not PreTrainedConfig
    }
    annotated = re.split(r"\W+", getattr(parameter.annotation, "__name__", str(parameter.annotation)))

    def unlikeliness(name: str) -> tuple[bool, int]:
        alike = takewhile(lambda pair: pair[0] == pair[1], zip(name, cls.__name__, strict=False))
        return name not in annotated, -len(list(alike))

    for name in sorted(found, key=unlikeliness):
        try:
            config = shrink(found[name]())
        except Exception:  # not every config has defaults; the next one is tried
            continue
        yield config
        yield from (v for v in vars(config).values() if isinstance(v, PreTrainedConfig))


def _configuration_modules(package: ModuleType) -> Iterator[ModuleType]:
    for path in sorted(Path(package.__path__[0]).glob("configuration_*.py")):
        yield import_module(f"{package.__name__}.{path.stem}")


def argument(name: str, config: PreTrainedConfig | None) -> object:
    """A value for a parameter of a constructor."""
    if re.search(r"eps$|drop", name):
        return 0.0
    if "act" in name and "factor" not in name:
        return getattr(config, "hidden_act", None) or getattr(config, "activation_function", None) or "gelu"
    if re.search(r"idx|index|layer_id|block_id", name):
        return 0
    if "ratio" in name:
        return 2.0
    if "bias" in name:
        return True
    if re.fullmatch(r"hidden_dim|hidden_features|hidden|hidden_channels", name):
        return INNER  # beside an input width
    if re.search(r"num_layers|depth", name):
        return 2
    return small(name) or HIDDEN


def instances(cls: type[nn.Module]) -> Iterator[nn.Module]:
    """Instances of a class, one for each way to construct it. Raises NotBuilt after the last failure."""
    parameters = [
        p
        for p in list(inspect.signature(cls.__init__).parameters.values())[1:]
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
    ]
    asked = next((p for p in parameters if p.name.endswith("config")), None)
    choices = configs(cls, asked) if asked is not None else iter([None])
    failure = ""
    for config in choices:
        for defaults in (True, False):
            wanted = [p for p in parameters if p is not asked and (p.default is p.empty or not defaults)]
            values = {p.name: argument(p.name, config) for p in wanted}
            if asked is not None:
                values[asked.name] = config
            try:
                module = cls(**values)
            except Exception as error:
                failure = failure or f"{type(error).__name__}: {error}".splitlines()[0]
                continue
            sizes = [p.numel() for p in module.parameters()]
            if 0 in sizes or sum(sizes) > LARGEST:
                failure = failure or f"a weight of size 0, or more than {LARGEST} numbers"
                continue
            yield module.eval()
    raise NotBuilt(failure or "no config")


def randomise(module: nn.Module) -> nn.Module:
    """Random parameters, of a size that keeps what flows through them near one."""
    with torch.no_grad():
        for parameter in module.parameters():
            scale = parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.5
            parameter.normal_(0, scale)
    return module.float()


def inputs(module: nn.Module) -> Iterator[dict[str, Tensor | int]]:
    """Arguments that may be a forward's, by the widths of its weights and the names of its parameters."""
    parameters = [
        p.name
        for p in inspect.signature(module.forward).parameters.values()
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.default is p.empty or re.search(ROUTES + "|" + SHARES, p.name))
    ]
    weights = [p for p in module.parameters() if p.dim() >= 2]
    widths = dict.fromkeys([HIDDEN, *(size for weight in weights for size in reversed(weight.shape))])
    experts = next((w.shape[0] for w in weights if w.dim() == 3), 4)
    for width in widths:
        for shape in ((2, 7, width), (14, width), (2, width, 4, 4), (2, 4, 4, width), (experts, 14, width)):
            for last in (width, experts):
                yield {
                    name: torch.randn(shape) if not position else _further(name, (*shape[:-1], last), experts)
                    for position, name in enumerate(parameters)
                }


ROUTES = r"top_?k.*(index|indices|ids)|router_indices|^indices"
SHARES = r"top_?k.*weight|routing_weight|router_score"


def _further(name: str, shape: tuple[int, ...], experts: int) -> Tensor | int:
    """A value for a parameter of a forward behind the first."""
    tokens = math.prod(shape[:-1])
    if re.search(ROUTES, name):
        return torch.randint(experts, (tokens, 2))
    if re.search(SHARES, name):
        return torch.rand(tokens, 2)
    if "mask" in name:
        return torch.ones(*shape[:-1], 1)
    if name in ("height", "width"):
        return shape[1] if name == "height" else 1
    return 0 if re.search(r"idx|layer_id", name) else torch.randn(shape)


def running(cls: type[nn.Module]) -> tuple[nn.Module, dict[str, Tensor | int]]:
    """An instance of a class and the arguments it runs on. Raises NotBuilt."""
    failure = ""
    torch.manual_seed(0)
    try:
        for module in instances(cls):
            randomise(module)
            for given in inputs(module):
                try:
                    with torch.no_grad():
                        result = module(**copy.deepcopy(given))
                except Exception as error:
                    failure = failure or f"does not run: {type(error).__name__}: {error}".splitlines()[0]
                    continue
                if isinstance(result, tuple):
                    result = result[0]
                if isinstance(result, Tensor) and bool(result.isfinite().all()):
                    return module, given
    except NotBuilt as error:
        raise NotBuilt(failure or str(error)) from None
    raise NotBuilt(failure)
