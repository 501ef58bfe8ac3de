"""Four updates of the golden model: losses, gradient norms and weights as published, for every combination of decay."""

import pytest
import torch
import train as program
from fairseq import optimization
from fairseq.batches import Batch
from fairseq.meter import Meter
from fairseq.schedule import Schedule
from fairseq.trainer import Trainer

from factorized.layers.heads import OutputValue, QueryKey
from lab.devices import Computing
from tests.transformer import golden

RATES = (0.25, 0.25, 0.2, 0.15)
ALL = "--wd2fd --wd2fd-quekey --wd2fd-outval"

# Flags; whether the products of the heads are balanced first; losses in bits, gradient norms, sum of squares.
CASES = {
    "dense, no decay": (
        "", False,
        (4.13784521, 3.99072569, 3.80050386, 3.62281445, 3.47063314),
        (2.14204606, 2.03487138, 1.73879490, 1.72466484), 1538.62706887,
    ),
    "dense, weight decay": (
        "--weight-decay 0.01", False,
        (4.13784521, 3.98486925, 3.78946510, 3.60732956, 3.45603982),
        (2.14204606, 2.03541844, 1.73252348, 1.69509870), 1512.67501068,
    ),
    "dense, Frobenius decay of the heads, weight decay of the rest": (
        "--weight-decay 0.01 --frobenius-decay 0.1 --wd2fd-quekey --wd2fd-outval", False,
        (4.13784521, 3.99294492, 3.80574053, 3.63173928, 3.48623919),
        (2.26711933, 2.18196188, 1.91342716, 1.88653140), 1512.45940880,
    ),
    "factorized, no decay": (
        "--rank-scale 0.5", True,
        (4.26778720, 4.08330185, 3.84730815, 3.62666474, 3.45460564),
        (3.17886577, 2.37960396, 2.28328361, 1.96582562), 338.79862202,
    ),
    "factorized, Frobenius decay of everything": (
        f"--rank-scale 0.5 --frobenius-decay 0.01 {ALL}", True,
        (4.26778720, 4.10214921, 3.90374109, 3.70828860, 3.55318804),
        (3.65602296, 3.00136275, 2.95620958, 2.75121821), 334.69108727,
    ),
    "factorized, Frobenius decay of two-factor layers": (
        "--rank-scale 0.5 --frobenius-decay 0.01 --wd2fd", False,
        (4.26778720, 4.10069927, 3.90053534, 3.70713272, 3.55264192),
        (3.66541800, 3.01537644, 2.95938771, 2.76556124), 335.95068215,
    ),
    "factorized, weight decay": (
        "--rank-scale 0.5 --weight-decay 0.01", False,
        (4.26778720, 4.07879373, 3.84095581, 3.62656517, 3.46211306),
        (3.18979674, 2.37972919, 2.24265739, 2.01410676), 334.26909001,
    ),
}  # fmt: skip


class Rates(Schedule):
    """The rates of the published updates."""

    def after_update(self, updates: int) -> None:
        self.rate = RATES[min(updates, len(RATES) - 1)]


@pytest.mark.parametrize("case", CASES)
def test_published_updates(case):
    flags, balanced, losses, norms, squares = CASES[case]
    args = program.build_parser().parse_args(["data", "--arch", "transformer", *flags.split()])
    model = golden.golden_model(args.rank_scale)
    for module in model.modules():
        if balanced and isinstance(module, (QueryKey, OutputValue)):
            module.spectral_init()
    computing = Computing(torch.device("cpu"), None, False, torch.contiguous_format)
    options = {"smoothing": 0.1, "clip_norm": 0.1}
    trainer = Trainer(model, optimization.build(args, model), Rates(RATES[0]), computing, **options)
    batch = Batch([0, 1], golden.SOURCES["A"], golden.TARGET, golden.DECODER_INPUT, 7)
    for loss, norm in zip(losses, norms):
        trainer.meter = Meter(computing)
        trainer.step([batch], tokens=7, sentences=2, samples=7)
        averages = trainer.meter.read("a test")
        assert (averages["loss"], averages["gnorm"], averages["clip"]) == pytest.approx((loss, norm, 100), abs=6e-9)
    assert trainer.evaluate([batch], 7, 7).loss == pytest.approx(losses[-1], abs=6e-9)
    total = sum(p.double().square().sum().item() for p in model.parameters())
    assert total == pytest.approx(squares, abs=6e-8)
