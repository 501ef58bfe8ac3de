"""A factorized model as one of plain PyTorch layers, each in the form that is fastest here.

    model = factorized.deploy(model, example_input)

Afterwards nothing of this library is left in it: it can be exported (`torch.export`, ONNX), quantized and served as any
other.
"""

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .budget import parameter_count
from .calls import calls_of
from .cost import cheaper_path
from .layers.base import FactorizedLayer
from .layers.weight import ComposedWeight
from .model import replace
from .parametrization import composed_weights, uninstall
from .patterns import factorized_modules
from .table import aligned
from .usage import check_model, class_name, explained, listed

_SECONDS = 0.1  # at least so long is each form of a layer measured
_ROUNDS = 5, 200  # at least, and at most so often
_TIE = 0.98  # share of the dense layer's time up to which the several layers are the faster form
_CALLER = 5  # of the frames below a warning, that of who calls `deploy`, whose decorators have two


class Form(NamedTuple):
    """What became of one factorized layer."""

    name: str
    choice: str
    """The form that was chosen, `dense` or `steps`."""
    reason: str
    """The reason why there was no choice, or empty."""
    dense_seconds: float | None
    """The seconds of one call with the example; None where it was not measured."""
    steps_seconds: float | None
    parameters: int


@explained
@torch.no_grad()
def deploy(model: nn.Module, example_input: Any, measure: bool = True) -> nn.Module:
    """Replace every factorized layer by plain ones of PyTorch, in place, print which, and return the model.

    A layer becomes one dense layer, or an `nn.Sequential` of those that apply its factors one after the other,
    whichever is faster for the example on its device. Composed weights are parameters again. Layers whose `weight`
    another module reads, and ones that the example does not call, become dense. Outputs stay the same up to
    rounding. To go on training, deploy a copy.

    Args:
        example_input: what the model is called with, in evaluation mode: a tensor, a tuple of positional arguments or a
            mapping of keyword arguments, of the size that it is to be fast for.
        measure: time both forms of every layer, a few tenths of a second each; else go by the multiply-adds.

    Raises:
        TypeError: for what is no model.
        ValueError: if the model has no factorized layers.
    """
    model, forms = deployed(model, example_input, measure)
    print(_table(forms, parameter_count(model)))
    return model


def deployed(model: nn.Module, example_input: Any, measure: bool) -> tuple[nn.Module, list[Form]]:
    """Do what `deploy` does without printing, and return the model and what became of its layers."""
    check_model(model)
    found = factorized_modules(model)
    layers: dict[str, Any] = {name: layer for name, layer in found.items() if hasattr(layer, "to_dense")}
    composed = {name: layer for name, layer in found.items() if isinstance(layer, ComposedWeight)}
    if not layers and not composed:
        raise ValueError(f"{class_name(type(model))} has no factorized layers to deploy: factorize it first")
    if left := [name for name in found if name not in layers and name not in composed]:
        warnings.warn(f"{listed(left)} stand for no layer of PyTorch's and stay as they are", stacklevel=_CALLER)
    with _read_weights(layers.values()) as read:
        calls = calls_of(model, set(layers.values()), example_input)
    timed: dict[tuple, tuple[float, float]] = {}
    forms, new = [], {}
    for name, layer in layers.items():
        dense, steps = layer.to_dense(), layer.to_steps() if hasattr(layer, "to_steps") else None
        chosen, seconds, reason = dense, None, ""
        if steps is None:
            reason = "it has no steps"
        elif layer in read:
            reason = "its weight is read"
        elif layer not in calls:
            reason = "the example does not call it"
        elif not measure:
            chosen = steps if _steps_cost_less(layer, [tuple(inputs[0].shape) for inputs, _ in calls[layer]]) else dense
        else:
            x = calls[layer][0][0][0]
            kind = (str(layer), x.shape, x.stride(), x.dtype, x.device, layer.memory_format)
            if kind not in timed:
                timed[kind] = _seconds(dense, steps, x)
            seconds = timed[kind]
            chosen = steps if seconds[1] <= _TIE * seconds[0] else dense
        new[name] = layer, chosen
        choice, (first, second) = "steps" if chosen is steps else "dense", seconds or (None, None)
        forms.append(Form(name, choice, reason, first, second, parameter_count(chosen)))
    forms += [Form(name, "dense", "it is composed", None, None, math.prod(w.shape)) for name, w in composed.items()]
    uninstall(composed_weights(model))
    return replace(model, new, stacklevel=_CALLER), forms


@contextlib.contextmanager
def _read_weights(layers: Iterable[nn.Module]) -> Iterator[set[nn.Module]]:
    """Yield a set that layers are added to when their weight is read from outside of them."""
    read: set[nn.Module] = set()
    inside: list[nn.Module] = []
    own = [layer for layer in layers if isinstance(layer, FactorizedLayer)]
    handles = []
    for layer in own:
        handles.append(layer.register_forward_pre_hook(lambda module, args: inside.append(module)))
        handles.append(layer.register_forward_hook(lambda module, *_: inside.remove(module), always_call=True))
    before: dict[Any, Any] = {kind: vars(kind).get("weight") for kind in map(type, own)}

    def watch(kind: Any) -> property:
        original = kind.weight

        def weight(self: Any) -> Tensor:
            if self not in inside:
                read.add(self)
            return original.fget(self)

        return property(weight, doc=original.__doc__)

    watched = {kind: watch(kind) for kind in before}
    try:
        for kind, property_ in watched.items():
            kind.weight = property_
        yield read
    finally:
        for kind, original in before.items():
            if original is None:
                del kind.weight
            else:
                kind.weight = original
        for handle in handles:
            handle.remove()


def _seconds(dense: nn.Module, steps: nn.Module, x: Tensor) -> tuple[float, float]:
    """Return the least time that each of two modules took in evaluation mode, in turns."""
    modes = dense.training
    dense.eval(), steps.eval()
    best = [float("inf"), float("inf")]
    begin, rounds = time.perf_counter(), 0
    while rounds < _ROUNDS[0] or (time.perf_counter() - begin < 2 * _SECONDS and rounds < _ROUNDS[1]):
        for position, module in enumerate((dense, steps)):
            _wait(x)
            start = time.perf_counter()
            module(x)
            _wait(x)
            if rounds > 0:  # the first one warms up
                best[position] = min(best[position], time.perf_counter() - start)
        rounds += 1
    dense.train(modes), steps.train(modes)
    return best[0], best[1]


def _wait(x: Tensor) -> None:
    if x.is_cuda:
        torch.cuda.synchronize(x.device)


def _steps_cost_less(layer: Any, shapes: Sequence[tuple[int, ...]]) -> bool:
    """Tell whether a layer in steps takes less work for inputs of these shapes; nothing has to be composed any more."""
    if not hasattr(layer, "costs"):
        return True  # a depthwise and a pointwise convolution instead of a whole one
    totals: dict[str, int] = {}
    for shape in shapes:
        for part, number in layer.costs(shape).items():
            totals[part] = totals.get(part, 0) + number
    return cheaper_path(**{**totals, "compose": 0}) == "two_step"


def _table(forms: Sequence[Form], parameters: int) -> str:
    lines = [["layer", "dense (ms)", "steps (ms)", "parameters", "becomes"]]
    for form in forms:
        times = ["" if value is None else f"{1e3 * value:.3f}" for value in (form.dense_seconds, form.steps_seconds)]
        choice = f"{form.choice}: {form.reason}" if form.reason else form.choice
        lines.append([form.name or "(root)", *times, f"{form.parameters:,}", choice])
    chosen: Mapping[str, int] = {kind: sum(form.choice == kind for form in forms) for kind in ("dense", "steps")}
    closing = f"{chosen['dense']} layers are dense, {chosen['steps']} in steps; {parameters:,} parameters"
    return "\n".join([*aligned(lines, left=(0, 4)), closing])
