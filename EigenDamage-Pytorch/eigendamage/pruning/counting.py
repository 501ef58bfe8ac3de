"""What a network costs, counted from its real modules; and what parts of it would cost, before anything is built."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

import factorized
from factorized import SeparableConv2d, Tucker2Conv2d

from ..flow import Flow, Layer, Norm
from .removal import Units, maps
from .selection import Kept, Part

COSTS = ("parameters", "multiply-adds")


class Cost(NamedTuple):
    """Of a network."""

    parameters: int
    """The number of all parameters, frozen ones too, buffers excluded."""
    multiply_adds: int
    """The products with weights of convolutions and linear layers, for one image."""

    def of(self, kind: str) -> int:
        """Return the one that a word of `COSTS` names."""
        return self.parameters if kind == "parameters" else self.multiply_adds


class Sizes(NamedTuple):
    """Of a layer's input and output, in positions."""

    before: int
    after: int


@torch.no_grad()
def sizes(model: nn.Module, size: tuple[int, int]) -> dict[str, Sizes]:
    """Return the sizes of every convolution and linear layer by name, for images of (height, width)."""
    found: dict[str, Sizes] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, Tucker2Conv2d)):

            def remember(_, inputs, output, name: str = name) -> None:
                found[name] = Sizes(math.prod(inputs[0].shape[2:]), math.prod(output.shape[2:]))

            hooks.append(module.register_forward_hook(remember))
    training = [module for module in model.modules() if module.training]
    example = next(model.parameters())
    try:
        model.eval()(torch.zeros(1, 3, *size, device=example.device, dtype=example.dtype))
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
    return found


def cost(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Return what a network costs, for images of (height, width)."""
    adds = 0
    for name, (before, after) in sizes(model, size).items():
        module: Any = model.get_submodule(name)
        if isinstance(module, Tucker2Conv2d):
            adds += tucker2_adds(module, type(module), module.rank, before, after)
        else:
            adds += after * module.weight.numel()
    return Cost(factorized.parameter_count(model), adds)


def rotations(model: nn.Module, size: tuple[int, int]) -> Cost:
    """Return the part of `cost` that is in the 1 x 1 convolutions around the cores of layers in Tucker-2 form."""
    parameters = adds = 0
    for name, (before, after) in sizes(model, size).items():
        layer: Any = model.get_submodule(name)
        if isinstance(layer, Tucker2Conv2d):
            parameters += layer.U.numel() + layer.VT.numel()
            adds += tucker2_adds(layer, type(layer), layer.rank, before, after) - after * layer.core.numel()
    return Cost(parameters, adds)


def _core(layer: Any, form: type[Tucker2Conv2d], rank: tuple[int, int]) -> int:
    return math.prod(layer.kernel_size) * rank[0] * rank[1] // form.core_groups(rank)


def tucker2_parameters(layer: Any, form: type[Tucker2Conv2d], rank: tuple[int, int]) -> int:
    """Return the parameters that a convolution has in Tucker-2 form, or in its depthwise one."""
    bias = 0 if layer.bias is None else layer.out_channels
    r_out, r_in = rank
    return layer.in_channels * r_in + _core(layer, form, rank) + layer.out_channels * r_out + bias


def tucker2_adds(layer: Any, form: type[Tucker2Conv2d], rank: tuple[int, int], before: int, after: int) -> int:
    """Return its multiply-adds, one factor after another."""
    r_out, r_in = rank
    if layer.kernel_size == (1, 1):  # what strides skip is left out first
        before = after
    return before * layer.in_channels * r_in + after * (_core(layer, form, rank) + r_out * layer.out_channels)


class FilterCost:
    """The cost of a network with some of its filters, as `selection.cut_at_cost` asks for it.

    Args:
        model: as it is now.
        units: the filters that it has.
        kind: one of `COSTS`.
        size: of the images, (height, width).
    """

    def __init__(self, model: nn.Module, flow: Flow, units: Units, kind: str, size: tuple[int, int]):
        self.flow, self.units, self.kind = flow, units, kind
        self.sizes = sizes(model, size)
        self.modules: dict[str, Any] = {step.name: model.get_submodule(step.name) for step in flow}

    def __call__(self, kept: Kept) -> int:
        """Return the cost of what is kept, positions in the network as it is."""
        left = maps(self.flow, chosen(self.units, kept))
        total = 0
        for step in self.flow:
            module = self.modules[step.name]
            if isinstance(step, Layer):
                weight = module.weight.shape
                outputs = weight[0] if step.writes is None else len(left[step.writes])
                inputs = len(left[step.reads]) if step.reads in left else weight[1]
                elements = outputs * inputs * math.prod(weight[2:])
                if self.kind == "parameters":
                    total += elements + (0 if module.bias is None else outputs)
                else:
                    total += self.sizes[step.name].after * elements
            elif isinstance(step, Norm) and self.kind == "parameters":
                total += 2 * len(left[step.map])
        return total


def chosen(units: Units, kept: Kept) -> dict[str, list[int]]:
    """Return the filters at the kept positions of a network that has `units`; all of those layers not mentioned."""
    found = {name: list(numbers) for name, numbers in units.items()}
    return found | {part.layer: [units[part.layer][place] for place in places] for part, places in kept.items()}


class DirectionCost:
    """The cost of a network whose convolutions keep some directions, where that makes them smaller.

    Arguments as of `FilterCost`; `layers` are the convolutions by name, and `form` is the class that they get.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Mapping[str, Any],
        form: type[Tucker2Conv2d],
        kind: str,
        size: tuple[int, int],
    ):
        self.layers, self.form, self.kind = layers, form, kind
        self.sizes = sizes(model, size)
        self.now = {name: self._now(name) for name in layers}
        self.others = cost(model, size).of(kind) - sum(self.now.values())

    def _now(self, name: str) -> int:
        layer = self.layers[name]
        if self.kind == "parameters":
            return factorized.parameter_count(layer)
        if isinstance(layer, Tucker2Conv2d):
            return tucker2_adds(layer, type(layer), layer.rank, *self.sizes[name])
        return self.sizes[name].after * layer.weight.numel()

    def _with(self, kept: Kept, name: str) -> int:
        """Return the cost of a layer with what is kept of it, as it is now if that is no less.

        What decides is the form that the layer gets; the published code of the separable one asked for its core before.
        """
        layer, rank = self.layers[name], (len(kept[Part(name)]), len(kept[Part(name, "inputs")]))
        if self.form is SeparableConv2d:
            rank = min(rank), min(rank)
        if self.kind == "parameters":
            return min(self.now[name], tucker2_parameters(layer, self.form, rank))
        return min(self.now[name], tucker2_adds(layer, self.form, rank, *self.sizes[name]))

    def saves(self, kept: Kept, name: str) -> bool:
        """Tell whether a layer becomes smaller with what is kept of it."""
        return self._with(kept, name) < self.now[name]

    def __call__(self, kept: Kept) -> int:
        return self.others + sum(self._with(kept, name) for name in self.layers)
