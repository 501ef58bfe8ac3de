"""The normalization experiment: record the Frobenius norm of every layer at every step, or impose recorded norms.

Is Frobenius decay only a matter of the layers' norms, that is of the effective step size? A run with decay records
them, and a run without decay is forced to the same norms (Khodak et al. 2021, section 3.2).
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from factorized import FactorizedLayer, frobenius_norms
from lab import checkpoint
from lab.cli import UserError


class NormRecorder:
    """Collects `|U VT|_F` (or `|U M VT|_F`) after every step, single precision, shape (epochs, iterations, layers)."""

    def __init__(self, layers: Sequence[FactorizedLayer], epochs: int, iterations: int):
        self.layers = layers
        self.norms = torch.zeros(epochs, iterations, len(layers), device=layers[0].U.device)

    def after_step(self, epoch: int, iteration: int) -> None:
        """Record the norms as they are now."""
        self.norms[epoch, iteration] = frobenius_norms(self.layers)

    def load(self, path: Path) -> None:
        """Take over what an interrupted run recorded.

        Raises:
            UserError: if the file is missing, damaged, or of another shape.
        """
        self.norms.copy_(_read(path, tuple(self.norms.shape)))

    def save(self, path: Path) -> None:
        """Write the tensor."""
        checkpoint.save(path, self.norms.cpu())


class NormImposer:
    """Rescales `U` and `VT` of every layer by the same number after every step, so that the product has a given norm.

    The balance between the two is kept, and a middle factor `M` is left as it is. Momentum is not touched.
    """

    def __init__(self, layers: Sequence[FactorizedLayer], norms: Tensor):
        self.layers = layers
        self.norms = norms.to(layers[0].U.device)

    @torch.no_grad()
    def after_step(self, epoch: int, iteration: int) -> None:
        """Impose the norms of this step."""
        factors = (self.norms[epoch, iteration] / frobenius_norms(self.layers)).sqrt()
        parameters: list[nn.Parameter] = [p for layer in self.layers for p in (layer.U, layer.VT)]
        torch._foreach_mul_(parameters, [factor for factor in factors.unbind() for _ in range(2)])


def read_norms(path: Path, shape: tuple[int, int, int]) -> Tensor:
    """Return a recorded tensor.

    Raises:
        UserError: if it is not of this shape (epochs, iterations per epoch, layers) or holds anything but norms.
    """
    norms = _read(path, shape)
    if not (norms.isfinite() & (norms > 0)).all():
        raise UserError(f"{path} does not hold positive norms throughout; take the recording of a finished run")
    return norms


def _read(path: Path, shape: tuple[int, int, int]) -> Tensor:
    norms = checkpoint.load(path)
    if not (isinstance(norms, Tensor) and norms.is_floating_point() and tuple(norms.shape) == shape):
        found = f"{norms.dtype} of shape {tuple(norms.shape)}" if isinstance(norms, Tensor) else type(norms).__name__
        raise UserError(
            f"{path} holds {found}, but this run needs floats of shape {shape}: epochs, iterations per epoch, layers"
        )
    return norms
