"""Filters that are really taken out: smaller modules in place of larger ones, with the same names.

Each convolution keeps some of its filters, by the numbers that they had in the dense network, so that several rounds
compose. All else follows from the network's flow: what reads a map reads the channels that are left of it, and a sum
has every channel that one of its two sides has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..flow import Add, Flow, Layer, Norm, Sum, plain_sum

Units = Mapping[str, Sequence[int]]
"""The filters that are left of convolutions by name, ascending, as numbered in the dense network."""


def prunable(flow: Flow) -> list[str]:
    """Return the layers whose outputs can be removed: all but the classifier."""
    return [step.name for step in flow if isinstance(step, Layer) and step.writes is not None]


def all_units(model: nn.Module, flow: Flow) -> dict[str, list[int]]:
    """Return every filter of a dense network."""
    return {name: list(range(_outputs(model.get_submodule(name)))) for name in prunable(flow)}


def maps(flow: Flow, units: Units) -> dict[str, list[int]]:
    """Return the channels that are left of every map, ascending; the images are not among them."""
    left: dict[str, list[int]] = {}
    for step in flow:
        if isinstance(step, Layer) and step.writes is not None:
            left[step.writes] = sorted(units[step.name])
        elif isinstance(step, Sum):
            left[step.writes] = sorted({*left[step.branch], *left[step.shortcut]})
    return left


@torch.no_grad()
def remove(model: nn.Module, flow: Flow, before: Units, after: Units) -> nn.Module:
    """Take filters out of a network, in place, and return it.

    Its output is what it was with all that the removed filters write set to zero, at them and after every
    normalization.

    Args:
        before: the filters that the network has.
        after: those that it is to keep, some of them.

    Raises:
        ValueError: if a layer would lose all of its filters, or is to keep one that it has not.
    """
    for name, kept in after.items():
        if not kept or not {*kept} <= {*before[name]}:
            raise ValueError(f"{name} cannot keep the filters {list(kept)} of {list(before[name])}")
    old, new = maps(flow, before), maps(flow, after)
    places = {name: torch.tensor(_positions(new[name], old[name])) for name in new}
    for step in flow:
        match step:
            case Layer(name, reads, writes):
                module = model.get_submodule(name)
                outputs = None if writes is None else places[writes]
                _put(model, name, _part_of_layer(module, outputs, places.get(reads)))
            case Norm(name, read):
                _put(model, name, _part_of_norm(model.get_submodule(name), places[read]))
            case Sum(name, branch, shortcut, writes):
                sides = [_positions(new[side], new[writes]) for side in (branch, shortcut)]
                model.get_submodule(name).sum = _sum_of(len(new[writes]), *sides)
    return model


def _sum_of(width: int, branch: list[int], shortcut: list[int]) -> Any:
    whole = list(range(width))
    return plain_sum if branch == whole == shortcut else Add(width, branch, shortcut)


def _positions(part: Sequence[int], whole: Sequence[int]) -> list[int]:
    where = {channel: position for position, channel in enumerate(whole)}
    return [where[channel] for channel in part]


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, module)


def _outputs(layer: Any) -> int:
    return layer.weight.shape[0]


def _part_of_layer(layer: Any, outputs: Tensor | None, inputs: Tensor | None) -> nn.Module:
    """Return a convolution or linear layer of some of the outputs and inputs of one; None is all of them."""
    weight, bias = layer.weight.detach(), layer.bias
    if outputs is not None:
        weight = weight.index_select(0, outputs.to(weight.device))
        bias = bias if bias is None else bias.index_select(0, outputs.to(weight.device))
    if inputs is not None:
        weight = weight.index_select(1, inputs.to(weight.device))
    sizes: dict[str, Any] = {"bias": bias is not None, "device": weight.device, "dtype": weight.dtype}
    new: Any
    if isinstance(layer, nn.Linear):
        new = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0], **sizes)
    else:
        new = nn.utils.skip_init(
            nn.Conv2d, weight.shape[1], weight.shape[0], layer.kernel_size, layer.stride, layer.padding, layer.dilation,
            **sizes,
        )  # fmt: skip
        new = new.to(memory_format=_format_of(layer.weight))
    new.weight.copy_(weight)
    if bias is not None:
        new.bias.copy_(bias)
    return new.train(layer.training)


def _format_of(weight: Tensor) -> torch.memory_format:
    last = not weight.is_contiguous() and weight.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if last else torch.contiguous_format


def _part_of_norm(norm: Any, channels: Tensor) -> nn.Module:
    channels = channels.to(norm.weight.device)
    new = nn.BatchNorm2d(len(channels), norm.eps, norm.momentum, device=norm.weight.device, dtype=norm.weight.dtype)
    for name in ("weight", "bias", "running_mean", "running_var"):
        getattr(new, name).copy_(getattr(norm, name).index_select(0, channels))
    new.num_batches_tracked.copy_(norm.num_batches_tracked)
    return new.train(norm.training)
