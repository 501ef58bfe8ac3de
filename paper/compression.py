"""The settings of model compression: EigenDamage-Pytorch."""

from collections.abc import Iterator
from itertools import product

from .setting import Command, Setting, Study, subsets

COMPRESSION_NETWORKS = {"resnet_32_x2": ("resnet", 32, "1E-4"), "vgg_19_nfc": ("vgg", 19, "2E-4")}
COMPRESSION_MINUTES = {
    "resnet_32_x2": {"cifar10": 80, "cifar100": 80, "tiny_imagenet": 630},
    "vgg_19_nfc": {"cifar10": 36, "cifar100": 36, "tiny_imagenet": 200},
}
COMPRESSION_FLAGS = {"spectral": "--spectral", "frob": "--wd2fd"}


def _compression(label: str, data: str, ratio: float, methods: tuple[str, ...] = ()) -> Setting:
    method = "+".join(methods) or "reglr"
    network, depth, decay = COMPRESSION_NETWORKS[label]
    argv: tuple[str, ...] = ("main_pretrain.py", "--dataset", "$DATA", "--network", "$MODEL", "--weight_decay", "$WD")
    argv += ("--depth", "$DEPTH", "--device", "$GPU", "--epoch", "$EPOCH", "--target-ratio", "$RATIO")
    argv += ("--log_dir", "$LOGDIR", "--seed", "$TRIAL", *(COMPRESSION_FLAGS[method] for method in methods))
    return Setting(
        name=f"{data}-{label}-{ratio}-{method}",
        variables=(
            ("DATA", data),
            ("RATIO", str(ratio)),
            ("MODEL", network),
            ("DEPTH", str(depth)),
            ("WD", decay),
            ("EPOCH", "200"),
            ("LOGDIR", f"$RESULTS/{label}-$DATA/$RATIO/{method}/$TRIAL"),
        ),
        commands=(Command(argv),),
        minutes=COMPRESSION_MINUTES[label][data],
    )


def _compression_grid() -> Iterator[Setting]:
    for label, minutes in COMPRESSION_MINUTES.items():
        for data in minutes:
            yield _compression(label, data, 0.0)
            small = (0.05, 0.1, 0.15) if (label, data) == ("resnet_32_x2", "tiny_imagenet") else (0.02, 0.05, 0.1)
            for ratio, methods in product(small, subsets("spectral", "frob")):
                yield _compression(label, data, ratio, methods)


PRUNERS = (
    "c-obd", "kron-obd", "kron-obs", "c-obs", "eigendamage", "eigendamage-separable", "activations", "hosvd",
    "magnitude", "random",
)  # fmt: skip
PRUNING_EPOCHS = 150  # of fine-tuning, beside the 200 of the dense network
_PRUNED_DATA = "cifar10"


def _pruning(label: str, ratio: float, method: str) -> Setting:
    """Return a setting that prunes what the dense setting of the same trial has trained."""
    network, depth, _ = COMPRESSION_NETWORKS[label]
    program = "main_prune_separable.py" if "separable" in method else "main_prune.py"
    argv: tuple[str, ...] = (program, "--dataset", "$DATA", "--network", "$MODEL", "--depth", "$DEPTH")
    argv += ("--method", "$METHOD", "--from", "$DENSE", "--target-ratio", "$RATIO", "--weight-decay", "$WD")
    argv += ("--epochs", "$EPOCH", "--device", "$GPU", "--save-dir", "$LOGDIR", "--seed", "$TRIAL")
    minutes = COMPRESSION_MINUTES[label][_PRUNED_DATA] * PRUNING_EPOCHS // 200
    return Setting(
        name=f"{_PRUNED_DATA}-{label}-{ratio}-{method}",
        variables=(
            ("DATA", _PRUNED_DATA),
            ("RATIO", str(ratio)),
            ("MODEL", network),
            ("DEPTH", str(depth)),
            ("METHOD", method),
            ("WD", "1E-4"),
            ("EPOCH", str(PRUNING_EPOCHS)),
            ("DENSE", f"$RESULTS/{label}-$DATA/0.0/reglr/$TRIAL"),
            ("LOGDIR", f"$RESULTS/{label}-$DATA/$RATIO/{method}/$TRIAL"),
        ),
        commands=(Command(argv),),
        minutes=minutes,
    )


COMPRESSION = Study(
    folder="EigenDamage-Pytorch",
    settings=tuple(_compression_grid()),
    additions=tuple(
        _pruning(label, ratio, method)
        for label, ratio, method in product(COMPRESSION_NETWORKS, (0.02, 0.05, 0.1), PRUNERS)
    ),
    longest_first=True,
    resume=("--auto-resume",),
)
