"""The settings of translation: Transformer-PyTorch."""

from collections.abc import Iterator
from itertools import product

from .setting import Command, Setting, Study

TRANSLATION_MINUTES = 240
TRANSLATION_DECAYS = (0.0, 1e-6, 5e-6, 1e-5, 5e-5, 1e-4, 5e-4, 1e-3)
PARTS = {"lin": "", "qk": "-quekey", "ov": "-outval"}  # of a Transformer, with the ends of their flags


def _translation(scale: float, decay: float, spectral: tuple[str, ...] = (), frob: tuple[str, ...] = ()) -> Setting:
    """One setting; `spectral` and `frob` name the parts that are initialized and decayed so."""
    named = [("spectral", spectral), ("frob", frob)]
    method = "+".join("_".join((name, *parts)) for name, parts in named if parts) or "reglr"
    training: tuple[str, ...] = ("train.py", "$DATA", "--arch", "$MODEL", "--clip-norm", "0.1", "--dropout", "0.2")
    training += ("--max-tokens", "4000", "--criterion", "label_smoothed_cross_entropy", "--label-smoothing", "0.1")
    training += ("--lr-scheduler", "inverse_sqrt", "--lr", "0.25", "--optimizer", "nag")
    training += ("--warmup-init-lr", "0.25", "--warmup-updates", "4000", "--max-update", "100000")
    training += ("--no-epoch-checkpoints", "--distributed-world-size", "1", "--device-id", "$GPU", "--seed", "$TRIAL")
    training += ("--save-dir", "$LOGDIR", "--rank-scale", "$SCALE")
    training += tuple(f"--spectral{PARTS[part]}" for part in spectral)
    training += tuple(f"--wd2fd{PARTS[part]}" for part in frob)
    # With Frobenius decay on any part there is no other decay on the rest.
    training += ("--frobenius-decay" if frob else "--weight-decay", "$DECAY")
    evaluation: tuple[str, ...] = (
        "generate.py",
        "$DATA",
        "--batch-size",
        "128",
        "--beam",
        "5",
        "--remove-bpe",
        "--quiet",
    )
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
