"""How functions of PyTorch apply weights: which vectors meet which side of a weight's matrix.

A weight is seen as matrices, `products` one after the other. Where it computes `W x`, as in a linear layer, the inputs
meet its columns; where it computes `x W`, as a transposed convolution and a lookup do, its rows. Views of a parameter
are known by their place in its memory: thirds of an in-projection, the experts of a stack, transposed ones.
"""

import math
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .recurrent import CELLS, LAYERS, used_by_cell, used_by_layers
from .unfolding import patches, without_output_padding

Vectors = Iterable[Tensor]  # each (positions, size), or (products, positions, size)


class Target(NamedTuple):
    """A weight that is looked out for."""

    name: str
    tensor: Tensor
    products: int
    """The number of matrices that it holds one after the other."""
    rows: int
    """The number of rows of each of them, with the weight in memory as (products, rows, columns)."""


class Use(NamedTuple):
    """One application of a weight, or of some of its matrices."""

    target: Target
    vectors: Vectors
    """The inputs. Without a dimension of products, all of these see the same."""
    on_rows: bool
    """Whether they meet the rows of the matrices."""
    first: int
    number: int
    """The matrices from the first to that many later ones."""
    gradients: Callable[[Tensor], Vectors] | None
    """What the gradient at the output is, as vectors that meet the other side; None where that is not known."""
    is_lookup: bool = False
    """Whether the vectors are indices, of rows that are looked up."""


class Targets:
    """Weights, found by tensors that are the whole or a part of one."""

    def __init__(self, targets: Iterable[Target]):
        self._by_storage: dict[int, list[Target]] = {}
        for target in targets:
            if not target.tensor.is_meta:
                self._by_storage.setdefault(target.tensor.untyped_storage().data_ptr(), []).append(target)

    def find(self, tensor: Any) -> Target | None:
        """Return the weight that a tensor is a part of."""
        if not isinstance(tensor, Tensor) or tensor.is_meta or tensor.layout != torch.strided:
            return None
        for target in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            start = tensor.storage_offset() - target.tensor.storage_offset()
            if 0 <= start < target.tensor.numel():
                return target
        return None

    def whole(self, tensor: Any) -> Target | None:
        """Return the weight that a tensor is, or None."""
        target = self.find(tensor)
        if target is None or (tensor.shape, tensor.stride()) != (target.tensor.shape, target.tensor.stride()):
            return None
        return target


def uses(
    func: Callable, args: Sequence[Any], kwargs: Mapping[str, Any], output: Any, targets: Targets, inside: Target | None
) -> Iterator[Use]:
    """Yield the applications of weights by a function of PyTorch, of which this is the output.

    Args:
        inside: the weight of the layer that is being called, if that computes another one of it before it applies it.
    """
    if func in _ARGUMENTS:
        call = {**dict(zip(_ARGUMENTS[func], args)), **kwargs}
        weight = call["weight"]
        own = targets.whole(weight)
        if inside is not None and own is None and targets.find(weight) is None and weight.shape == inside.tensor.shape:
            own = inside
        if own is not None and (use := _OF_LAYERS[func](own, call)).number == own.products:
            yield use
        elif own is None and func is F.linear:
            yield from _of_product(call["input"], weight.mT, targets)
    elif func in _PRODUCTS:
        x, y = args[1:3] if func in _ADDED else [*args, *kwargs.values()][:2]
        yield from _of_product(x, y, targets)
        yield from _of_product(_turned(y), _turned(x), targets, turned=True)
    elif func in _RAGGED:
        yield from _of_ragged(*args, **kwargs, targets=targets)
    elif func is torch.einsum:
        yield from _of_einsum(*args, targets=targets)
    elif func in LAYERS or func in CELLS:
        used = used_by_cell(*args, **kwargs) if func in CELLS else used_by_layers(func, output, *args)
        for weight, x in used:
            if (own := targets.whole(weight)) is not None:
                yield Use(own, [_flat(x)], False, 0, own.products, None)


def _of_linear(own: Target, call: Mapping[str, Any]) -> Use:
    x, products = call["input"], own.products
    return Use(own, [_flat(x)], False, 0, products, lambda g: [_grouped(_flat(g), products)])


def _of_convolution(own: Target, call: Mapping[str, Any]) -> Use:
    groups, weight = call.get("groups", 1), call["weight"]
    parts = (_grouped(part, groups) for part in patches(call["input"], weight, call))
    return Use(own, parts, False, 0, groups, lambda g: [_grouped(_positions(g, weight.dim()), groups)])


def _of_transposed(own: Target, call: Mapping[str, Any]) -> Use:
    x, weight, groups = call["input"], call["weight"], call.get("groups", 1)

    sizes = x.shape[2 - weight.dim() :]

    def gradients(gradient: Tensor) -> Vectors:
        reached = without_output_padding(gradient, sizes, weight, call)
        return (_grouped(part, groups) for part in patches(reached, weight, call))

    return Use(own, [_grouped(_positions(x, weight.dim()), groups)], True, 0, groups, gradients)


def _of_lookup(own: Target, call: Mapping[str, Any]) -> Use:
    return Use(own, [call["input"]], True, 0, 1, lambda g: [_flat(g)], is_lookup=True)


def _flat(vectors: Tensor) -> Tensor:
    """Return vectors (..., size) as (positions, size)."""
    return vectors.reshape(-1, vectors.shape[-1])


def _positions(images: Tensor, dimensions: int) -> Tensor:
    """Return images ([batch,] channels, sizes...) as vectors (positions, channels)."""
    images = images if images.dim() == dimensions else images[None]
    return images.movedim(1, -1).flatten(0, -2)


def _grouped(vectors: Tensor, groups: int) -> Tensor:
    """Return vectors (positions, groups * size) as (groups, positions, size), of a single group as they are."""
    return vectors if groups == 1 else vectors.unflatten(1, (groups, -1)).transpose(0, 1)


def _turned(tensor: Tensor) -> Tensor:
    return tensor.mT if tensor.dim() > 1 else tensor


def _of_product(x: Any, matrix: Any, targets: Targets, turned: bool = False) -> Iterator[Use]:
    """Yield the use that `x matrix` makes of a weight that `matrix` is a part of: one matrix, several, or a batch.

    Args:
        turned: whether the output is transposed, as `(x matrix)^T = matrix^T x^T`.
    """
    if matrix.dim() == 3 and (len(matrix) == 1 or matrix.stride(0) == 0):
        matrix = matrix[0]
    part = _part(matrix, targets)
    if part is None:
        return
    target, first, count, on_rows = part
    is_batch = matrix.dim() == 3

    def flat(vectors: Tensor) -> Tensor:
        if not is_batch:
            return _flat(vectors)
        vectors = vectors if vectors.dim() > 1 else vectors[None]
        vectors = vectors.expand(*vectors.shape[:-3], count, *vectors.shape[-2:])
        return vectors.movedim(-3, 0).flatten(1, -2)

    def gradients(gradient: Tensor) -> Vectors:
        gradient = flat(_turned(gradient) if turned else gradient)
        return [gradient if is_batch or on_rows else _grouped(gradient, count)]

    yield Use(target, [flat(x)], on_rows, first, count, gradients)


def _of_ragged(x: Any, matrix: Any, offs: Tensor | None = None, *, targets: Targets, **_: Any) -> Iterator[Use]:
    """Yield the uses of a batch of matrices, each by its own rows of `x`, which end at `offs`."""
    part = _part(matrix, targets)
    if part is None or matrix.dim() != 3 or x.dim() != 2 or offs is None:
        return
    target, first, _count, on_rows = part
    start = 0
    for number, end in enumerate(offs.tolist()):
        rows = slice(start, end)
        yield Use(target, [x[rows]], on_rows, first + number, 1, _taken(rows))
        start = end


def _taken(rows: slice) -> Callable[[Tensor], Vectors]:
    return lambda gradient: [gradient[rows]]


def _of_einsum(equation: str, *operands: Any, targets: Targets) -> Iterator[Use]:
    """Yield the use of a whole weight as one of two operands, whose rows or columns are summed over."""
    letters, arrow, result = equation.replace(" ", "").partition("->")
    terms = letters.split(",")
    if not arrow or len(operands) != 2 or "." in equation:
        return
    for (x, own), (weight, of_weight) in (zip(operands, terms), zip(operands[::-1], terms[::-1])):
        if (target := targets.whole(weight)) is None or not weight.is_contiguous():
            continue
        numbers = [math.prod(weight.shape[:axis]) for axis in range(weight.dim() + 1)]
        starts = numbers.index(target.products), numbers.index(target.products * target.rows)
        products, rows, columns = of_weight[: starts[0]], of_weight[starts[0] : starts[1]], of_weight[starts[1] :]
        summed, kept = (rows, columns) if columns[0] in result else (columns, rows)
        positions = "".join(letter for letter in own if letter not in products + summed)
        each = products if set(products) <= set(own) else ""
        if {*own} != {*each, *positions, *summed} or {*result} != {*products, *positions, *kept}:
            continue

        def arranged(tensor: Tensor, terms: str, lead: str, last: str, positions: str = positions) -> Tensor:
            parts = torch.einsum(f"{terms}->{lead}{positions}{last}", tensor)
            parts = parts.flatten(0, len(lead) - 1) if lead else parts
            return parts.reshape(*parts.shape[: bool(lead)], -1, math.prod(tensor.shape[terms.index(i)] for i in last))

        vectors = arranged(x, own, each, summed)
        after = partial(arranged, terms=result, lead=products, last=kept)
        yield Use(target, [vectors], summed == rows, 0, target.products, _one(after))


def _one(after: Callable[..., Tensor]) -> Callable[[Tensor], Vectors]:
    return lambda gradient: [after(gradient)]


def _part(matrix: Any, targets: Targets) -> tuple[Target, int, int, bool] | None:
    """Return the weight whose matrices a right factor ([count,] a, b) is, from which one on, how many, and whether `a`
    counts their rows; None where it is no weight or cuts through the matrices of one.
    """
    target = targets.find(matrix)
    if target is None or matrix.dim() not in (2, 3) or not target.tensor.is_contiguous():
        return None
    size = target.tensor.numel() // target.products
    columns = size // target.rows
    first, rest = divmod(matrix.storage_offset() - target.tensor.storage_offset(), size)
    if rest or (matrix.dim() == 3 and matrix.shape[0] > 1 and matrix.stride(0) != size):
        return None
    (a, b), strides = matrix.shape[-2:], matrix.stride()[-2:]
    if strides == (columns, 1) and (a, b) == (target.rows, columns):
        return target, first, matrix.shape[0] if matrix.dim() == 3 else 1, True
    if strides == (1, columns) and a == columns and b % target.rows == 0:
        if matrix.dim() == 2:
            return target, first, b // target.rows, False
        return (target, first, matrix.shape[0], False) if b == target.rows else None
    return None


def undispatched(func: Any) -> Any:
    """Return a function of PyTorch's that is written in Python, without the lines that hand it to modes as a whole.

    What it calls is then seen.
    """
    names = {**func.__globals__, "has_torch_function": lambda arguments: False}
    bare = types.FunctionType(func.__code__, names, func.__name__, func.__defaults__, func.__closure__)
    bare.__kwdefaults__ = func.__kwdefaults__
    return bare


# The names of the arguments, in order, of the functions that apply a whole weight.
_OF_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_OF_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
_CONVOLUTIONS = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_ARGUMENTS: Mapping[Any, tuple[str, ...]] = {
    F.linear: ("input", "weight", "bias"),
    F.embedding: ("input", "weight"),
    F.embedding_bag: ("input", "weight"),
    **dict.fromkeys(_CONVOLUTIONS, _OF_CONVOLUTION),
    **dict.fromkeys(_TRANSPOSED, _OF_TRANSPOSED),
}
_OF_LAYERS: Mapping[Any, Callable[[Target, Mapping[str, Any]], Use]] = {
    F.linear: _of_linear,
    F.embedding: _of_lookup,
    F.embedding_bag: _of_lookup,
    **dict.fromkeys(_CONVOLUTIONS, _of_convolution),
    **dict.fromkeys(_TRANSPOSED, _of_transposed),
}

# Products of two arguments, which in some functions come after a summand.
_ADDED = (torch.addmm, torch.baddbmm, Tensor.addmm, Tensor.baddbmm)
_PRODUCTS = frozenset(
    (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm, Tensor.__matmul__, *_ADDED)
)
_RAGGED = frozenset(getattr(torch, name) for name in ("_grouped_mm",) if hasattr(torch, name))

APPLYING = frozenset((*_ARGUMENTS, *_PRODUCTS, *_RAGGED, *LAYERS, *CELLS, torch.einsum))
