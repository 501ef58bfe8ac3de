"""What all factorized layers share: a weight made of factors, its decay, the way from a dense layer and back."""

import warnings
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import cost


class FactorizedLayer(nn.Module):
    """A layer whose weight is a function of factors.

    Code that reads `layer.weight`, its dtype or its device works as with a dense layer, and gradients reach the
    factors. Each access composes the weight anew, so changing it in place changes nothing.

    Attributes:
        bias: parameter, or None.
        path: `auto`, `composed` or `two_step`; see `factorized.cost`. It changes speed and memory, never the function.
        kernel_decay: Frobenius decay that the backward pass adds to the gradient of the composed weight, or None.
            Set by `FrobeniusDecay.attach(in_backward=True)`.
        channels_last: whether the dense layer that `to_dense` returns has that memory format.
    """

    bias: nn.Parameter | None

    def __init__(self, path: str, channels_last: bool = False):
        super().__init__()
        if path not in cost.PATHS:
            raise ValueError(f"path must be one of {', '.join(cost.PATHS)}, not {path!r}")
        self.path = path
        self.channels_last = channels_last
        self.kernel_decay: KernelDecay | None = None

    # -- what subclasses say -----------------------------------------------------------------------------------------

    @abstractmethod
    def factors(self) -> tuple[Tensor, ...]:
        """Return the factor tensors, in product order if the weight is their product."""
        raise NotImplementedError

    @abstractmethod
    def composed_weight(self) -> Tensor:
        """Return the weight, in the shape of the dense layer's, in the factors' own precision even under autocast."""
        raise NotImplementedError

    @abstractmethod
    def assign(self, weight: Tensor) -> None:
        """Overwrite the factors, in place, by those of a weight that they can hold up to rounding; refuse any other."""
        raise NotImplementedError

    @abstractmethod
    def _empty_dense(self, **options) -> nn.Module:
        """Return a dense layer with the hyper-parameters of this one, and any weight and bias.

        Args:
            options: its device and dtype.
        """
        raise NotImplementedError

    def _steps(self, **options) -> Sequence[tuple[nn.Module, Tensor]]:
        """Return plain layers that compute the same function one after the other, each with the weight it is to have.

        Empty where there are none. The bias is left to the last one.

        Args:
            options: their device and dtype.
        """
        return ()

    @abstractmethod
    def compute(self, x: Tensor) -> Tensor:
        """Return the layer's output for an input."""
        raise NotImplementedError

    @abstractmethod
    def multiply_adds(self, shape: Sequence[int]) -> int:
        """Return the multiply-adds of one call on an input of this shape, along the path it takes."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output for an input; see the class for the shapes."""
        if isinstance(x, torch.fx.Proxy) and x.tracer.root is not self:
            # A symbolic trace keeps the layer whole, as it keeps PyTorch's own: its copy can be decayed and merged.
            return x.tracer.create_proxy("call_module", x.tracer.path_of_module(self), (x,), {})
        return self.compute(x)

    # -- the weight --------------------------------------------------------------------------------------------------

    @property
    def weight(self) -> Tensor:
        """The composed weight, in the shape of the dense layer's.

        A weight assigned to it overwrites the factors if they can hold it, as after batch norm is folded; any other is
        an error, and changes nothing.
        """
        return with_decay(self.composed_weight(), self.kernel_decay)

    def __setattr__(self, name: str, value) -> None:
        if name == "weight":  # nn.Module would register a parameter of this name, or refuse to
            if not isinstance(value, Tensor):
                raise TypeError(f"the weight of a factorized layer is a tensor, not {value!r}")
            if value.shape != (shape := self.composed_weight().shape):
                raise ValueError(f"the weight has the shape {tuple(shape)}, not {tuple(value.shape)}")
            self.assign(value.detach())
            return
        if name == "qconfig":  # set on every module by torch.ao.quantization, which then goes by its type
            warnings.warn(
                "quantization knows nothing of factorized layers and leaves them as they are; "
                "to quantize their weights, call factorized.merge(model) before",
                stacklevel=2,
            )
        super().__setattr__(name, value)

    @property
    def memory_format(self) -> torch.memory_format:
        """The memory format of the dense layer that `to_dense` returns."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    # -- from a dense layer and back ---------------------------------------------------------------------------------

    @torch.no_grad()
    def _take_over(self, dense: Any) -> None:
        """Take over the dense layer's bias (copied), `requires_grad` of weight and bias, and training mode."""
        for parameter in self.parameters():
            parameter.requires_grad_(dense.weight.requires_grad)
        if self.bias is not None:
            self.bias.copy_(dense.bias)
            self.bias.requires_grad_(dense.bias.requires_grad)
        self.train(dense.training)

    @torch.no_grad()
    def to_dense(self) -> nn.Module:
        """Return a plain layer of PyTorch's that computes the same function."""
        weight = self.composed_weight()
        dense: Any = self._empty_dense(device=weight.device, dtype=weight.dtype)
        dense.weight.copy_(weight)
        dense.weight.requires_grad_(any(factor.requires_grad for factor in self.factors()))
        if self.bias is not None:
            dense.bias.copy_(self.bias)
            dense.bias.requires_grad_(self.bias.requires_grad)
        return dense.to(memory_format=self.memory_format).train(self.training)

    @torch.no_grad()
    def to_steps(self) -> nn.Sequential | None:
        """Return plain layers of PyTorch's, one after the other, that compute the same function.

        None where there is no such form, as for a kernel that is composed as a whole.
        """
        weight = next(self.parameters())
        steps = self._steps(device=weight.device, dtype=weight.dtype)
        if not steps:
            return None
        for layer, value in steps:
            own: Any = layer.weight
            own.copy_(value.reshape(own.shape)).requires_grad_(weight.requires_grad)
        last: Any = steps[-1][0]
        if self.bias is not None:
            last.bias.copy_(self.bias).requires_grad_(self.bias.requires_grad)
        layers = nn.Sequential(*(layer for layer, _ in steps))
        return layers.to(memory_format=self.memory_format).train(self.training)


class KernelDecay:
    """Frobenius decay of one layer's weight that a backward pass adds, where it composes the weight.

    Copies of the layer are without it, since the optimizer that it belongs to does not update them.

    Attributes:
        coefficient: what the weight is multiplied by when it is added to its gradient.
        mark: a leaf of no dimension. Its gradient is how often backward passes have added the decay, None for never: a
            compiled program, too, can tell that, without a word to Python or the host.
    """

    def __init__(self, coefficient: float, device: torch.device):
        self.coefficient = coefficient
        self.mark = torch.zeros((), device=device, requires_grad=True)

    def __reduce__(self):
        return type(None), ()


def with_decay(weight: Tensor, decay: KernelDecay | None) -> Tensor:
    """Return `weight`, with `decay` added to its gradient in the backward pass."""
    if decay is not None and torch.is_grad_enabled():
        return _DecayInBackward.apply(weight, decay.mark, decay.coefficient)
    return weight


class _DecayInBackward(torch.autograd.Function):
    """The identity on a weight, whose backward adds the gradient of `coefficient / 2 * |weight|_F^2`."""

    @staticmethod
    def forward(ctx, weight: Tensor, mark: Tensor, coefficient: float) -> Tensor:
        ctx.save_for_backward(weight, mark)
        ctx.coefficient = coefficient
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        weight, mark = ctx.saved_tensors
        return torch.add(gradient, weight, alpha=ctx.coefficient), torch.ones_like(mark), None


_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def weight_obstacle(layer: Any) -> str | None:
    """Return why no layer can be made of `layer`'s weight, whatever its kind, or None."""
    weight = layer.weight
    if isinstance(weight, nn.parameter.UninitializedParameter):
        return "its size is not known yet: run one batch through the model first"
    if not isinstance(weight, Tensor) or weight.is_quantized:
        return "its weight is quantized"
    if type(weight) not in (Tensor, nn.Parameter):
        return f"its weight is a {type(weight).__name__}, not a plain tensor"
    if weight.dtype not in _DTYPES:
        return f"its weight is not of real floating-point numbers but of {str(weight.dtype).removeprefix('torch.')}"
    if weight.numel() == 0:
        return f"its weight is empty, of shape {tuple(weight.shape)}"
    return None


# The formats that have the channels last, by the number of a tensor's dimensions.
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def is_channels_last(weight: Tensor) -> bool:
    """Tell whether a kernel of two or three dimensions is in that memory format and no other."""
    is_other = weight.dim() not in CHANNELS_LAST or weight.is_contiguous()
    return not is_other and weight.is_contiguous(memory_format=CHANNELS_LAST[weight.dim()])
