"""What the layers of a model see of its data, for a start that keeps what matters there.

    stats = factorized.collect(model, batches)
    model = factorized.factorize(model, ratio=0.5, stats=stats)
    factorized.recalibrate(model, batches)  # if it has batch norm

Statistics belong to weights, and are taken where a weight is applied (`F.linear`, convolutions, `F.embedding`),
whichever module does that: layers that are called, and ones whose weight the module around them reads.
"""

import contextlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .eligible import refuse_wrapped, weights
from .patterns import unwrap
from .table import run
from .usage import check_model, class_name

Batches = Iterable[Any] | Callable[[], object]


class Moments(NamedTuple):
    """What was seen of one weight. A tensor of one dimension is the diagonal of a matrix that is zero elsewhere."""

    inputs: Tensor
    """Mean of `x x^T` over all positions, (n, n), where `x` is what a row of the weight is multiplied by: an input of a
    linear layer, a patch (in/groups * kernel entries) of a convolution; of an embedding, how often each row was looked
    up, (num_embeddings,), as a share of all."""
    outputs: Tensor | None = None
    """Sum of `g g^T` over all positions, (m, m), where `g` is the gradient at an output; None without gradients."""
    positions: int = 0
    """The number of vectors that `inputs` is the mean of."""


def collect(
    model: nn.Module, batches: Batches, gradients: bool = False, dtype: torch.dtype = torch.float32
) -> dict[str, Moments]:
    """Run the model over data, and return what each weight that can be factorized saw of them, by the layer's name.

    There are none of composed weights, which stand for what no factorized layer does, such as a weight of two modules:
    what a module does with its parameter is not known. The model is left as it was; nothing of a batch is kept. Memory,
    on the model's device: n^2 numbers a weight, and m^2 more with gradients; of more than 16,384 inputs or outputs only
    the diagonal.

    Args:
        batches: an iterable of inputs, run in evaluation mode: tensors, tuples of positional arguments, mappings of
            keyword arguments, or lists as of a `DataLoader`, whose first element is the input. Or a function without
            arguments that runs the model as it likes.
        gradients: take the gradients at outputs, too. `batches` is then a function that calls `backward()` for every
            batch; the gradients of parameters are as before in the end.
        dtype: of the sums, float32 or float64.

    Raises:
        TypeError: for batches that cannot be iterated or called.
        ValueError: if no weight was applied, for data that lead to infinite numbers or NaN, for gradients of batches
            that are no function or that never came.
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
    names = {
        id(weight.tensor): name
        for name, weight in weights(model, embeddings=True).items()
        if weight.obstacle is None and weight.tensor is not None and weight.place is None
    }
    if not names:
        raise ValueError(
            f"{class_name(type(model))} has no weight to factorize: statistics are of a model before it is factorized"
        )
    collector = _Collector(names, gradients, dtype)
    before = {parameter: parameter.grad for parameter in model.parameters()} if gradients else {}
    try:
        for parameter in before:
            parameter.grad = None
        with collector:
            _run(model, batches, training=())
    finally:
        for parameter, gradient in before.items():
            parameter.grad = gradient
    return collector.result(class_name(type(model)))


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
        _run(model, batches, training=norms)
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


def _run(model: nn.Module, batches: Batches, training: Iterable[nn.Module]) -> None:
    """Run all batches without gradients and in evaluation mode but for the modules of `training`; or the function."""
    modes = {module: module.training for module in model.modules()}
    if callable(batches):
        for module in training:
            module.train()
        with _modes_kept(modes):
            batches()
        return
    if isinstance(batches, (Tensor, str, Mapping)) or not isinstance(batches, Iterable):
        given = f"one {type(batches).__name__}"
        raise TypeError(f"batches is an iterable of inputs, or a function that runs the model, not {given}")
    with _modes_kept(modes), torch.no_grad():
        model.eval()
        for module in training:
            module.train()
        number = 0
        for batch in _shown(batches):
            _run_batch(model, batch)
            number += 1
    if number == 0:
        raise ValueError("batches is empty: there is nothing to run the model over")


def _run_batch(model: nn.Module, batch: Any) -> None:
    try:
        run(model, batch[0] if isinstance(batch, list) else batch)
    except TypeError as error:
        if not isinstance(batch, tuple):
            raise
        raise TypeError(
            f"{error}: a tuple holds the model's positional arguments; a list [inputs, targets] has its first run"
        ) from error


@contextlib.contextmanager
def _modes_kept(modes: Mapping[nn.Module, bool]) -> Iterator[None]:
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shown(batches: Iterable[Any]) -> Iterable[Any]:
    """Return the batches, with a progress bar on a terminal if there is a package for it."""
    if importlib.util.find_spec("tqdm") is None:
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc="statistics", unit="batch", leave=False, disable=None)


_WIDEST = 2**14  # inputs or outputs of which a whole matrix is kept
_CHUNK = 2**22  # numbers of unfolded patches at a time


class _Sum:
    """The sum of `x x^T` over vectors, or its diagonal."""

    def __init__(self, dtype: torch.dtype):
        self.dtype = dtype
        self.total: Tensor | None = None
        self.count = 0

    def add(self, vectors: Tensor) -> None:
        """Add vectors (positions, n)."""
        size = vectors.shape[-1]
        shape = (size,) if size > _WIDEST else (size, size)
        if self.total is None:
            self.total = vectors.new_zeros(shape, dtype=self.dtype)
        vectors = vectors.to(self.dtype)
        self.total += vectors.square().sum(0) if len(shape) == 1 else vectors.mT @ vectors
        self.count += len(vectors)

    def add_counts(self, indices: Tensor, rows: int) -> None:
        """Add indicators of rows, whose moments are counts."""
        counts = torch.bincount(indices.flatten(), minlength=rows).to(self.dtype)
        self.total = counts if self.total is None else self.total + counts
        self.count += indices.numel()


class _Collector(TorchFunctionMode):
    """Adds up moments while it is entered."""

    def __init__(self, names: Mapping[int, str], gradients: bool, dtype: torch.dtype):
        super().__init__()
        self.names, self.gradients, self.dtype = names, gradients, dtype
        self.inputs: dict[str, _Sum] = {}
        self.outputs: dict[str, _Sum] = {}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        arguments = _ARGUMENTS.get(func)
        if arguments is not None:
            call = {**dict(zip(arguments, args)), **kwargs}
            name = self.names.get(id(call.get("weight")))
            if name is not None:
                with torch.no_grad():
                    self._add(name, func, call)
                if self.gradients and output.requires_grad:
                    output.register_hook(lambda gradient: self._add_gradient(name, func, gradient))
        return output

    def _add(self, name: str, func: Callable, call: Mapping[str, Any]) -> None:
        total = self.inputs.setdefault(name, _Sum(self.dtype))
        x, weight = call["input"].detach(), call["weight"]
        if func is F.embedding:
            total.add_counts(x, len(weight))
        elif func not in _CONVOLUTIONS:
            total.add(x.reshape(-1, x.shape[-1]))
        else:
            for vectors in _patches(x, weight, call):
                total.add(vectors)

    def _add_gradient(self, name: str, func: Callable, gradient: Tensor) -> None:
        total = self.outputs.setdefault(name, _Sum(self.dtype))
        if func in _CONVOLUTIONS:
            spatial = _CONVOLUTIONS[func]
            gradient = (gradient if gradient.dim() > spatial + 1 else gradient[None]).movedim(1, -1)
        total.add(gradient.reshape(-1, gradient.shape[-1]))

    def result(self, model: str) -> dict[str, Moments]:
        if not self.inputs:
            raise ValueError(f"no weight of {model} was applied: run the model that is given, not a copy or a wrapper")
        if self.gradients and not self.outputs:
            raise ValueError("no gradient came to any layer: the function must call backward() on a loss")
        found = {}
        for name, total in self.inputs.items():
            assert total.total is not None
            outputs = self.outputs[name].total if name in self.outputs else None
            for tensor in (total.total, outputs):
                if tensor is not None and not tensor.isfinite().all():
                    raise ValueError(
                        f"{name or '(root)'} saw infinite numbers or NaN: mend the data, or give dtype=torch.float64"
                    )
            found[name] = Moments(total.total / max(total.count, 1), outputs, total.count)
        return found


# The names of the arguments, in order, of the functions that apply a weight.
_OF_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONVOLUTIONS: Mapping[Any, int] = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_ARGUMENTS: Mapping[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    torch.addmm: ("bias", "input", "weight"),  # of transformers' Conv1D
    F.embedding: ("input", "weight"),
    **dict.fromkeys(_CONVOLUTIONS, _OF_CONVOLUTION),
}


def _patches(x: Tensor, weight: Tensor, call: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the patches that a convolution multiplies its kernel by, (positions, in * kernel entries), in parts."""
    kernel = weight.shape[2:]
    spatial = len(kernel)
    x = x if x.dim() == spatial + 2 else x[None]
    stride, dilation = (_per_axis(call.get(name, 1), spatial) for name in ("stride", "dilation"))
    before, after = _padding(call.get("padding", 0), kernel, dilation)
    x = F.pad(x, [side for pair in zip(reversed(before), reversed(after)) for side in pair])
    x = x.transpose(0, 1).contiguous()
    axes = range(2, 2 + spatial)
    for axis, entries, step, spread in zip(axes, kernel, stride, dilation):
        x = x.unfold(axis, spread * (entries - 1) + 1, step)[..., ::spread]
    x = x.movedim(tuple(axes), tuple(range(-spatial, 0))).movedim(1, -spatial - 1)  # (in, kernel, batch, new sizes)
    at_a_time = max(1, _CHUNK // max(1, x.select(-spatial - 1, 0).numel()))
    for part in x.split(at_a_time, dim=-spatial - 1):
        # Positions lie together in memory, which are as good as contiguous in the images: that is fast to copy.
        yield part.reshape(len(x) * kernel.numel(), -1).mT


def _per_axis(value: int | tuple[int, ...], axes: int) -> tuple[int, ...]:
    values = (value,) if isinstance(value, int) else tuple(value)
    return values * axes if len(values) == 1 else values


def _padding(
    padding: int | tuple[int, ...] | str, kernel: tuple[int, ...], dilation: tuple[int, ...]
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the padding before and after, on every axis."""
    if padding == "same":
        reach = [spread * (entries - 1) for entries, spread in zip(kernel, dilation)]
        return tuple(total // 2 for total in reach), tuple(total - total // 2 for total in reach)
    both = (0,) * len(kernel) if isinstance(padding, str) else _per_axis(padding, len(kernel))
    return both, both
