"""Second moments of what runs through a network's convolutions, and of the gradients there, in one streaming pass.

With a the patch of inputs that a filter sees at a position, y what it makes of it, and g the gradient of an example's
own loss with respect to y there (Grosse and Martens 2016):

    A          (in kh kw, in kh kw)  mean over examples and positions of a a^T
    channels   (in, in)              the same of single entries of the kernel, which all count alike (Wang et al. 2019)
    G          (out, out)            mean over examples of the sum over positions of g g^T
    power      (out,)                mean over examples and positions of y^2: the quadratic form w A w^T of every filter
    row_sums   (in kh kw,)           A times a vector of ones
    diagonal   (out, in kh kw)       mean over examples of the square of the gradient of the weight

The curvature of K-FAC is the Kronecker product of G and A. Nothing is kept of single examples; A of a large layer is
the largest thing in memory.
"""

import contextlib
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KINDS = ("A", "channels", "G", "power", "row_sums", "diagonal")
_OF_GRADIENTS = {"G", "diagonal"}
_CHUNK = 2**24  # elements of a temporary tensor

Moments = dict[str, Tensor]
"""The statistics of a layer by kind."""


def collect(
    model: nn.Module,
    layers: Collection[str],
    batches: Iterable[tuple[Tensor, Tensor]],
    kinds: Collection[str],
    *,
    generator: torch.Generator | None = None,
    add_up: Callable[[Tensor], Tensor] = lambda values: values,
) -> dict[str, Moments]:
    """Return statistics of convolutions, of one pass in evaluation mode in which examples do not depend on each other.

    Args:
        layers: names of the convolutions.
        batches: of images and labels, on the device of the model.
        kinds: some of `KINDS`.
        generator: on the device of the model; draws labels from what the network predicts, for the true Fisher
            information. None for the labels that there are: the empirical one.
        add_up: sums a tensor over processes, in place.

    Raises:
        ValueError: for an unknown kind, or if there are no images.
    """
    if unknown := {*kinds} - {*KINDS}:
        raise ValueError(f"unknown statistics {', '.join(sorted(unknown))}; there are {', '.join(KINDS)}")
    recorders = {name: _Recorder(model.get_submodule(name), kinds) for name in layers}
    of_gradients = bool(_OF_GRADIENTS & {*kinds})
    examples = 0
    with _frozen(model), contextlib.ExitStack() as hooks, torch.set_grad_enabled(of_gradients):
        for recorder in recorders.values():
            hooks.callback(recorder.module.register_forward_hook(recorder.see).remove)
        for images, labels in batches:
            logits = model(images)
            examples += len(images)
            if of_gradients and len(images):
                if generator is not None:
                    chances = logits.detach().float().softmax(1)
                    labels = torch.multinomial(chances, 1, generator=generator).squeeze(1)
                F.cross_entropy(logits, labels, reduction="sum").backward()
    device = next(model.parameters()).device
    count = int(add_up(torch.tensor(float(examples), device=device, dtype=torch.float64)).item())
    if not count:
        raise ValueError("there are no images to take statistics of")
    return {name: recorder.means(count, add_up) for name, recorder in recorders.items()}


@contextlib.contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """Leave out the gradients of all parameters, and be in evaluation mode."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = [module for module in model.modules() if module.training]
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


class _Recorder:
    """The sums of one convolution."""

    def __init__(self, module: Any, kinds: Collection[str]):
        self.module, self.kinds = module, kinds
        self.sums: Moments = {}
        self.positions = 0

    def see(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """Take in a batch's inputs and outputs, and wait for the gradient: a forward hook."""
        x, y = inputs[0].detach(), output.detach()
        self.positions = math.prod(y.shape[2:])
        if "A" in self.kinds or "row_sums" in self.kinds:
            for part in _chunks(x, self._patch_size() * self.positions):
                self._see_patches(self._patches(part))
        if "channels" in self.kinds:
            weighted = x * self._uses(x.shape[2:]).sqrt().to(x)
            self._add_gram("channels", weighted.transpose(0, 1).flatten(1))
        if "power" in self.kinds:
            self._add("power", y.square().sum((0, 2, 3)))
        if _OF_GRADIENTS & {*self.kinds}:
            if not output.requires_grad:  # the first layer, as no weight asks for a gradient
                output.requires_grad_()
            output.register_hook(lambda gradient: self._see_gradient(x, gradient.detach()))

    def _see_patches(self, patches: Tensor) -> None:
        if "A" in self.kinds:
            self._add_gram("A", patches.transpose(0, 1).flatten(1))
        if "row_sums" in self.kinds:
            self._add("row_sums", (patches * patches.sum(1, keepdim=True)).sum((0, 2)))

    def _see_gradient(self, x: Tensor, gradient: Tensor) -> None:
        gradient = gradient.flatten(2)  # (batch, out, positions)
        if "G" in self.kinds:
            self._add_gram("G", gradient.transpose(0, 1).flatten(1))
        if "diagonal" in self.kinds:
            size = self._patch_size() * max(gradient.shape[1], self.positions)
            for part, g in zip(_chunks(x, size), _chunks(gradient, size)):
                self._add("diagonal", (g @ self._patches(part).mT).square_().sum(0))

    def _patch_size(self) -> int:
        return self.module.in_channels * math.prod(self.module.kernel_size)

    def _geometry(self) -> dict[str, Any]:
        module = self.module
        return {name: getattr(module, name) for name in ("kernel_size", "dilation", "padding", "stride")}

    def _patches(self, x: Tensor) -> Tensor:
        """Return the patches (batch, in kh kw, positions)."""
        return F.unfold(x, **self._geometry())

    def _uses(self, size: torch.Size) -> Tensor:
        """Return how many entries of patches each pixel of an image is, (height, width)."""
        ones = torch.ones(1, math.prod(self.module.kernel_size), self.positions)
        return F.fold(ones, size, **self._geometry())[0, 0]

    def _add(self, kind: str, values: Tensor) -> None:
        self.sums[kind] = self.sums[kind].add_(values) if kind in self.sums else values.clone()

    def _add_gram(self, kind: str, matrix: Tensor) -> None:
        """Add the products of all pairs of rows."""
        matrix = matrix.float()
        if kind not in self.sums:
            self.sums[kind] = matrix.new_zeros(len(matrix), len(matrix))
        self.sums[kind].addmm_(matrix, matrix.mT)

    def means(self, examples: int, add_up: Callable[[Tensor], Tensor]) -> Moments:
        """Return the means that the module's text defines."""
        by_position = examples * self.positions
        divisors = {"A": by_position, "power": by_position, "row_sums": by_position, "G": examples}
        divisors |= {"channels": by_position * math.prod(self.module.kernel_size), "diagonal": examples}
        return {kind: add_up(total) / divisors[kind] for kind, total in self.sums.items()}


def _chunks(batch: Tensor, size: int) -> Iterator[Tensor]:
    """Yield parts of a batch whose examples need temporary tensors of so many elements each."""
    return iter(batch.split(max(1, _CHUNK // size)))
