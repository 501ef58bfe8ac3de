"""Factorized convolutions; of two dimensions, the paper's.

The kernel `K` of shape (out, in/groups, kh, kw) is seen as a matrix with a row for every (output channel, vertical
position) and a column for every (input channel, horizontal position):

    K[o, c, i, j] = W[o * kh + i, c * kw + j],     W = U VT  of shape (out * kh, in/groups * kw)

so that a product of factors is also a pair of convolutions, 1 x kw with `VT` into `rank` channels and kh x 1 with `U`:

    x --- VT (horizontal, stride sw) ---> rank channels --- U (vertical, stride sh) ---> y
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import compose_cost
from .base import is_channels_last
from .product import ProductLayer

A_DEPTHWISE_ONE = "a depthwise one: a grouped convolution of one channel each"


def no_smaller(shape: Sequence[int]) -> str:
    """Return, in words, why a weight that is such a matrix stays dense."""
    return f"as a matrix {'x'.join(map(str, shape))} it is no smaller as a product"


class FactorizedConv(ProductLayer):
    """A convolution whose kernel, as a matrix, is a product of factors; what all of them have in common.

    Maps (batch, in_channels, sizes...) to (batch, out_channels, new sizes...). Of a grouped one every group is a
    product of its own, all of one rank: `U` is (groups, m, rank), `VT` (groups, rank, n), and two steps are two grouped
    convolutions, with `groups * rank` channels between them. The factors start Kaiming normal; `from_dense` can start
    them from a layer's weight.

    Raises:
        ValueError: for padding "same" that is not symmetric.
    """

    dense_type: type[nn.Conv1d] | type[nn.Conv2d] | type[nn.Conv3d]
    dimensions: int
    """The number of dimensions of an image, without batch and channels."""
    convolve: Callable[..., Tensor]
    """The functional form of `dense_type`."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        rank: int,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        square: bool = False,
        path: str = "auto",
        memory_format: torch.memory_format = torch.contiguous_format,
        device=None,
        dtype=None,
    ):
        kernel = per_axis(kernel_size, self.dimensions)
        super().__init__(
            *self.sides(out_channels // groups, in_channels // groups, kernel), rank, products=groups,
            outputs=out_channels, bias=bias, square=square, path=path,
            channels_last=memory_format != torch.contiguous_format, device=device, dtype=dtype,
        )  # fmt: skip
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = kernel
        self.stride = per_axis(stride, self.dimensions)
        self.dilation = per_axis(dilation, self.dimensions)
        self.padding = numeric_padding(padding, self.kernel_size, self.dilation)
        self.groups = groups

    @staticmethod
    @abstractmethod
    def sides(outputs: int, inputs: int, kernel: Sequence[int]) -> tuple[int, int]:
        """Return (m, n) of the matrix of a kernel of `outputs` channels, each of `inputs` channels."""
        raise NotImplementedError

    @classmethod
    def obstacle(cls, layer: Any) -> str | None:
        if obstacle := super().obstacle(layer):
            return obstacle
        if layer.padding_mode != "zeros":
            return f"padding mode {layer.padding_mode!r}; only 'zeros' is supported"
        try:
            numeric_padding(layer.padding, layer.kernel_size, layer.dilation)
        except ValueError as error:
            return str(error)
        if layer.groups > 1 and layer.in_channels == layer.groups:
            return A_DEPTHWISE_ONE
        if layer.groups > 1 and min(shape := cls.matrix_shape(layer)) == 1:
            return no_smaller(shape)
        return None

    @classmethod
    def matrix_shape(cls, layer: Any) -> tuple[int, int]:
        """Return the shape (m, n) of each group's matrix."""
        return cls.sides(layer.out_channels // layer.groups, layer.in_channels // layer.groups, layer.kernel_size)

    @staticmethod
    def product_count(layer: Any) -> int:
        """Return the number of groups."""
        return layer.groups

    @classmethod
    @abstractmethod
    def as_matrix(cls, weight: Tensor, groups: int = 1) -> Tensor:
        """Return a kernel (out, in/groups, ...) as the matrix ([groups,] m, n) that the factors multiply out to."""
        raise NotImplementedError

    @classmethod
    def matrix_of(cls, layer: Any) -> Tensor:
        """Return the kernel of a dense layer as a matrix ([groups,] m, n)."""
        return cls.as_matrix(layer.weight, layer.groups)

    def assign(self, weight: Tensor) -> None:
        self.set_product(self.as_matrix(weight, self.groups))

    def _group_sides(self) -> tuple[int, int]:
        """Return (m, n) of each group's matrix."""
        return self.sides(self.out_channels // self.groups, self.in_channels // self.groups, self.kernel_size)

    @classmethod
    def _like(cls, layer: Any, **options) -> "FactorizedConv":
        last = torch.channels_last_3d if cls.dimensions == 3 else torch.channels_last
        return nn.utils.skip_init(
            cls, layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=layer.groups, bias=layer.bias is not None,
            memory_format=last if is_channels_last(layer.weight) else torch.contiguous_format, **options,
        )  # fmt: skip

    def _empty_dense(self, **options) -> nn.Module:
        return nn.utils.skip_init(
            self.dense_type, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding,
            self.dilation, self.groups, self.bias is not None, **options,
        )  # fmt: skip

    def _new_sizes(self, shape: Sequence[int]) -> list[int]:
        """Return the sizes of the output's images for an input of this shape."""
        geometry = zip(shape[-self.dimensions :], self.kernel_size, self.stride, self.padding, self.dilation)
        return [(size + 2 * p - d * (k - 1) - 1) // s + 1 for size, k, s, p, d in geometry]

    def _without_skipped(self, x: Tensor) -> tuple[Tensor, tuple[int, ...]]:
        """Return the input without what strides skip on axes where the kernel has one entry, and what strides remain.

        That is less work, and avoids strided 1 x 1 convolutions: in channels-last order, oneDNN writes the gradient of
        their weight past its end where 8 does not divide the number of input channels (seen in PyTorch 2.14 on a CPU
        with AVX2).
        """
        geometry = zip(self.kernel_size, self.padding, self.stride)
        steps = [s if k == 1 and p == 0 else 1 for k, p, s in geometry]
        if all(step == 1 for step in steps):
            return x, self.stride
        kept: Any = (..., *(slice(None, None, step) for step in steps))
        return x[kept], tuple(s // step for s, step in zip(self.stride, steps))

    def _composed(self, x: Tensor) -> Tensor:
        return self.convolve(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {super().extra_repr()}"
        )


class FactorizedConv2d(FactorizedConv):
    """A 2-D convolution whose kernel is a product of factors (Khodak et al. 2021, section 2).

    Maps (batch, in_channels, height, width) to (batch, out_channels, new height, new width); see the module's text.
    Parameters: `rank * (out * kh + in * kw)`, plus `groups * rank^2` if square, plus the bias.
    """

    dense_type = nn.Conv2d
    dimensions = 2
    convolve = staticmethod(F.conv2d)

    @staticmethod
    def sides(outputs: int, inputs: int, kernel: Sequence[int]) -> tuple[int, int]:
        return outputs * kernel[0], inputs * kernel[1]

    @classmethod
    def as_matrix(cls, weight: Tensor, groups: int = 1) -> Tensor:
        """Return a kernel (out, in/groups, kh, kw) as the matrix of the module docstring, or that of every group."""
        batch = () if groups == 1 else (groups,)
        return weight.transpose(1, 2).reshape(*batch, -1, weight.shape[1] * weight.shape[3])

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Return the kernel (out, in/groups, kh, kw) of a matrix."""
        kh, kw = self.kernel_size
        return matrix.view(self.out_channels, kh, -1, kw).transpose(1, 2)

    @classmethod
    def metrics(cls, layer: Any, inputs: Tensor | None, outputs: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Return the metrics of the columns and rows, which see one horizontal line of a patch at a time.

        What is neglected is that the lines of a patch are alike: products of the errors in two of them.
        """
        return metrics_of_lines(inputs, outputs, layer.kernel_size, batched=layer.groups > 1)

    @staticmethod
    def scaled_dimension(layer: nn.Conv2d) -> int:
        """Return what a rank scale is a fraction of: the rows out/groups * kh, even where there are fewer columns."""
        return layer.out_channels // layer.groups * layer.kernel_size[0]

    def typical_shape(self) -> tuple[int, ...]:
        return 128, self.in_channels, 32, 32

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of shape (batch, in_channels, height, width)."""
        batch = shape[0] if len(shape) == 4 else 1
        new_height, new_width = self._new_sizes(shape)
        rows, columns = self._group_sides()
        between = batch * (new_height if self.kernel_size[0] == 1 and self.padding[0] == 0 else shape[-2]) * new_width
        after = batch * new_height * new_width
        return {
            "compose": self.groups * compose_cost(rows, columns, self.rank, self.M is not None),
            "dense": self.groups * after * rows * columns,  # rows hold kh, and columns kw
            "steps": self.groups * self.rank * (between * columns + after * rows),
            "intermediate": self.groups * self.rank * between,
        }

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        between = self.groups * self.rank
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel_size, self.stride, self.padding, self.dilation
        before = sh if kh == 1 and ph == 0 else 1  # rows that the second one would skip
        first = nn.utils.skip_init(
            nn.Conv2d, self.in_channels, between, (1, kw), (before, sw), (0, pw), (1, dw), self.groups, bias=False,
            **options,
        )  # fmt: skip
        second = nn.utils.skip_init(
            nn.Conv2d, between, self.out_channels, (kh, 1), (sh // before, 1), (ph, 0), (dh, 1), self.groups,
            bias=self.bias is not None, **options,
        )  # fmt: skip
        return (first, self.right()), (second, self.U.view(self.out_channels, kh, self.rank).transpose(1, 2))

    def compute(self, x: Tensor) -> Tensor:
        if self._choose(x) == "composed":
            return self._composed(x)
        (kh, kw), (ph, pw), (dh, dw) = self.kernel_size, self.padding, self.dilation
        x, (sh, sw) = self._without_skipped(x)
        horizontal = self.right().view(self.groups * self.rank, self.in_channels // self.groups, 1, kw)
        # Contiguous: in channels-last order a CPU's bfloat16 gradient can fail otherwise (seen in PyTorch 2.14, AVX2).
        vertical = self.U.view(self.out_channels, kh, self.rank).transpose(1, 2).unsqueeze(3).contiguous()
        x = F.conv2d(x, horizontal, None, (1, sw), (0, pw), (1, dw), self.groups)
        return F.conv2d(x, vertical, self.bias, (sh, 1), (ph, 0), (dh, 1), self.groups)


def metrics_of_lines(
    columns: Tensor | None, rows: Tensor | None, kernel_size: Sequence[int], batched: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Return the metrics of the columns and rows of a spatially split kernel, of one horizontal line of a patch.

    Args:
        columns: of whole patches, ([groups,] k, k) or its diagonal ([groups,] k), with `k = channels * kh * kw`.
        rows: of channels, likewise.
        batched: whether groups come first.
    """
    kh, kw = kernel_size
    if columns is not None and columns.shape[-1] % (kh * kw) == 0:
        lead, channels = columns.shape[:batched], columns.shape[-1] // (kh * kw)
        if columns.dim() == 1 + batched:
            columns = columns.view(*lead, channels, kh, kw).mean(-2).flatten(-2)
        else:
            patches = columns.reshape(*lead, channels, kh, kw, channels, kh, kw)
            lines = torch.einsum("...ciadib->...cadb", patches) / kh
            columns = lines.reshape(*lead, channels * kw, channels * kw)
    if rows is not None:
        if rows.dim() == 1 + batched:
            rows = rows.repeat_interleave(kh, dim=-1)
        else:
            alike = rows[..., :, None, :, None] * torch.eye(kh).to(rows)[:, None, :]
            rows = alike.flatten(-2).flatten(-3, -2)
    return columns, rows


def per_axis(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    """Return a number given for all axes, or for each, as one number an axis."""
    return (value,) * dimensions if isinstance(value, int) else tuple(value)


def numeric_padding(
    padding: int | Sequence[int] | str, kernel_size: Sequence[int], dilation: Sequence[int]
) -> tuple[int, ...]:
    """Return the padding as a number an axis: "valid" is 0, "same" is half the kernel's reach where that is whole."""
    if not isinstance(padding, str):
        return per_axis(padding, len(kernel_size))
    if padding == "valid":
        return (0,) * len(kernel_size)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size)]
    if padding != "same" or any(total % 2 for total in reach):
        raise ValueError(f"padding {padding!r} with kernel {kernel_size} and dilation {dilation} is not symmetric")
    return tuple(total // 2 for total in reach)
