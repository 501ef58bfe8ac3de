"""The factorized 2-D convolution.

The kernel `K` of shape (out, in/groups, kh, kw) is seen as a matrix with a row for every (output channel, vertical
position) and a column for every (input channel, horizontal position):

    K[o, c, i, j] = W[o * kh + i, c * kw + j],     W = U VT  of shape (out * kh, in/groups * kw)

so that a product of factors is also a pair of convolutions, 1 x kw with `VT` into `rank` channels and kh x 1 with `U`:

    x --- VT (horizontal, stride sw) ---> rank channels --- U (vertical, stride sh) ---> y
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import compose_cost
from .base import is_channels_last
from .product import ProductLayer


class FactorizedConv2d(ProductLayer):
    """A 2-D convolution whose kernel is a product of factors (Khodak et al. 2021, section 2).

    Maps (batch, in_channels, height, width) to (batch, out_channels, new height, new width).
    Parameters: `rank * (out * kh + in/groups * kw)`, plus `rank^2` if square, plus the bias. A grouped convolution
    always takes the composed path, because its horizontal half would mix the groups. The factors
    start Kaiming normal; `from_dense` can start them from a layer's weight.

    Raises:
        ValueError: for the two-step path with groups, or padding "same" that is not symmetric.
    """

    dense_type = nn.Conv2d

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        rank: int,
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        square: bool = False,
        path: str = "auto",
        memory_format: torch.memory_format = torch.contiguous_format,
        device=None,
        dtype=None,
    ):
        if groups > 1 and path == "two_step":
            raise ValueError("a grouped convolution has no two-step path")
        kh, kw = pair(kernel_size)
        super().__init__(
            out_channels * kh, in_channels // groups * kw, rank, outputs=out_channels, bias=bias, square=square,
            path="composed" if groups > 1 else path, channels_last=memory_format == torch.channels_last, device=device,
            dtype=dtype,
        )  # fmt: skip
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel_size = (kh, kw)
        self.stride = pair(stride)
        self.dilation = pair(dilation)
        self.padding = numeric_padding(padding, self.kernel_size, self.dilation)
        self.groups = groups

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        if (obstacle := super().obstacle(layer)) or not isinstance(layer, nn.Conv2d):
            return obstacle
        if layer.padding_mode != "zeros":
            return f"padding mode {layer.padding_mode!r}; only 'zeros' is supported"
        try:
            numeric_padding(layer.padding, layer.kernel_size, layer.dilation)
        except ValueError as error:
            return str(error)
        return None

    @classmethod
    def as_matrix(cls, weight: Tensor) -> Tensor:
        """Return a kernel (out, in/groups, kh, kw) as the matrix of the module docstring."""
        out, within, kh, kw = weight.shape
        return weight.transpose(1, 2).reshape(out * kh, within * kw)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Return the kernel (out, in/groups, kh, kw) of a matrix."""
        kh, kw = self.kernel_size
        return matrix.view(self.out_channels, kh, -1, kw).transpose(1, 2)

    @staticmethod
    def matrix_shape(layer: nn.Conv2d) -> tuple[int, int]:
        """Return the shape of `matrix_of(layer)`."""
        kh, kw = layer.kernel_size
        return layer.out_channels * kh, layer.in_channels // layer.groups * kw

    @staticmethod
    def scaled_dimension(layer: nn.Conv2d) -> int:
        """Return what a rank scale is a fraction of: the rows out * kh, even where there are fewer columns."""
        return layer.out_channels * layer.kernel_size[0]

    @classmethod
    def _like(cls, layer: nn.Conv2d, **options) -> "FactorizedConv2d":
        return nn.utils.skip_init(
            cls, layer.in_channels, layer.out_channels, layer.kernel_size, stride=layer.stride, padding=layer.padding,
            dilation=layer.dilation, groups=layer.groups, bias=layer.bias is not None,
            memory_format=torch.channels_last if is_channels_last(layer.weight) else torch.contiguous_format, **options,
        )  # fmt: skip

    def _empty_dense(self, **options) -> nn.Conv2d:
        return nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, self.bias is not None, **options,
        )  # fmt: skip

    def typical_shape(self) -> tuple[int, ...]:
        return 128, self.in_channels, 32, 32

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of shape (batch, in_channels, height, width)."""
        batch = shape[0] if len(shape) == 4 else 1
        height, width = shape[-2:]
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel_size, self.stride, self.padding, self.dilation
        new_height = (height + 2 * ph - dh * (kh - 1) - 1) // sh + 1
        new_width = (width + 2 * pw - dw * (kw - 1) - 1) // sw + 1
        rows, columns = self.out_channels * kh, self.in_channels // self.groups * kw
        between = batch * (new_height if kh == 1 and ph == 0 else height) * new_width
        after = batch * new_height * new_width
        return {
            "compose": compose_cost(rows, columns, self.rank, self.M is not None),
            "dense": after * rows * columns,  # columns already count one group's channels times kw; rows hold kh
            "steps": self.rank * (between * columns + after * rows),
            "intermediate": self.rank * between,
        }

    def compute(self, x: Tensor) -> Tensor:
        if self._choose(x) == "composed":
            kernel = self.weight
            return F.conv2d(x, kernel, self.bias, self.stride, self.padding, self.dilation, self.groups)
        (kh, kw), (sh, sw), (ph, pw), (dh, dw) = self.kernel_size, self.stride, self.padding, self.dilation
        # Where the kernel has one row or column, what strides skip is left out first. That is less work, and avoids
        # strided 1 x 1 convolutions: in channels-last order, oneDNN writes the gradient of their weight past its end
        # where 8 does not divide the number of input channels (seen in PyTorch 2.14 on a CPU with AVX2).
        if kh == 1 and ph == 0 and sh > 1:
            x, sh = x[..., ::sh, :], 1
        if kw == 1 and pw == 0 and sw > 1:
            x, sw = x[..., ::sw], 1
        horizontal = self.right().view(self.rank, self.in_channels, 1, kw)
        # Contiguous: in channels-last order a CPU's bfloat16 gradient can fail otherwise (seen in PyTorch 2.14, AVX2).
        vertical = self.U.view(self.out_channels, kh, self.rank).transpose(1, 2).unsqueeze(3).contiguous()
        x = F.conv2d(x, horizontal, None, (1, sw), (0, pw), (1, dw))
        return F.conv2d(x, vertical, self.bias, (sh, 1), (ph, 0), (dh, 1))

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, groups={self.groups}, {super().extra_repr()}"
        )


def pair(value: int | tuple[int, int]) -> tuple[int, int]:
    """Return a number given for both axes, or for each, as two numbers."""
    return (value, value) if isinstance(value, int) else tuple(value)


def numeric_padding(padding, kernel_size: tuple[int, int], dilation: tuple[int, int]) -> tuple[int, int]:
    """Return the padding as two numbers: "valid" is 0, "same" is half the kernel's reach where that is whole."""
    if not isinstance(padding, str):
        return pair(padding)
    if padding == "valid":
        return (0, 0)
    reach = [d * (k - 1) for d, k in zip(dilation, kernel_size)]
    if padding != "same" or any(total % 2 for total in reach):
        raise ValueError(f"padding {padding!r} with kernel {kernel_size} and dilation {dilation} is not symmetric")
    return (reach[0] // 2, reach[1] // 2)
