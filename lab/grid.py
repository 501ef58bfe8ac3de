"""The paper's settings as data: one `Setting` for each cell of its tables, gathered in one `Study` per folder.

Text in these records is shell text: `$TRIAL`, `$GPU` and `$RESULTS` come from the script (see `scripts.py`), the other
variables from the setting itself. A new study is only more data here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import compress, product


@dataclass(frozen=True)
class Command:
    """One call of a program of the study's folder."""

    argv: tuple[str, ...]
    """The program and its arguments."""
    done: str = "$LOGDIR/results.json"
    """The file that marks the call as finished; its folder is the result folder."""
    training: bool = True
    """Whether it can be resumed and takes the extra flags given to the script (an evaluation does neither)."""


@dataclass(frozen=True)
class Setting:
    """What a script runs in each trial."""

    name: str
    """The name of its script, without the ending."""
    variables: tuple[tuple[str, str], ...]
    """Shell variables with their values, in order; a value may refer to the variables before it."""
    commands: tuple[Command, ...]
    minutes: int
    """Estimated time of one trial."""

    @property
    def runs(self) -> int:
        """The training runs of one trial."""
        return sum(command.training for command in self.commands)


@dataclass(frozen=True)
class Study:
    """The settings of one experiment folder."""

    folder: str
    settings: tuple[Setting, ...]
    """The grid of the paper."""
    additions: tuple[Setting, ...] = ()
    """Settings that the paper's grid lacks; written only when asked for."""
    longest_first: bool = False
    """Whether the longest settings are given out first, otherwise the shortest."""
    resume: tuple[str, ...] = ("--resume", "auto")
    """The flags with which a training program goes on where an earlier call of the same command stopped, if any did."""

    def argv(self, command: Command) -> list[str]:
        """Return the program and its arguments as the scripts call them."""
        return [*command.argv, *(self.resume if command.training else ())]


def _subsets(*switches: str) -> list[tuple[str, ...]]:
    """Return every choice of the switches, each in the given order."""
    return [tuple(compress(switches, chosen)) for chosen in product((False, True), repeat=len(switches))]


# CIFAR ResNets: pytorch_resnet_cifar10

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
    argv = ("trainer.py", "--data", "$DATA", "--arch", "$MODEL", "--device", "$GPU", "--weight-decay", "$DECAY")
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
    for decay, methods in product(decays, _subsets("frob")):
        yield _resnet("cifar10", 20, 0.111, methods, decay)


def _resnet_grid() -> Iterator[Setting]:
    """Yield the blocks of the grid; the rank scales are powers of 3, rounded to three decimals."""
    sets, depths = ("cifar10", "cifar100"), (32, 56, 110)
    for data, depth in product(sets, RESNET_MINUTES):
        yield _resnet(data, depth, 0.0)
    for data, depth, scale, methods in product(sets, depths, (0.037, 0.111, 0.333), _subsets("spectral", "frob")):
        yield _resnet(data, depth, scale, methods)
    for data, depth, methods in product(sets, depths, _subsets("spectral", "frob", "square")):
        yield _resnet(data, depth, 1.0, methods)
    for data, depth, scale, methods in product(sets, depths, (3.0, 9.0), _subsets("frob")):
        yield _resnet(data, depth, scale, methods)
    yield from _resnet_sweep(5e-6, 1e-5, 5e-5, 5e-4, 1e-3, 5e-3)
    yield from map(_resnet_normalization, (False, True))


RESNET = Study(
    folder="pytorch_resnet_cifar10",
    settings=tuple(_resnet_grid()),
    additions=tuple(_resnet_sweep(1e-4)),  # the centre of the sweep, where all other settings are
    longest_first=True,
)

# Model compression: EigenDamage-Pytorch

COMPRESSION_NETWORKS = {"resnet_32_x2": ("resnet", 32, "1E-4"), "vgg_19_nfc": ("vgg", 19, "2E-4")}
COMPRESSION_MINUTES = {
    "resnet_32_x2": {"cifar10": 80, "cifar100": 80, "tiny_imagenet": 630},
    "vgg_19_nfc": {"cifar10": 36, "cifar100": 36, "tiny_imagenet": 200},
}
COMPRESSION_FLAGS = {"spectral": "--spectral", "frob": "--wd2fd"}


def _compression(label: str, data: str, ratio: float, methods: tuple[str, ...] = ()) -> Setting:
    method = "+".join(methods) or "reglr"
    network, depth, decay = COMPRESSION_NETWORKS[label]
    argv = ("main_pretrain.py", "--dataset", "$DATA", "--network", "$MODEL", "--weight_decay", "$WD")
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
            for ratio, methods in product(small, _subsets("spectral", "frob")):
                yield _compression(label, data, ratio, methods)


COMPRESSION = Study(
    folder="EigenDamage-Pytorch",
    settings=tuple(_compression_grid()),
    longest_first=True,
    resume=("--auto-resume",),
)


# Tensor decompositions: deficient-efficient

TENSOR_RATIOS = {"Conv": (0.01667, 0.06667), "TensorTrain": (0.234, 0.705), "Tucker": (0.211, 0.68)}
TENSOR_DECAYS = {"reglr": ("--nocrswd",), "crs": (), "frob": ("--wd2fd",)}
TENSOR_MINUTES = 180


def _tensor(decomposition: str, ratio: float, spectral: bool = False, decay: str = "reglr") -> Setting:
    """One setting; the ratio is that of parameters for `Conv`, and the rank scale for the others."""
    low_rank = decomposition == "Conv"
    method = "+".join(["spectral"] * spectral + [decay] * (decay != "reglr")) or "reglr"
    argv = ("main.py", "$DATA", "teacher", "--wrn_depth", "28", "--wrn_width", "10", "--GPU", "$GPU")
    argv += ("--epochs", "200", "--conv", "$CONV", "-t", "$LOGDIR", "--seed", "$TRIAL")
    argv += (("--target-ratio", "$RATIO") if low_rank else ()) + ("--spectral",) * spectral + TENSOR_DECAYS[decay]
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

# Translation: Transformer-PyTorch

TRANSLATION_MINUTES = 240
TRANSLATION_DECAYS = (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
PARTS = {"lin": "", "qk": "-quekey", "ov": "-outval"}  # of a Transformer, with the ends of their flags


def _translation(scale: float, decay: float, spectral: tuple[str, ...] = (), frob: tuple[str, ...] = ()) -> Setting:
    """One setting; `spectral` and `frob` name the parts that are initialized and decayed so."""
    named = [("spectral", spectral), ("frob", frob)]
    method = "+".join("_".join((name, *parts)) for name, parts in named if parts) or "reglr"
    training = ("train.py", "$DATA", "--arch", "$MODEL", "--clip-norm", "0.1", "--dropout", "0.2")
    training += ("--max-tokens", "4000", "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1")
    training += ("--lr-scheduler", "inverse_sqrt", "--lr", "0.25", "--optimizer", "nag")
    training += ("--warmup-init-lr", "0.25", "--warmup-updates", "4000", "--max-update", "100000")
    training += ("--no-epoch-checkpoints", "--distributed-world-size", "1", "--device-id", "$GPU", "--seed", "$TRIAL")
    training += ("--save-dir", "$LOGDIR", "--rank-scale", "$SCALE")
    training += tuple(f"--spectral{PARTS[part]}" for part in spectral)
    training += tuple(f"--wd2fd{PARTS[part]}" for part in frob)
    # With Frobenius decay on any part there is no other decay on the rest.
    training += ("--frobenius-decay" if frob else "--weight-decay", "$DECAY")
    evaluation = ("generate.py", "$DATA", "--batch-size", "128", "--beam", "5", "--remove-bpe", "--quiet")
    evaluation += ("--path", "$LOGDIR/checkpoint_best.pt", "--dump", "$LOGDIR/bleu.log", "--rank-scale", "$SCALE")
    evaluation += ("--device-id", "$GPU")
    return Setting(
        name=f"{method}-scale_{scale}-decay_{decay}",
        variables=(
            ("DATA", "data-bin/iwslt14.tokenized.de-en"),
            ("MODEL", "transformer_small"),
            ("DECAY", str(decay)),
            ("SCALE", str(scale)),
            ("LOGDIR", f"$RESULTS/$MODEL-iwslt14_deen/$SCALE/{method}/$DECAY/$TRIAL"),
        ),
        commands=(Command(training), Command(evaluation, done="$LOGDIR/bleu.log", training=False)),
        minutes=TRANSLATION_MINUTES,
    )


def _translation_grid() -> Iterator[Setting]:
    """Yield all choices that mean something: only factorized networks have two-factor linear layers, for example."""
    for scale, decay in product((0.0, 0.25, 0.5), TRANSLATION_DECAYS):
        if scale and decay > 1e-4:
            continue
        linear = [(), ("lin",)] if scale else [()]
        balanced = [(), ("qk", "ov")] if decay <= 1e-4 else [()]
        attention = [(), ("ov",), ("qk", "ov")] if decay else [()]
        decayed = product(linear, attention) if decay else [((), ())]
        for frob, spectral in product(decayed, product(linear, balanced)):
            yield _translation(scale, decay, sum(spectral, ()), sum(frob, ()))


TRANSLATION = Study(
    folder="Transformer-PyTorch",
    settings=tuple(_translation_grid()),
    resume=(),  # train.py goes on by itself
)

# In the order of the paper's generator.
STUDIES = {study.folder: study for study in (COMPRESSION, TENSOR, TRANSLATION, RESNET)}
