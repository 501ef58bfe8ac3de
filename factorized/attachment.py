"""Frobenius decay as a part of an optimizer's step."""

import copy
import warnings
import weakref
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .layers.base import KernelDecay
from .leaves import parameters_of
from .usage import listed

# The layers that an optimizer decays. Copies of them are not among these.
_attached: "weakref.WeakSet[nn.Module]" = weakref.WeakSet()


def attached(modules: Mapping[str, Any]) -> list[str]:
    """Return the names of the modules that are decayed by an optimizer which a decay is attached to."""
    return [name for name, module in modules.items() if module in _attached]


class Decay(Protocol):
    """What can be attached: `FrobeniusDecay`, as far as an optimizer's step asks for it."""

    modules: dict[str, Any]
    """The decayed layers by name."""
    decoupled: bool
    """Whether the decay acts after the step."""

    @property
    def coefficient(self) -> float:
        """The factor of all that is added or subtracted."""

    def attach(self, optimizer: Optimizer, in_backward: bool = False) -> "Attachment":
        """Let every step of an optimizer decay."""

    def penalty(self) -> Tensor:
        """Return what the decay adds to the loss."""

    def _add(self, scale: float = 1.0) -> None:
        """Add the gradients, before the step."""

    def _shrink(self, rates: Mapping[Tensor, float | Tensor]) -> None:
        """Subtract the gradients times the rates of the parameters, after the step."""


class Attachment:
    """What `FrobeniusDecay.attach` returns: the decay takes part in the optimizer's step until `remove()`.

    It ends with the optimizer, too. Attributes:
        decay: the `FrobeniusDecay`.
        in_backward: whether layers that compose their weight decay it in the backward pass.
    """

    def __init__(self, decay: Decay, optimizer: Optimizer, in_backward: bool):
        optimizer = innermost(optimizer)
        _check(decay, optimizer, in_backward)
        self.decay = decay
        self.in_backward = in_backward
        self._checked = not in_backward
        self._hook: RemovableHandle = (
            optimizer.register_step_post_hook(self._after_step)
            if decay.decoupled
            else optimizer.register_step_pre_hook(self._before_step)
        )
        layers: list[Any] = list(decay.modules.values())
        if in_backward and decay.coefficient:
            for layer in layers:
                if hasattr(layer, "kernel_decay"):
                    layer.kernel_decay = KernelDecay(decay.coefficient, layer.factors()[0].device)
        _attached.update(layers)
        # Hooks are no part of a copy of an optimizer, which would go on without its decay and without a word.
        optimizer.__deepcopy__ = partial(_copy, weakref.ref(optimizer))  # type: ignore[attr-defined]
        self._end = weakref.finalize(optimizer, _release, layers)
        self._end.atexit = False

    def remove(self) -> None:
        """End the decay in the optimizer's step and in the backward pass; a second call does nothing."""
        self._hook.remove()
        self._end()

    def _before_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Add the gradients, or have the closure of this step do so each time that it has computed the others."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if not callable(closure):
            self._add(optimizer)
            return None

        def decayed(*inputs):
            loss = closure(*inputs)
            self._add(optimizer)
            # A line search compares losses, whose gradients must be those that it gets.
            return loss + self.decay.penalty() if isinstance(optimizer, torch.optim.LBFGS) else loss

        if "closure" in kwargs:
            return args, {**kwargs, "closure": decayed}
        return (args[0], decayed, *args[2:]), kwargs

    def _add(self, optimizer: Optimizer) -> None:
        # A fused optimizer unscales inside its step; until then gradients are multiplied by grad_scale.
        scale = getattr(optimizer, "grad_scale", None)
        if not self.in_backward:
            self.decay._add(1.0 if scale is None else scale.item())
            return
        if scale is not None:
            raise ValueError("a gradient scaler would unscale a decay of the backward pass: attach without in_backward")
        if not self._checked:  # once: to read how often makes the host wait for the device
            self._checked = True
            _warn_of_repetition(self.decay.modules)
        self.decay._add()
        for layer in self.decay.modules.values():
            if kernel_decay := getattr(layer, "kernel_decay", None):
                kernel_decay.mark.grad = None

    def _after_step(self, optimizer: Optimizer, args: tuple, kwargs: dict) -> None:
        """Shrink the factors, unless a gradient scaler had a fused optimizer skip the step."""
        skipped = getattr(optimizer, "found_inf", None)
        share = 1 if skipped is None else 1 - skipped
        rates = [(group["params"], group["lr"] * self.decay.coefficient * share) for group in optimizer.param_groups]
        self.decay._shrink({parameter: rate for parameters, rate in rates for parameter in parameters})


def innermost(optimizer: object) -> Optimizer:
    """Return the optimizer whose step updates the parameters, inside of those that hold another as `optimizer`.

    Raises:
        TypeError: if there is none.
    """
    found, seen = optimizer, set()
    while id(found) not in seen and (inner := getattr(found, "optimizer", None)) is not None:
        seen.add(id(found))
        found = inner
    if isinstance(found, Optimizer) and hasattr(found, "_optimizer_step_pre_hooks"):
        return found
    raise TypeError(
        f"attach needs a torch.optim.Optimizer, or one that holds it as its attribute `optimizer`, not "
        f"{type(optimizer).__name__}; call add_gradients() between the backward pass and the step instead"
    )


def _check(decay: Decay, optimizer: Optimizer, in_backward: bool) -> None:
    """Refuse what would decay nothing, or twice, or not as asked for."""
    if decay.decoupled and in_backward:
        raise ValueError("a decoupled decay acts after the step, not in the backward pass: leave out in_backward")
    if twice := attached(decay.modules):
        raise ValueError(f"{listed(twice)} would be decayed twice: call remove() on the handle of the earlier decay")
    behind = {name: parameters_of(layer, name) for name, layer in decay.modules.items()}
    held = {p: group for group in optimizer.param_groups for p in group["params"]}
    trained = {p for parameters in behind.values() for p in parameters if p.requires_grad}
    if lacking := trained - held.keys():
        names = [
            f"{name}.{own}".lstrip(".")
            for name, layer in decay.modules.items()
            for own, parameter in layer.named_parameters()
            if parameter in lacking
        ]
        raise ValueError(
            f"the optimizer lacks {listed(names)}, which would be decayed: make it of this model, after factorizing, "
            "with factorized.parameter_groups(model, weight_decay); where it should hold only a part of the model, "
            "give the decay that part by include or exclude"
        )
    if not decay.coefficient or not decay.modules:
        return
    twice = [name for name, parameters in behind.items() if any(_l2(held.get(p)) for p in parameters)]
    if twice:
        raise ValueError(
            f"{listed(twice)} would get both Frobenius and L2 weight decay; build the optimizer with "
            "factorized.parameter_groups(model, weight_decay, frobenius=True)"
        )
    if not trained:
        warnings.warn("no factor requires gradients: nothing is decayed before one does", stacklevel=4)
    elif not decay.decoupled and _rescales(optimizer):
        warnings.warn(
            f"{type(optimizer).__name__} rescales gradients and the decay in them, so that its coefficient hardly "
            "matters; FrobeniusDecay(..., decoupled=True) acts as AdamW's own weight decay does",
            stacklevel=4,
        )


def _l2(group: Mapping | None) -> float:
    return 0 if group is None else group.get("weight_decay", 0)


def _rescales(optimizer: Optimizer) -> bool:
    """Tell by its name whether an optimizer divides gradients by their size: Adam, its kin, Adagrad, RMSprop."""
    names = [kind.__name__.lower() for kind in type(optimizer).__mro__]
    return any(name.startswith("rmsprop") or "ada" in name for name in names)


def _warn_of_repetition(modules: Mapping[str, Any]) -> None:
    decays = {name: getattr(layer, "kernel_decay", None) for name, layer in modules.items()}
    marks = {name: decay.mark.grad for name, decay in decays.items() if decay}  # none where the coefficient is 0
    if repeated := [name for name, times in marks.items() if times is not None and times > 1]:
        warnings.warn(
            f"the weight of {listed(repeated)} was used more than once before the first step, and decayed as often; "
            "for shared layers or gradient accumulation attach without in_backward",
            stacklevel=2,
        )


def _release(layers: Iterable[Any]) -> None:
    for layer in layers:
        if hasattr(layer, "kernel_decay"):
            layer.kernel_decay = None
        _attached.discard(layer)


def _copy(reference: "weakref.ref[Optimizer]", memo: dict) -> Optimizer:
    """Return a deep copy of an optimizer with the decays that are attached to it, for the copies of their layers."""
    optimizer = reference()
    assert optimizer is not None  # it is what is being copied
    hooks = (*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values())
    attachments = [owner for hook in hooks if isinstance(owner := getattr(hook, "__self__", None), Attachment)]
    own = optimizer.__dict__.pop("__deepcopy__")
    try:
        new = copy.deepcopy(optimizer, memo)
    finally:
        optimizer.__deepcopy__ = own  # type: ignore[attr-defined]
    for attachment in attachments:
        copy.deepcopy(attachment.decay, memo).attach(new, attachment.in_backward)
    return new
