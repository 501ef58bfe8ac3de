"""The patches of images that convolutions multiply their kernels by."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

CHUNK = 2**22  # numbers of unfolded patches at a time


def patches(x: Tensor, weight: Tensor, call: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the patches that a convolution multiplies its kernel by, (positions, in * kernel entries), in parts.

    Args:
        call: the arguments of the convolution by name.
    """
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
    at_a_time = max(1, CHUNK // max(1, x.select(-spatial - 1, 0).numel()))
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


def without_output_padding(y: Tensor, sizes: Sequence[int], weight: Tensor, call: Mapping[str, Any]) -> Tensor:
    """Return the output of a transposed convolution without what `output_padding` adds.

    Args:
        sizes: of the input's images.
        call: the arguments of the convolution by name.
    """
    kernel = weight.shape[2:]
    spatial = len(kernel)
    stride, dilation = (_per_axis(call.get(name, 1), spatial) for name in ("stride", "dilation"))
    padding = _per_axis(call.get("padding", 0), spatial)
    geometry = zip(sizes, kernel, stride, dilation, padding)
    kept = (slice((size - 1) * step - 2 * p + spread * (k - 1) + 1) for size, k, step, spread, p in geometry)
    part: Any = (..., *kept)
    return y[part]
