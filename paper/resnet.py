"""The settings of the CIFAR ResNets: pytorch_resnet_cifar10."""

from collections.abc import Iterator
from itertools import product

from .setting import Command, Setting, Study, subsets

RESNET_MINUTES = {20: 50, 32: 60, 44: 80, 56: 90, 110: 180}
RESNET_FLAGS = {"spectral": "--spectral", "frob": "--wd2fd", "square": "--square"}


def _decay_name(decay: float) -> str:
    """Return the decay as the paper's script and folder names spell it."""
    return "1E-4" if decay == 1e-4 else str(decay)


def _resnet_variables(data: str, depth: int, scale: float, decay: float, folder: str) -> tuple[tuple[str, str], ...]:
    return (
        ("DEPTH", str(depth)),
        ("MODEL", f"resnet{depth}"),
        ("DECAY", _decay_name(decay)),
        ("SCALE", str(scale)),
        ("DATA", data),
        ("LOGDIR", f"$RESULTS/$MODEL-$DATA/$SCALE/{folder}"),
    )


def _resnet_command(folder: str, *flags: str) -> Command:
    argv: tuple[str, ...] = (
        "trainer.py",
        "--data",
        "$DATA",
        "--arch",
        "$MODEL",
        "--device",
        "$GPU",
        "--weight-decay",
        "$DECAY",
    )
    argv += ("--rank-scale", "$SCALE", "--seed", "$TRIAL", "--save-dir", folder, *flags)
    return Command(argv, done=f"{folder}/results.json")


def _resnet(data: str, depth: int, scale: float, methods: tuple[str, ...] = (), decay: float = 1e-4) -> Setting:
    method = "+".join(methods) or "reglr"
    return Setting(
        name=f"{data}-resnet{depth}-scale_{scale}-decay_{_decay_name(decay)}-{method}",
        variables=_resnet_variables(data, depth, scale, decay, f"$DECAY/{method}/$TRIAL"),
        commands=(_resnet_command("$LOGDIR", *(RESNET_FLAGS[method] for method in methods)),),
        minutes=RESNET_MINUTES[depth],
    )


def _resnet_normalization(spectral: bool) -> Setting:
    """Three runs with the same seed: no decay, Frobenius decay, no decay but the layer norms of the second run.

    All have `--wd2fd`, so that no factor gets ordinary decay.
    """
    method = "norm+spectral" if spectral else "norm+reglr"
    flags = ("--spectral", "--wd2fd") if spectral else ("--wd2fd",)
    norms = "$LOGDIR/frob/$TRIAL/frobnorms.tensor"
    return Setting(
        name=f"cifar10-resnet20-scale_0.111-{method}",
        variables=_resnet_variables("cifar10", 20, 0.111, 1e-4, method),
        commands=(
            _resnet_command("$LOGDIR/none/$TRIAL", *flags, "--no-frob"),
            _resnet_command("$LOGDIR/frob/$TRIAL", *flags, "--dump-frobnorms"),
            _resnet_command("$LOGDIR/norm/$TRIAL", *flags, "--no-frob", "--normalize", norms),
        ),
        minutes=3 * RESNET_MINUTES[20],
    )


def _resnet_sweep(*decays: float) -> Iterator[Setting]:
    for decay, methods in product(decays, subsets("frob")):
        yield _resnet("cifar10", 20, 0.111, methods, decay)


def _resnet_grid() -> Iterator[Setting]:
    """Yield the blocks of the grid; the rank scales are powers of 3, rounded to three decimals."""
    sets, depths = ("cifar10", "cifar100"), (32, 56, 110)
    for data, depth in product(sets, RESNET_MINUTES):
        yield _resnet(data, depth, 0.0)
    for data, depth, scale, methods in product(sets, depths, (0.037, 0.111, 0.333), subsets("spectral", "frob")):
        yield _resnet(data, depth, scale, methods)
    for data, depth, methods in product(sets, depths, subsets("spectral", "frob", "square")):
        yield _resnet(data, depth, 1.0, methods)
    for data, depth, scale, methods in product(sets, depths, (3.0, 9.0), subsets("frob")):
        yield _resnet(data, depth, scale, methods)
    yield from _resnet_sweep(5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3)
    yield from map(_resnet_normalization, (False, True))


RESNET = Study(
    folder="pytorch_resnet_cifar10",
    settings=tuple(_resnet_grid()),
    additions=tuple(_resnet_sweep(1e-4)),  # the centre of the sweep, where all other settings are
    longest_first=True,
)
