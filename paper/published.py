"""Published numbers that stand beside ours: no other number without a source at hand.

Values are test accuracies in percent after 200 epochs on CIFAR-10.
"""

from dataclasses import dataclass

KHODAK = "Khodak et al. 2021, Table 1, through a quotation"
PRUNING = "two secondary sources, which agree"


@dataclass(frozen=True)
class Published:
    """One cell of a published table."""

    study: str
    network: str
    data: str
    target_ratio: float
    """Share of the dense network's parameters; 0 for the dense network itself."""
    method: str
    """In the words of `paper.method`, or the name of a method that is not of this repository."""
    accuracy: float
    source: str


def _row(network: str, ratio: float, source: str, **values: float) -> list[Published]:
    return [
        Published("EigenDamage-Pytorch", network, "cifar10", ratio, method.replace("_", " "), value, source)
        for method, value in values.items()
    ]


PUBLISHED = [
    *_row("resnet32", 0.0, KHODAK, dense=94.49),
    *_row("resnet32", 0.1, KHODAK, **{"plain": 93.59, "SI": 92.52, "FD": 92.92, "SI & FD": 94.34}),
    *_row("vgg19", 0.1, PRUNING, OBD=93.74, lottery_ticket=93.51, SNIP=93.63, GraSP=93.30),
    *_row("vgg19", 0.05, PRUNING, OBD=93.58, lottery_ticket=92.92, SNIP=93.43, GraSP=93.04),
    *_row("vgg19", 0.02, PRUNING, OBD=93.49, lottery_ticket=92.34, SNIP=92.05, GraSP=92.19),
]
"""Rows of ours, by network, data, ratio and method, and rows of pruning, which no run of ours has."""
