"""Learning rates of every epoch."""

import pytest
import trainer

from tests.harness import events
from tests.resnet import tiny

RATES = {
    ("resnet20", 200): [0.1] * 100 + [0.01] * 50 + [0.001] * 50,
    ("resnet20", 12): [0.1] * 6 + [0.01] * 3 + [0.001] * 3,
    ("resnet20", 3): [0.1, 0.01, 0.001],
    ("resnet56", 8): [0.01] + [0.1] * 3 + [0.01] * 2 + [0.001] * 2,
    ("resnet110", 200): [0.01] + [0.1] * 99 + [0.01] * 50 + [0.001] * 50,
    ("resnet1202", 4): [0.01, 0.1, 0.01, 0.001],
    # Unlike the 2021 code, which ran these at a hundredth of the rate from the start or after one epoch.
    ("resnet20", 2): [0.1, 0.01],
    ("resnet20", 1): [0.1],
    ("resnet56", 1): [0.01],
    ("resnet56", 2): [0.01, 0.01],
}


@pytest.mark.parametrize("arch, epochs", RATES)
def test_rates(arch, epochs):
    args = trainer.build_parser().parse_args(["--arch", arch, "--epochs", str(epochs)])
    assert [trainer.learning_rate(args, epoch) for epoch in range(epochs)] == pytest.approx(RATES[arch, epochs])


def test_other_base_rates():
    args = trainer.build_parser().parse_args(["--arch", "resnet32", "--epochs", "4", "--learning-rate", "0.5"])
    assert [trainer.learning_rate(args, epoch) for epoch in range(4)] == pytest.approx([0.5, 0.5, 0.05, 0.005])


def test_the_optimizer_runs_at_these_rates(folder, monkeypatch):
    """Both groups, in every step; the event log shows the rate of the epoch that follows, and the last one again."""
    used = []
    step = trainer.torch.optim.SGD.step

    def watched(self, *args, **kwargs):
        used.append([group["lr"] for group in self.param_groups])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(trainer.torch.optim.SGD, "step", watched)
    tiny.train(folder, "--epochs", "4", *tiny.FACTORIZED)
    expected = [0.1, 0.1, 0.01, 0.001]
    assert used == [pytest.approx([rate, rate]) for rate in expected for _ in range(3)]
    assert events(folder)["hyper/lr"] == ([0, 1, 2, 3, 4], pytest.approx([*expected, 0.001]))
