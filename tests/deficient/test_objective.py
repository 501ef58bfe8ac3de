"""Distillation, attention transfer and auxiliary losses against values computed by hand."""

import pytest
import torch
from deficient.objective import Objective, attention_loss, attention_map, distillation_loss
from deficient.outputs import Outputs
from torch import nn

STUDENT = torch.tensor([[1.0, 2, 3], [0, 1, 0]])
TEACHER = torch.tensor([[3.0, 2, 1], [1, 0, 0]])
LABELS = torch.tensor([2, 1])


@pytest.mark.parametrize(
    ("temperature", "alpha", "expected"), [(4, 0, 0.479525), (4, 0.5, 0.517359), (4, 0.9, 0.547626), (1, 0.5, 0.492195)]
)
def test_distillation(temperature, alpha, expected):
    assert distillation_loss(STUDENT, TEACHER, LABELS, temperature, alpha).item() == pytest.approx(expected, abs=1e-6)


def test_distillation_per_image():
    alone = distillation_loss(STUDENT, TEACHER, LABELS, 4, 1.0, "batchmean")
    assert alone.item() == pytest.approx(2 * 16 * 0.1040986 / 2, abs=1e-5)


def test_attention():
    features = torch.arange(24.0).view(2, 3, 2, 2)
    maps = attention_map(features)
    expected = [[0.3035, 0.4059, 0.5311, 0.6790], [0.4159, 0.4674, 0.5220, 0.5797]]
    torch.testing.assert_close(maps, torch.tensor(expected), rtol=0, atol=1e-4)
    flipped = features.flip(1, 2)
    assert torch.nn.functional.mse_loss(maps, attention_map(flipped)).item() == pytest.approx(0.0375669, abs=1e-6)
    assert attention_loss([features] * 3, [flipped] * 3, 10.0).item() == pytest.approx(10 * 3 * 0.0375669, abs=1e-4)
    assert attention_loss([features] * 6, [flipped] * 6, 10.0).item() == pytest.approx(10 * 3 * 0.0375669, abs=1e-4)
    assert attention_map(torch.zeros(1, 2, 2, 2)).abs().max() == 0


class Fixed(nn.Module):
    """Returns the same logits, taps and auxiliary logits whatever comes in."""

    def __init__(self, logits, auxiliary=None):
        super().__init__()
        self.outputs = Outputs(logits, [torch.arange(24.0).view(2, 3, 2, 2)], auxiliary)

    def forward(self, images, full=False):
        return self.outputs if full else self.outputs.logits


def test_objective():
    cross_entropy = torch.nn.functional.cross_entropy
    images = torch.zeros(2, 3, 4, 4)
    student, teacher = Fixed(STUDENT, TEACHER), Fixed(TEACHER).eval()
    main, extra = cross_entropy(STUDENT, LABELS).item(), cross_entropy(TEACHER, LABELS).item()
    loss, logits = Objective()(student, images, LABELS)
    assert loss.item() == pytest.approx((main + extra) / 2) and logits is student.outputs.logits
    assert Objective(auxiliary_weight=0.4)(student, images, LABELS)[0].item() == pytest.approx(main + 0.4 * extra)
    assert Objective(teacher, beta=9.0)(Fixed(STUDENT), images, LABELS)[0].item() == pytest.approx(main)
    taught = Objective(teacher, alpha=0.5)(Fixed(STUDENT), images, LABELS)[0]
    assert taught.item() == pytest.approx(0.517359, abs=1e-6)
    assert Objective(teacher, alpha=0.5)(Fixed(STUDENT).eval(), images, LABELS)[0].item() == pytest.approx(main)
