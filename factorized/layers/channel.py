"""Factorized convolutions whose kernels are split between the output channels and all else."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..cost import compose_cost
from .conv import FactorizedConv


class ChannelConv(FactorizedConv):
    """A convolution whose kernel, one row an output channel, is a product of factors.

    The matrix is (out, in/groups * kernel entries), so that the factors are a convolution of the same kernel into
    `rank` channels, and one of a single entry:

        x --- VT (kernel, stride, padding, dilation) ---> rank channels --- U ---> y

    Parameters: `rank * (out + in * kernel entries)`, plus `groups * rank^2` if square, plus the bias.
    """

    @staticmethod
    def sides(outputs: int, inputs: int, kernel: Sequence[int]) -> tuple[int, int]:
        return outputs, inputs * math.prod(kernel)

    @classmethod
    def as_matrix(cls, weight: Tensor, groups: int = 1) -> Tensor:
        return weight.flatten(1) if groups == 1 else weight.reshape(groups, -1, weight[0].numel())

    def as_weight(self, matrix: Tensor) -> Tensor:
        return matrix.view(self.out_channels, self.in_channels // self.groups, *self.kernel_size)

    @classmethod
    def scaled_dimension(cls, layer: Any) -> int:
        """Return what a rank scale is a fraction of: the largest useful rank of a group.

        That is min(out/groups, in/groups * kernel entries).
        """
        return min(cls.matrix_shape(layer))

    def costs(self, shape: Sequence[int]) -> dict[str, int]:
        """Return the arguments of `cost.cheaper_path` for an input of shape (batch, in_channels, sizes...)."""
        pixels = shape[0] if len(shape) == self.dimensions + 2 else 1
        for size in self._new_sizes(shape):
            pixels = pixels * size
        rows, columns = self._group_sides()
        return {
            "compose": self.groups * compose_cost(rows, columns, self.rank, self.M is not None),
            "dense": self.groups * pixels * rows * columns,
            "steps": self.groups * pixels * self.rank * (rows + columns),
            "intermediate": self.groups * pixels * self.rank,
        }

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        between = self.groups * self.rank
        first = nn.utils.skip_init(
            self.dense_type, self.in_channels, between, self.kernel_size, self.stride, self.padding, self.dilation,
            self.groups, bias=False, **options,
        )  # fmt: skip
        second = nn.utils.skip_init(
            self.dense_type, between, self.out_channels, 1, groups=self.groups, bias=self.bias is not None, **options
        )
        return (first, self.right()), (second, self.U)

    def compute(self, x: Tensor) -> Tensor:
        if self._choose(x) == "composed":
            return self._composed(x)
        first = self.right().view(self.groups * self.rank, self.in_channels // self.groups, *self.kernel_size)
        second = self.U.view(self.out_channels, self.rank, *[1] * self.dimensions)
        x, stride = self._without_skipped(x)
        x = self.convolve(x, first, None, stride, self.padding, self.dilation, self.groups)
        return self.convolve(x, second, self.bias, groups=self.groups)


class FactorizedConv1d(ChannelConv):
    """A 1-D convolution whose kernel is a product; maps (batch, in_channels, length) to (batch, out_channels, new)."""

    dense_type = nn.Conv1d
    dimensions = 1
    convolve = staticmethod(F.conv1d)

    def typical_shape(self) -> tuple[int, ...]:
        return 32, self.in_channels, 128


class ChannelConv2d(ChannelConv):
    """A 2-D convolution whose kernel is a product, (out, in/groups * kh * kw) as a matrix.

    Maps (batch, in_channels, height, width) to (batch, out_channels, new height, new width). At the same parameters it
    costs the same multiply-adds as `FactorizedConv2d`, unless strides skip positions, and usually keeps more of a
    trained kernel. `factorize(split="channel")` takes it for `nn.Conv2d`.
    """

    dense_type = nn.Conv2d
    dimensions = 2
    convolve = staticmethod(F.conv2d)

    def typical_shape(self) -> tuple[int, ...]:
        return 128, self.in_channels, 32, 32


class FactorizedConv3d(ChannelConv):
    """A 3-D convolution whose kernel is a product; maps (batch, in_channels, depth, height, width) likewise."""

    dense_type = nn.Conv3d
    dimensions = 3
    convolve = staticmethod(F.conv3d)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the dense layer that `to_dense` returns."""
        return torch.channels_last_3d if self.channels_last else torch.contiguous_format

    def typical_shape(self) -> tuple[int, ...]:
        return 8, self.in_channels, 16, 32, 32
