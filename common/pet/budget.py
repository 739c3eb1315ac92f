"""Which rank, bottleneck or scope of a method trains a wanted number of parameters.

Counts are of the modules themselves, put into the network on torch's meta device, where nothing holds
values: a ViT-L takes a tenth of a second and no memory.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from common.config import RunConfig
from common.errors import ConfigError, ModelError
from common.model.architecture import Architecture, architecture_of
from common.model.base import create_network
from common.pet.registry import METHODS
from common.pet.targets import is_final_norm

TOLERANCE = 0.01
"""Share of the target a count may be off."""

KNOBS: Mapping[str, str] = {"lora": "rank", "vera": "rank", "adapter": "bottleneck"}
"""Method -> the key of ``[pet]`` its size is set by; the others have only a scope."""

_LARGEST = {"vera": 1024, "adapter": 65_536}
"""Sizes beyond which nothing is tried; of VeRA the frozen matrices would outgrow the layers they adapt."""


@dataclass(frozen=True)
class Fit:
    """The setting of one method that comes nearest to the target."""

    method: str
    settings: Mapping[str, int | str]
    """Keys to set, such as ``pet.rank``; empty where the method cannot be used at all."""
    parameters: int
    """That it trains, with the head."""
    target: int
    problem: str = ""
    """Why the method cannot be used on this backbone."""

    @property
    def off(self) -> float:
        """How far it is from the target, as a share of it."""
        return (self.parameters - self.target) / self.target

    @property
    def fits(self) -> bool:
        """Whether the count is within `TOLERANCE` of the target."""
        return not self.problem and abs(self.off) <= TOLERANCE


def solve(config: RunConfig, target: int, methods: Sequence[str] = tuple(METHODS)) -> list[Fit]:
    """Find for each method the setting nearest to ``target`` trained parameters.

    The plan's own scope is kept where a size within 1 % exists in it; else the widest scope that has one is
    taken, and if none has, the nearest of all is told.

    Raises:
        ConfigError: if the target is not positive or a method is unknown.
        ModelError: if the backbone cannot be built.
    """
    if target < 1:
        raise ConfigError("a budget must be at least one parameter", found=str(target))
    if unknown := [method for method in methods if method not in METHODS]:
        raise ConfigError(f"no PET method {unknown[0]!r}", found=", ".join(METHODS))
    return [_solve(_with(config, method=method), target) for method in methods]


def trained_parameters(config: RunConfig) -> int:
    """Count what a plan trains, head and clinical weights included.

    Raises:
        ModelError: if the backbone cannot be built, or the method has no place in it.
    """
    if config.data.text:
        from common.model.build import build_model

        schema = build_model(config).schema
        tuned = schema.tuned or schema.names
        return schema.select(tuned).numel
    tally = _tally(_with(config, scope="all"))
    return tally.within(config.pet.scope)


def parse_count(text: str) -> int:
    """Read a number of parameters.

    >>> parse_count("2.37M"), parse_count("160k"), parse_count("2_370_062"), parse_count("1,000")
    (2370000, 160000, 2370062, 1000)

    Raises:
        ConfigError: if it is not a positive number.
    """
    match = re.fullmatch(r"([0-9][0-9_,]*(?:\.[0-9]+)?)\s*([kmb]?)", text.strip().lower())
    value = (
        float(re.sub("[_,]", "", match[1])) * {"": 1, "k": 1e3, "m": 1e6, "b": 1e9}[match[2]] if match else 0
    )
    if not 1 <= value < 1e15:
        raise ConfigError(
            "a budget is a number of parameters", found=text, fix="for example 2.37M, 160k or 2370062"
        )
    return round(value)


@dataclass(frozen=True)
class _Tally:
    """Trained parameters by name, with every block adapted."""

    arch: Architecture
    counts: Mapping[str, int]
    always: int
    """Head and clinical weights."""

    def within(self, scope: str) -> int:
        """Count what remains where only the blocks in ``scope`` are adapted."""
        if scope == "all":
            return self.always + sum(self.counts.values())
        kept = tuple(f"{block}." for block in self.arch.last(int(scope.partition("-")[2])))
        return self.always + sum(
            n for name, n in self.counts.items() if name.startswith(kept) or is_final_norm(name)
        )


def _tally(config: RunConfig) -> _Tally:
    with torch.device("meta"):
        net = create_network(config)
        net.requires_grad_(False)
        arch = architecture_of(net)
        METHODS[config.pet.method](net, arch, config)
    head = net.pretrained_cfg["classifier"]
    final = config.pet.final_norm
    counts = {
        name: p.numel()
        for name, p in net.named_parameters()
        if not name.startswith(f"{head}.") and (p.requires_grad or (final and is_final_norm(name)))
    }
    always = sum(p.numel() for p in net.get_submodule(head).parameters())
    return _Tally(arch, counts, always + 2 * len(config.data.clinical) * len(config.data.findings))


def _solve(config: RunConfig, target: int) -> Fit:
    method, best = config.pet.method, None
    try:
        for fit in _candidates(config, target):
            if fit.fits:
                return fit
            if best is None or abs(fit.off) < abs(best.off):
                best = fit
    except ModelError as error:
        if best is None:
            return Fit(method, {}, 0, target, problem="; ".join(filter(None, (error.problem, error.found))))
    return best or Fit(method, {}, 0, target, problem="the backbone has no blocks")


def _candidates(config: RunConfig, target: int) -> Iterator[Fit]:
    """Yield the best size in each scope: first the plan's own, then from the widest to the narrowest."""
    method, knob = config.pet.method, KNOBS.get(config.pet.method)
    one, two = (_with(config, **({knob: size} if knob else {})) for size in (1, 2))
    count = trained_parameters if config.data.text else _of_images(one, two)
    for scope in _scopes(config):
        try:
            a, b = (count(_with(sized, scope=scope)) for sized in (one, two))
        except ModelError:
            if scope == config.pet.scope:
                raise
            continue  # the text tower may have fewer blocks
        shown: dict[str, int | str] = {} if scope == config.pet.scope else {"pet.scope": scope}
        if not knob:
            yield Fit(method, shown or {"pet.scope": scope}, a, target)
            continue
        size = _nearest(target, a, b - a, _largest(one))
        yield Fit(method, {f"pet.{knob}": size, **shown}, a + (size - 1) * (b - a), target)


def _of_images(one: RunConfig, two: RunConfig) -> Callable[[RunConfig], int]:
    """Put PET in once at each size, and count every scope from that."""
    tallies = {config.pet: _tally(_with(config, scope="all")) for config in (one, two)}

    def count(config: RunConfig) -> int:
        sized = config.pet.model_copy(update={"scope": one.pet.scope})
        return tallies[sized].within(config.pet.scope)

    return count


def _nearest(target: int, first: int, step: int, largest: int) -> int:
    """Return the size whose count ``first + (size - 1) step`` is nearest."""
    return min(max(1, 1 + round((target - first) / step)), largest)


def _largest(config: RunConfig) -> int:
    """Return the size beyond which the method gains nothing: a product of rank r needs r <= in, out."""
    if (method := config.pet.method) in _LARGEST:
        return _LARGEST[method]
    if config.data.text and config.pet.towers == "text":
        return _LARGEST["vera"]
    counts = _tally(_with(config, scope="all")).counts
    return min(n for name, n in counts.items() if ".lora_" in name)


def _scopes(config: RunConfig) -> list[str]:
    if config.pet.method == "head":
        return [config.pet.scope]
    with torch.device("meta"):
        blocks = architecture_of(create_network(config)).blocks
    wider = ["all", *(f"last-{k}" for k in range(len(blocks), 0, -1))]
    return list(dict.fromkeys([config.pet.scope, *wider]))


def _with(config: RunConfig, **pet: int | str) -> RunConfig:
    """Return the plan with other values in ``[pet]``."""
    return config.model_copy(update={"pet": config.pet.model_copy(update=pet)})
