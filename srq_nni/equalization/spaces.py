"""Which tensors of a float network may change their basis: between convolutions, a network only sees their span.

A tensor that convolutions alone make and read can be any invertible combination of its channels, once the weights on
both sides follow. Sums and concatenations tie tensors together; a ReLU leaves only positive factors of single channels;
whatever else touches a tensor fixes it.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Literal

import torch
from torch import fx, nn
from torch.nn import functional as F

from srq_nni.errors import QuantizationError

Value = tuple[int, ...] | None  # keys of the spaces that a tensor's channels belong to, in order; None if not known


class Freedom(IntEnum):
    """What a space allows: any invertible matrix, positive factors of its channels, or nothing."""

    LINEAR = 0
    POSITIVE = 1
    NONE = 2


@dataclass(frozen=True)
class Use:
    """A module that makes or reads the channels of a space.

    Attributes:
        module: its name.
        side: ``rows`` makes them (output channels of a convolution), ``factors`` makes them one by one (affine
            parameters of batch norm), ``columns`` reads them (input channels of a convolution).
        offset: of the first channel on that side.
    """

    module: str
    side: Literal["rows", "factors", "columns"]
    offset: int = 0


@dataclass(frozen=True)
class Space:
    """Channels that share a basis, and all modules that make or read them."""

    channels: int
    freedom: Freedom
    uses: tuple[Use, ...]


def channel_spaces(model: nn.Module) -> list[Space]:
    """Return the spaces of ``model`` that allow another basis, in the order of its convolutions.

    Raises:
        QuantizationError: if the forward pass depends on values and cannot be traced.
    """
    traced = copy.deepcopy(model)  # BasicSR's EDSR stores what it traces in itself
    try:
        graph = fx.Tracer().trace(traced)
    except Exception as error:  # what a stranger's forward raises on a proxy is its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise QuantizationError(
            f"the forward pass of {type(model).__name__} cannot be traced ({reason}); "
            "equalize only networks that compute the same steps for every image"
        ) from error
    return _Walk(dict(traced.named_modules())).through(graph)


class _Walk:
    """Follows the channels of every tensor through a traced network."""

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self._modules = modules
        self._parent: list[int] = []
        self._channels: list[int] = []
        self._freedom: list[Freedom] = []
        self._uses: list[dict[Use, None]] = []
        self._made: dict[str, int] = {}  # by module, so that one that runs twice makes one space
        self._read: dict[str, Value] = {}

    def through(self, graph: fx.Graph) -> list[Space]:
        """Return the spaces of a graph that are not fixed."""
        values: dict[fx.Node, Value] = {}
        for node in graph.nodes:
            given = [values.get(argument) for argument in node.all_input_nodes]
            values[node] = self._step(node, given)
        roots = dict.fromkeys(map(self._root, range(len(self._parent))))
        spaces = [Space(self._channels[k], self._freedom[k], tuple(self._uses[k])) for k in roots]
        return [space for space in spaces if space.freedom < Freedom.NONE]

    def _step(self, node: fx.Node, given: list[Value]) -> Value:
        if node.op == "call_module":
            return self._module(str(node.target), self._modules[str(node.target)], given)
        rule = _RULES.get(node.target) if callable(node.target) or node.op == "call_method" else None
        if rule is not None:
            return rule(self, node, given)
        return self.fix(given)

    def _module(self, name: str, module: nn.Module, given: list[Value]) -> Value:
        value = given[0] if len(given) == 1 else self.fix(given)
        if type(module) is nn.Conv2d and module.groups == 1:
            self._reads(name, value, module.in_channels)
            return self._makes(name, module.out_channels, Use(name, "rows"))
        if type(module) is nn.BatchNorm2d and module.affine:
            self.fix([value])
            return self.positive(self._makes(name, module.num_features, Use(name, "factors")))
        if isinstance(module, nn.ReLU | nn.LeakyReLU | nn.PReLU):
            return self.positive(value)
        if type(module) is nn.Identity:
            return value
        return self.fix([value])

    def _makes(self, name: str, channels: int, use: Use) -> Value:
        if name not in self._made:
            self._made[name] = len(self._parent)
            self._parent.append(len(self._parent))
            self._channels.append(channels)
            self._freedom.append(Freedom.LINEAR)
            self._uses.append({use: None})
        return (self._made[name],)

    def _reads(self, name: str, value: Value, channels: int) -> None:
        if value is None or sum(self._channels[self._root(key)] for key in value) != channels:
            self.fix([value, self._read.get(name)])
            return
        if name in self._read:
            self.tie(value, self._read[name])
            return
        self._read[name] = value
        offset = 0
        for key in map(self._root, value):
            self._uses[key][Use(name, "columns", offset)] = None
            offset += self._channels[key]

    def tie(self, one: Value, other: Value) -> Value:
        """Give two tensors of the same channels the same basis; fix both if they are not alike."""
        widths = [None if v is None else [self._channels[self._root(key)] for key in v] for v in (one, other)]
        if one is None or other is None or widths[0] != widths[1]:
            return self.fix([one, other])
        for a, b in zip(one, other, strict=True):
            keep, drop = sorted((self._root(a), self._root(b)))
            if keep != drop:
                self._parent[drop] = keep
                self._freedom[keep] = max(self._freedom[keep], self._freedom[drop])
                self._uses[keep].update(self._uses[drop])
        return one

    def positive(self, value: Value) -> Value:
        """Leave only positive factors."""
        return self._limit(value, Freedom.POSITIVE)

    def fix(self, values: list[Value]) -> Value:
        """Leave nothing of all ``values``; return None, what an unknown operation makes of them."""
        for value in values:
            self._limit(value, Freedom.NONE)
        return None

    def _limit(self, value: Value, freedom: Freedom) -> Value:
        for key in map(self._root, value or ()):
            self._freedom[key] = max(self._freedom[key], freedom)
        return value

    def _root(self, key: int) -> int:
        while self._parent[key] != key:
            key = self._parent[key]
        return key


def _sum(walk: _Walk, node: fx.Node, given: list[Value]) -> Value:
    if len(node.args) == 2 and not node.kwargs and all(isinstance(item, fx.Node) for item in node.args):
        first, second = (given[node.all_input_nodes.index(item)] for item in node.args)  # type: ignore[arg-type]
        return walk.tie(first, second)
    return walk.fix(given)


def _factor(walk: _Walk, node: fx.Node, given: list[Value]) -> Value:
    numbers = [item for item in node.args if isinstance(item, int | float)]
    if len(given) == 1 and len(numbers) == 1 and isinstance(node.args[0], fx.Node) and not node.kwargs:
        return given[0]
    return walk.fix(given)


def _concatenation(walk: _Walk, node: fx.Node, given: list[Value]) -> Value:
    parts = node.args[0] if node.args else ()
    dimension = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
    if dimension != 1 or not parts or not isinstance(parts, list | tuple):
        return walk.fix(given)
    values = [given[node.all_input_nodes.index(part)] for part in parts]
    if any(value is None for value in values):
        return walk.fix(given)
    return tuple(key for value in values for key in value or ())


def _rectified(walk: _Walk, node: fx.Node, given: list[Value]) -> Value:
    return walk.positive(given[0]) if len(given) == 1 else walk.fix(given)


_RULES: dict[Any, Callable[[_Walk, fx.Node, list[Value]], Value]] = {
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _sum),
    **dict.fromkeys((operator.mul, operator.truediv, torch.mul, torch.div, "mul", "div"), _factor),
    **dict.fromkeys((torch.cat, torch.concat), _concatenation),
    **dict.fromkeys((F.relu, torch.relu, F.leaky_relu, "relu", "relu_"), _rectified),
}


def readers(space: Space) -> Iterator[Use]:
    """Yield the convolutions that read a space."""
    return (use for use in space.uses if use.side == "columns")
