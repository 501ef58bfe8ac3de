"""Training losses: cross-entropy, and knowledge distillation with attention transfer from a teacher.

Distillation after Hinton et al. 2015 (https://arxiv.org/abs/1503.02531), attention transfer after Zagoruyko and
Komodakis 2017 (https://arxiv.org/abs/1612.03928).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .outputs import Outputs


def attention_map(features: Tensor) -> Tensor:
    """Return the channels' mean square at every pixel, normalized per image, shape (batch, height * width)."""
    return F.normalize(features.float().square().mean(1).flatten(1))


def attention_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float) -> Tensor:
    """Return the squared differences of attention maps, element means, weighted so that three maps get `beta` each."""
    pairs = zip(student, teacher, strict=True)
    return 3 * beta / len(teacher) * sum(F.mse_loss(attention_map(s), attention_map(t)) for s, t in pairs)


def distillation_loss(
    logits: Tensor, teacher: Tensor, labels: Tensor, temperature: float, alpha: float, reduction: str = "mean"
) -> Tensor:
    """Return `2 alpha T^2 KL(teacher, student) + (1 - alpha) cross-entropy`, both at temperature T in the first term.

    Args:
        reduction: of the divergence: `mean` over images and classes, as in the published experiments, or `batchmean`,
            over images.
    """
    hard = F.cross_entropy(logits, labels)
    if not alpha:
        return hard
    mine, theirs = (F.log_softmax(values.float() / temperature, 1) for values in (logits, teacher))
    divergence = F.kl_div(mine, theirs, reduction="sum", log_target=True)
    soft = divergence / (mine.numel() if reduction == "mean" else len(mine))
    return 2 * alpha * temperature**2 * soft + (1 - alpha) * hard


@dataclass
class Objective:
    """The loss of a network, under a teacher if there is one; plain cross-entropy in evaluation mode.

    Attributes:
        teacher: in evaluation mode, on the device of the images.
        temperature, alpha, reduction: see `distillation_loss`.
        beta: see `attention_loss`; 0 for no attention transfer.
        auxiliary_weight: of the loss of auxiliary logits, added to that of the main ones; None for half and half.
    """

    teacher: nn.Module | None = None
    temperature: float = 4.0
    alpha: float = 0.0
    beta: float = 0.0
    reduction: str = "mean"
    auxiliary_weight: float | None = None

    def __call__(self, model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the mean loss of a batch and the main logits (batch, classes)."""
        if not model.training:
            logits = model(images)
            return F.cross_entropy(logits, labels), logits
        taught = None
        if self.teacher is not None:
            with torch.no_grad():
                taught = self.teacher(images, full=True)
        found = model(images, full=True)
        loss = self._classification(found.logits, taught, labels)
        if found.auxiliary is not None:
            extra = self._classification(found.auxiliary, taught, labels)
            weight = self.auxiliary_weight
            loss = (loss + extra) / 2 if weight is None else loss + weight * extra
        if taught is not None and self.beta:
            loss = loss + attention_loss(found.taps, taught.taps, self.beta)
        return loss, found.logits

    def _classification(self, logits: Tensor, taught: Outputs | None, labels: Tensor) -> Tensor:
        if taught is None:
            return F.cross_entropy(logits, labels)
        return distillation_loss(logits, taught.logits, labels, self.temperature, self.alpha, self.reduction)
