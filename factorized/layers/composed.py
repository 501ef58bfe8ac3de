"""Convolutions whose kernel is not a product of two or three matrices but some other function of their factors."""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..protocol import without_autocast
from .base import FactorizedLayer, weight_obstacle, with_decay
from .conv import numeric_padding, per_axis


class ComposedConv2d(FactorizedLayer):
    """A 2-D convolution that composes its kernel from factors in every forward pass.

    Maps (batch, in_channels, height, width) to (batch, out_channels, new height, new width).
    A separable one is a depthwise convolution (`grouped`, absent for 1 x 1 kernels) followed by a pointwise one whose
    (out, in) weight is composed; otherwise the whole kernel, (out, in * kh * kw) as a matrix, is:

        x --- grouped: kh x kw, stride, padding, dilation ---> in channels --- contract(): 1 x 1 ---> y

    Subclasses register their factors and say what these are (`factors`) and how to compose them (`compose`). Frobenius
    decay is that of the composed matrix: the depthwise kernel has no part in it. Nothing is cached: the parameters are
    the only source of the weight, whichever way they come to change.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        bias: bool = True,
        *,
        separable: bool = True,
        path: str = "composed",
        device=None,
        dtype=None,
    ):
        super().__init__(path)
        options = {"device": device, "dtype": dtype}
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.dilation = map(_pair, (kernel_size, stride, dilation))
        self.padding = _pair(numeric_padding(padding, self.kernel_size, self.dilation))
        self.grouped = None
        self._geometry: tuple[Any, Any, Any] = (self.stride, self.padding, self.dilation)
        if separable and self.kernel_size != (1, 1):
            self.grouped = nn.Conv2d(
                in_channels, in_channels, self.kernel_size, *self._geometry, groups=in_channels, bias=False, **options
            )
            self._geometry = (1, 0, 1)
        self._kernel = (out_channels, in_channels, *((1, 1) if separable else self.kernel_size))
        self.bias = nn.Parameter(torch.zeros(out_channels, **options)) if bias else None

    # -- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def compose(self, *factors: Tensor) -> Tensor:
        """Return the weight that tensors shaped like the factors stand for, shape (out, in * kernel entries)."""
        raise NotImplementedError

    @abstractmethod
    def compose_cost(self) -> int:
        """Return the multiply-adds of `compose`."""
        raise NotImplementedError

    # -- from a dense layer ------------------------------------------------------------------------------------------

    @classmethod
    def _like(cls, layer: Any, size: Any, **options) -> Any:
        """Return a layer with the hyper-parameters of a dense one, without any values.

        Args:
            size: what the constructors of classes that are made from dense layers take after the kernel size: a rank or
                a scale.
        """
        return nn.utils.skip_init(
            cls, layer.in_channels, layer.out_channels, layer.kernel_size, size, layer.stride, layer.padding,
            layer.dilation, layer.bias is not None, **options,
        )  # fmt: skip

    @classmethod
    def obstacle(cls, layer: nn.Module) -> str | None:
        """Return why this class cannot stand for `layer`, or None."""
        if not isinstance(layer, nn.Conv2d):
            return "it is not a torch.nn.Conv2d"
        if layer.groups > 1 or layer.padding_mode != "zeros":
            return (
                f"it has groups {layer.groups}, padding of mode {layer.padding_mode!r}; only one group and zero "
                "padding are supported"
            )
        try:
            numeric_padding(layer.padding, layer.kernel_size, layer.dilation)
        except ValueError as error:
            return str(error)
        return weight_obstacle(layer)

    # -- the protocol ------------------------------------------------------------------------------------------------

    def contract(self) -> Tensor:
        """Return the composed matrix, in the factors' own precision even under autocast."""
        factors = self.factors()
        with without_autocast(factors[0].device):
            return self.compose(*factors)

    def composed_weight(self) -> Tensor:
        return self._whole(self.contract())

    @property
    def weight(self) -> Tensor:
        """The kernel of the whole layer, shape (out_channels, in_channels, kh, kw). It cannot be assigned to."""
        return self._whole(with_decay(self.contract(), self.kernel_decay))

    def _whole(self, matrix: Tensor) -> Tensor:
        kernel = matrix.view(self._kernel)
        return kernel if self.grouped is None else kernel * self.grouped.weight.transpose(0, 1)

    def assign(self, weight: Tensor) -> None:
        raise AttributeError(
            f"the weight of a {type(self).__name__} is composed of its factors and cannot be assigned; assign those, "
            "or make a plain layer of it with to_dense()"
        )

    def _empty_dense(self, **options) -> nn.Conv2d:
        return nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            bias=self.bias is not None, **options,
        )  # fmt: skip

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        if self.grouped is None:
            return ()
        depthwise = nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.in_channels, self.kernel_size, self.stride, self.padding, self.dilation,
            groups=self.in_channels, bias=False, **options,
        )  # fmt: skip
        pointwise = nn.utils.skip_init(
            nn.Conv2d, self.in_channels, self.out_channels, 1, bias=self.bias is not None, **options
        )
        return (depthwise, self.grouped.weight), (pointwise, self.contract())

    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Return the multiply-adds of one call on an input of shape (batch, in_channels, height, width)."""
        pixels = shape[0]
        for size, k, s, p, d in zip(shape[-2:], self.kernel_size, self.stride, self.padding, self.dilation):
            pixels *= (size + 2 * p - d * (k - 1) - 1) // s + 1
        depthwise = 0 if self.grouped is None else self.grouped.weight.numel()
        return self.compose_cost() + pixels * (math.prod(self._kernel) + depthwise)

    def compute(self, x: Tensor) -> Tensor:
        weight = with_decay(self.contract(), self.kernel_decay)
        if self.grouped is not None:
            x = self.grouped(x)
        return F.conv2d(x, weight.view(self._kernel), self.bias, *self._geometry)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, dilation={self.dilation}, bias={self.bias is not None}"
        )


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    first, second = per_axis(value, 2)
    return first, second
