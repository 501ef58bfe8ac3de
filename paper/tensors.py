"""The settings of the tensor comparisons: deficient-efficient."""

from collections.abc import Iterator
from itertools import product

from .setting import Command, Setting, Study

TENSOR_RATIOS = {"Conv": (0.01667, 0.06667), "TensorTrain": (0.234, 0.705), "Tucker": (0.211, 0.68)}
TENSOR_DECAYS = {"reglr": ("--nocrswd",), "crs": (), "frob": ("--wd2fd",)}
TENSOR_MINUTES = 180


def _tensor(decomposition: str, ratio: float, spectral: bool = False, decay: str = "reglr") -> Setting:
    """One setting; the ratio is that of parameters for `Conv`, and the rank scale for the others."""
    low_rank = decomposition == "Conv"
    parts = {"spectral": spectral, decay: decay != "reglr"}
    method = "+".join(name for name, used in parts.items() if used) or "reglr"
    argv: tuple[str, ...] = ("main.py", "$DATA", "teacher", "--wrn_depth", "28", "--wrn_width", "10", "--GPU", "$GPU")
    argv += ("--epochs", "200", "--conv", "$CONV", "-t", "$LOGDIR", "--seed", "$TRIAL")
    if low_rank:
        argv += ("--target-ratio", "$RATIO")
    if spectral:
        argv += ("--spectral",)
    argv += TENSOR_DECAYS[decay]
    return Setting(
        name=f"{decomposition}-{ratio}-{method}",
        variables=(
            ("DATA", "cifar10"),
            ("RATIO", str(ratio)),
            ("CONV", "Conv" if low_rank else f"{decomposition}_$RATIO"),
            ("LOGDIR", f"$RESULTS/{decomposition}-wrn_28_10-$DATA/$RATIO/{method}/$TRIAL"),
        ),
        commands=(Command(argv),),
        minutes=TENSOR_MINUTES,
    )


def _tensor_grid() -> Iterator[Setting]:
    yield _tensor("Conv", 0.0)
    for decomposition, ratios in TENSOR_RATIOS.items():
        for ratio, spectral, decay in product(ratios, (False, True), TENSOR_DECAYS):
            yield _tensor(decomposition, ratio, spectral, decay)


TENSOR = Study(folder="deficient-efficient", settings=tuple(_tensor_grid()), resume=("--resume",))
