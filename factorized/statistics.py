"""What the layers of a model see of its data, for a start that keeps what matters there.

    stats = factorized.collect(model, batches)
    model = factorized.factorize(model, ratio=0.5, stats=stats)
    factorized.recalibrate(model, batches)  # if it has batch norm

Statistics belong to weights, and are taken where a weight is applied (linear maps and other products, convolutions,
lookups, recurrent layers), whichever module does that: layers that are called, ones whose weight the module around them
reads, and modules with parameters of their own.
"""

import contextlib
from collections.abc import Iterable, Iterator
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .applied import APPLYING, Target, Targets, Use, undispatched, uses
from .batches import Batches, run_over
from .eligible import Weight, refuse_wrapped, weights
from .forms import dense_class
from .patterns import unwrap
from .protocol import without_autocast
from .usage import check_model, class_name


class Moments(NamedTuple):
    """What was seen of one weight: matrices, or where they are too large their diagonals.

    A weight of several matrices, such as groups, gates or experts, has as many of each here, in a first dimension.
    """

    inputs: Tensor
    """Mean of `x x^T` over all positions, (n, n), where `x` is what a row of the weight is multiplied by: an input of a
    linear layer, a patch (in/groups * kernel entries) of a convolution; of an embedding, how often each row was looked
    up, (num_embeddings,), as a share of all."""
    outputs: Tensor | None = None
    """Sum of `g g^T` over all positions, (m, m), where `g` is the gradient at an output; None if it is not known."""
    positions: int | Tensor = 0
    """The number of vectors that `inputs` is the mean of; of several matrices (products,)."""
    on_rows: bool = False
    """Whether inputs meet the rows of the matrices and not their columns, of composed weights: of those of lookups,
    transposed convolutions and products `x W`."""


def collect(
    model: nn.Module, batches: Batches, gradients: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Moments]:
    """Run the model over data, and return what each weight that can be factorized saw of them, by the layer's name.

    So of layers, of the weights of attention, recurrent layers and stacked experts, of weights shared by several
    modules, and of layers that compute their weight from their parameter, which is taken for the weight. There are none
    where a weight is applied by functions that are not known, or read from both sides, as by an embedding and an output
    layer tied to it. Gradients are not known inside of recurrent layers. The model is left as it was; nothing of a
    batch is kept. Memory, on the model's device: n^2 numbers a matrix, and m^2 more with gradients; of more than 16,384
    inputs or outputs only the diagonal.

    Args:
        batches: an iterable of inputs, run in evaluation mode: tensors, tuples of positional arguments, mappings of
            keyword arguments, or lists as of a `DataLoader`, whose first element is the input. Or a function without
            arguments that runs the model as it likes.
        gradients: take the gradients at outputs, too. `batches` is then a function that calls `backward()` for every
            batch; the gradients of parameters are as before in the end.
        dtype: of the sums, float32 or float64.

    Raises:
        TypeError: for batches that cannot be iterated or called without arguments.
        ValueError: if no weight was applied, for data that lead to infinite numbers or NaN, for gradients of batches
            that are no function, that never came, or of recurrent layers alone.
    """
    check_model(model)
    model = unwrap(model)
    refuse_wrapped(model)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"dtype of the sums must be torch.float32 or torch.float64, not {dtype}")
    if gradients and not callable(batches):
        raise ValueError(
            "gradients=True needs a function that calls backward: "
            "collect(model, lambda: [loss(model(x), y).backward() for x, y in batches], gradients=True)"
        )
    found = [
        (_target(name, weight), weight)
        for name, weight in weights(model, embeddings=True).items()
        if weight.obstacle is None and weight.tensor is not None
    ]
    if not found:
        raise ValueError(
            f"{class_name(type(model))} has no weight to factorize: statistics are of a model before it is factorized"
        )
    collector = _Collector(found, gradients, dtype)
    before = {parameter: parameter.grad for parameter in model.parameters()} if gradients else {}
    try:
        for parameter in before:
            parameter.grad = None
        with collector.hooked(), collector:
            run_over(model, batches, training=())
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient
    return collector.result(class_name(type(model)))


def _target(name: str, weight: Weight) -> Target:
    tensor, place = weight.tensor, weight.place
    assert tensor is not None
    products = getattr(weight.module, "groups", 1) if place is None else place.products
    rows = len(tensor) // products if place is None or place.spatial else place.rows
    return Target(name, tensor, products, rows)


def recalibrate(model: nn.Module, batches: Batches) -> nn.Module:
    """Estimate the running statistics of batch norm anew, as a factorized model's differ; return the model.

    They become the average over the batches. Only batch norm is in training mode meanwhile.

    Args:
        batches: as for `collect`; a function that runs the model in evaluation mode does nothing here. At least some
            hundred inputs in batches as those of training: as large, and with classes mixed.

    Raises:
        ValueError: if the model has no batch norm with running statistics, or there are no batches.
    """
    check_model(model)
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    if not norms:
        raise ValueError(f"{class_name(type(model))} has no batch norm with running statistics: nothing to recalibrate")
    before = {norm: (norm.momentum, [buffer.clone() for buffer in norm.buffers(recurse=False)]) for norm in norms}
    done = False
    try:
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # the average of all batches
        run_over(model, batches, training=norms)
        done = all(int(norm.num_batches_tracked) > 0 for norm in norms if norm.num_batches_tracked is not None)
        if not done:
            raise ValueError("batches never reached batch norm in training mode: there must be at least one batch")
    finally:
        for norm, (momentum, buffers) in before.items():
            norm.momentum = momentum
            if not done:
                for buffer, value in zip(norm.buffers(recurse=False), buffers):
                    buffer.copy_(value)
    return model


_WIDEST = 2**14  # inputs or outputs of which a whole matrix is kept


class _Sum:
    """The sums of `x x^T` over the vectors that matrices see, or their diagonals."""

    def __init__(self, products: int, dtype: torch.dtype):
        self.products, self.dtype = products, dtype
        self.total: Tensor | None = None
        self.counts = [0] * products

    def add(self, vectors: Tensor, first: int, count: int) -> None:
        """Add vectors (positions, size) of `count` matrices, or (count, positions, size), one part for each."""
        size = vectors.shape[-1]
        is_wide = size > _WIDEST
        vectors = vectors.to(self.dtype)
        with without_autocast(vectors.device):
            own = vectors.square().sum(-2) if is_wide else vectors.mT @ vectors
        if self.total is None:
            self.total = vectors.new_zeros(self.products, size, *(() if is_wide else (size,)))
        self.total[first : first + count] += own
        self._count(vectors.shape[-2], first, count)

    def add_counts(self, indices: Tensor, rows: int) -> None:
        """Add indicators of rows, whose moments are counts."""
        counts = torch.bincount(indices.flatten(), minlength=rows).to(self.dtype)[None]
        self.total = counts if self.total is None else self.total + counts
        self._count(indices.numel(), 0, 1)

    def _count(self, positions: int, first: int, count: int) -> None:
        for product in range(first, first + count):
            self.counts[product] += positions

    def moment(self) -> Tensor:
        """Return the means, of a single matrix without the dimension of matrices."""
        assert self.total is not None
        counts = torch.tensor(self.counts).clamp_min(1).to(self.total)
        return self._alone(self.total / counts.view(-1, *[1] * (self.total.dim() - 1)))

    def whole(self) -> Tensor:
        """Return the sums, likewise."""
        assert self.total is not None
        return self._alone(self.total)

    def _alone(self, values: Tensor) -> Tensor:
        return values[0] if self.products == 1 else values


class _Collector(TorchFunctionMode):
    """Adds up moments while it is entered."""

    def __init__(self, found: Iterable[tuple[Target, Weight]], gradients: bool, dtype: torch.dtype):
        super().__init__()
        self.gradients, self.dtype = gradients, dtype
        self.inputs: dict[str, dict[bool, _Sum]] = {}
        self.outputs: dict[str, _Sum] = {}
        self.composed: set[str] = set()
        self.has_gradients = False  # whether any weight was applied of whose outputs they can be known
        self._inside: list[Target] = []
        self._layers: list[tuple[nn.Module, Target]] = []
        targets = []
        for target, weight in found:
            targets.append(target)
            if weight.place is not None:
                self.composed.add(target.name)
                layers = [module for module, name in weight.place.owners if name == "weight" and dense_class(module)]
                self._layers += [(layer, target) for layer in layers]
        self.targets = Targets(targets)

    @contextlib.contextmanager
    def hooked(self) -> Iterator[None]:
        """Notice calls of layers that may apply another weight than their parameter, computed from that."""
        handles = []
        for layer, target in self._layers:
            handles.append(layer.register_forward_pre_hook(lambda *_, own=target: self._inside.append(own)))
            handles.append(layer.register_forward_hook(lambda *_: self._leave(), always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _leave(self) -> None:
        self._inside.pop()

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return undispatched(func)(*args, **kwargs)
        output = func(*args, **kwargs)
        if func not in APPLYING:
            return output
        with torch.no_grad():
            for use in uses(func, args, kwargs, output, self.targets, self._inside[-1] if self._inside else None):
                self._add(use)
                self.has_gradients |= use.gradients is not None
                if self.gradients and use.gradients is not None and output.requires_grad:
                    output.register_hook(partial(self._add_gradient, use._replace(vectors=())))
        return output

    def _add(self, use: Use) -> None:
        target = use.target
        sums = self.inputs.setdefault(target.name, {})
        total = sums.setdefault(use.on_rows, _Sum(target.products, self.dtype))
        for vectors in use.vectors:
            if use.is_lookup:
                total.add_counts(vectors, len(target.tensor))
            else:
                total.add(vectors.detach(), use.first, use.number)

    def _add_gradient(self, use: Use, gradient: Tensor) -> None:
        total = self.outputs.setdefault(use.target.name, _Sum(use.target.products, self.dtype))
        assert use.gradients is not None
        for vectors in use.gradients(gradient):
            total.add(vectors, use.first, use.number)

    def result(self, model: str) -> dict[str, Moments]:
        if not self.inputs:
            raise ValueError(f"no weight of {model} was applied: run the model that is given, not a copy or a wrapper")
        if self.gradients and not self.has_gradients:
            raise ValueError(
                f"gradients are not known inside of recurrent layers, and {model} applied no other weight: collect "
                "without gradients=True"
            )
        if self.gradients and not self.outputs:
            raise ValueError("no gradient came to any layer: the function must call backward() on a loss")
        found = {}
        for name, sums in self.inputs.items():
            if len(sums) > 1:
                continue  # read from both sides, as by an embedding and the output layer that is tied to it
            [(on_rows, total)] = sums.items()
            outputs = self.outputs[name].whole() if name in self.outputs else None
            inputs = total.moment()
            for tensor in (inputs, outputs):
                if tensor is not None and not tensor.isfinite().all():
                    raise ValueError(
                        f"{name or '(root)'} saw infinite numbers or NaN: mend the data, or give dtype=torch.float64"
                    )
            positions = total.counts[0] if total.products == 1 else torch.tensor(total.counts)
            found[name] = Moments(inputs, outputs, positions, on_rows and name in self.composed)
        return found
