"""Train dense or factorized ResNets on CIFAR (Khodak et al. 2021, sections 4 and 6). `--help` lists the flags."""

import contextlib
import copy
import dataclasses
from dataclasses import dataclass
from pathlib import Path

from lab.cli import launch

# isort: split
import torch
from norms import NormImposer, NormRecorder, read_norms
from resnet import BLOCK_CONVS, DEPTHS, ResNet, build_resnet

import factorized
from lab import account, checkpoint, devices, flags, training
from lab.data.batches import Batches
from lab.loop import Classifier, Epoch, fit
from lab.run import Run
from lab.settings import Parser, flag

ARCHS = [f"resnet{depth}" for depth in DEPTHS]
WARM_UP_DEPTHS = (56, 110, 1202)

CHECKPOINT, LATEST, BEST, MERGED, NORMS = "checkpoint.th", "model.th", "best.th", "merged.th", "frobnorms.tensor"
FILES = (CHECKPOINT, LATEST, BEST, MERGED, NORMS)
WHAT = {LATEST: "is the last network", BEST: "the best", CHECKPOINT: "to go on from", "results.json": "the numbers"}


@dataclass(frozen=True, kw_only=True)
class Settings(flags.Trainer):
    """What the trainer is asked to do; contradictions are a ValueError."""

    arch: str = flag("network", "-a", default="resnet32", choices=ARCHS, help="network")
    data: str = flags.data("cifar10", help="cifar10, cifar100, digits, or a folder of images in train/, test/")
    square: bool = flag("factorization", default=False, help="deep form: a middle factor M between U and VT")
    residual: float = flag("factorization", default=0.0, type=flags.REAL, metavar="E",
        help="standard deviation of the noise on M's identity start")  # fmt: skip
    no_frob: bool = flag("factorization", default=False, help="with --wd2fd: no decay at all on factorized layers")
    normalize: str | None = flag(
        "factorization", metavar="FILE", help="impose the norms that --dump-frobnorms recorded"
    )
    dump_frobnorms: bool = flag("factorization", default=False,
        help="record the Frobenius norms of the layers at every step")  # fmt: skip
    epochs: int = flags.epochs(200)
    batch_size: int = flags.batch_size(128)
    lr: float = flags.lr(0.1, help="base learning rate")
    momentum: float = flag("optimization", default=0.9, type=flags.SHARE, metavar="M", help="momentum of SGD")
    weight_decay: float = flags.weight_decay(1e-4)
    save_dir: Path = flags.save_dir("save_temp")
    resume: str = flags.resume()
    start_epoch: int = flag("run", default=0, type=flags.COUNT, metavar="N",
        help="index of the first epoch; --resume finds its own")  # fmt: skip
    evaluate: bool = flag("run", "-e", default=False, help="evaluate the network of --resume and stop")
    print_freq: int = flag("run", "-p", default=50, type=flags.POSITIVE, metavar="N",
        help="batches between readings of the loss")  # fmt: skip
    save_every: int = flag("run", default=10, type=flags.COUNT, metavar="N",
        help="epochs between checkpoints; 0: only the last")  # fmt: skip

    # Of old command lines. Images live in memory, and nothing was ever pretrained.
    workers: int = flag("speed", "-j", default=4, type=flags.COUNT)
    pretrained: bool = flag("network", default=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not flags.is_factorized(self):
            self.require("--rank-scale or --target-ratio", "square", "dump_frobnorms", "normalize")
        if not self.square:
            self.require("--square", "residual")
        if not self.wd2fd:
            self.require("--wd2fd", "no_frob")
        if self.evaluate and not self.resume:
            raise ValueError("--evaluate needs --resume FILE, the network to evaluate")
        if self.start_epoch >= self.epochs:
            raise ValueError(f"--start-epoch {self.start_epoch} leaves nothing of --epochs {self.epochs}")
        if self.pretrained:
            raise ValueError("--pretrained never had an effect and is gone; start from weights with --resume FILE")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(Settings, prog="trainer.py", description=__doc__)
    parser.spell("--amp", "--half=bf16")
    return parser


def learning_rate(args: Settings, epoch: int) -> float:
    """Return the rate of an epoch. The deep networks of `WARM_UP_DEPTHS` run epoch 0 at a tenth of the base rate."""
    warm_up = epoch == 0 and _depth(args) in WARM_UP_DEPTHS
    return args.lr * 0.1 ** (training.drops(epoch, args.epochs) + warm_up)


def build_model(args: Settings, num_classes: int) -> tuple[ResNet, flags.Factorization]:
    """Return the network that the flags ask for, with its counts."""

    def noisy(identity: torch.Tensor) -> torch.Tensor:
        return identity + args.residual * torch.randn_like(identity) if args.residual else identity

    model = build_resnet(_depth(args), num_classes)
    middle = noisy if args.square else None
    return flags.apply(model, args, include=BLOCK_CONVS, square=args.square, square_init=middle)


def build_optimizer(args: Settings, model: ResNet, computing: devices.Computing) -> torch.optim.SGD:
    """Return SGD with L2 decay, and Frobenius decay of the factorized layers attached if `--wd2fd` asks for it."""
    return training.sgd(
        model, computing, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay,
        exempt_factors=args.wd2fd, frobenius=args.wd2fd and not args.no_frob,
    )  # fmt: skip


def load_data(args: Settings, computing: devices.Computing) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train, validate and test on."""
    return training.load_batches(args.data, args, computing, batch_size=args.batch_size, evaluation_size=128)


def main(argv: list[str] | None = None) -> None:
    """Train, or evaluate, as the command line says."""
    args = build_parser().parse_args(argv)
    computing = devices.start(args)
    if args.evaluate:
        with contextlib.closing(computing):
            evaluate(args, computing)
        return
    with Run.open(args.save_dir, args, computing, FILES, free=("dump_frobnorms",)) as run:
        data = load_data(args, computing)
        model, counts = build_model(args, len(data[0].data.classes))
        train(run, computing.place(model), counts, data)


def evaluate(args: Settings, computing: devices.Computing) -> None:
    """Print the accuracy of the network of `--resume` on the test images."""
    _, _, test = load_data(args, computing)
    model = computing.place(build_model(args, len(test.data.classes))[0])
    weights = args.save_dir / LATEST if args.resume == "auto" else Path(args.resume)
    checkpoint.load_weights(model, checkpoint.load(weights, computing.device), weights)
    classifier = Classifier(computing.wrap(model), build_optimizer(args, model, computing), computing)
    accuracy = classifier.evaluate(test).top1
    if computing.is_main:
        print(f"{weights}: accuracy {accuracy:.2f}% on {len(test.data)} test images")


def train(run: Run, model: ResNet, counts: flags.Factorization, data: tuple[Batches, Batches, Batches]) -> None:
    """Train, from the checkpoint that the run goes on from if there is one, and leave the run's files in its folder.

    All that can be wrong is found before anything is written.
    """
    train, valid, test = data
    computing = run.computing

    def rate(epoch: int) -> float:
        return learning_rate(run.args, epoch)

    args, budget = training.settle(run.args, rate, run.args.epochs, len(train), run.args.momentum)
    optimizer = build_optimizer(args, model, computing)
    classifier = Classifier(computing.wrap(model), optimizer, computing, read_every=args.print_freq)
    state = run.restore(model, optimizer)
    first_epoch = state.get("epoch", args.start_epoch)
    layers = model.block_convs()
    recorder = NormRecorder(layers, args.epochs, len(train)) if args.dump_frobnorms else None
    shape = (args.epochs, len(train), len(layers))
    imposer = NormImposer(layers, read_norms(Path(args.normalize), shape)) if args.normalize else None
    if recorder and run.source and first_epoch:
        recorder.load(run.source.parent / NORMS)
    training.rehearse(run, model, classifier, train, rate(min(first_epoch, args.epochs - 1)))
    record = run.begin(first_epoch)
    account.tell(run, args.arch, model, data, counts, words_of_decay(args, model, optimizer), budget)

    def after_step(epoch: int, iteration: int) -> None:
        for watcher in (recorder, imposer):  # norms are recorded as they are before others are imposed
            if watcher:
                watcher.after_step(epoch, iteration)

    def log_layers(epoch: int) -> None:
        rate_then = rate(min(epoch, args.epochs - 1))  # the last entry shows what training has led to
        record.scalars(factorized.layer_metrics(layers, rate_then), epoch)

    def after_epoch(epoch: Epoch) -> None:
        scalars = epoch.scalars(rate(epoch.index))
        del scalars["hyper/lr"]  # with the layers, before the epoch
        published = {"train/acc": epoch.train.top1, "valid/acc": epoch.valid.top1}
        record.scalars({**scalars, **published}, epoch.index)
        weights = {"state_dict": model.state_dict(), "best_prec1": epoch.best, "epoch": epoch.index + 1}
        states = {LATEST: weights} | ({BEST: weights} if epoch.is_best else {})
        last = epoch.index + 1 == args.epochs
        if last or (epoch.index and args.save_every and epoch.index % args.save_every == 0):
            if recorder:
                states[NORMS] = recorder.norms.cpu()
            progress = {"epoch": epoch.index + 1, "best_prec1": epoch.best, "best_epoch": epoch.best_epoch}
            progress["seconds"] = record.seconds
            states[CHECKPOINT] = checkpoint.training_state(model, optimizer, computing, **progress)
        run.save(states)

    classifier.after_step = after_step if recorder or imposer else None
    last = fit(
        classifier, train, valid, record,
        epochs=args.epochs,
        learning_rate=rate,
        first_epoch=first_epoch,
        best=state.get("best_prec1", 0.0),
        best_epoch=state.get("best_epoch"),
        before_epoch=log_layers,
        after_epoch=after_epoch,
    )  # fmt: skip
    log_layers(args.epochs)
    results = account.results(classifier, last, state.get("best_prec1"), counts, valid, test)
    if args.square:
        results["merged test accuracy"] = save_merged(run, classifier, model, test)
    summary = account.summary(
        run, args, counts, budget, form="deep form" if args.square else "", decay=decay_of_factors(args),
        study="pytorch_resnet_cifar10", network=args.arch, data=args.data,
        epochs=args.epochs, validation=account.validation(valid, test),
        metric="validation accuracy (%)", best=results["best validation accuracy"],
        final=results["final validation accuracy"],
    )  # fmt: skip
    more = (
        f"evaluate: the same flags with --evaluate --resume {run.folder / BEST}; "
        f"go on: with --epochs {2 * args.epochs} --resume {run.folder / CHECKPOINT}"
    )
    run.finish(summary, results, account.ending(run, last, WHAT, (classifier, train), [more]))


def decay_of_factors(args: Settings) -> str:
    """Return in words what the normalization experiment does to the factors in place of a decay; nothing elsewhere."""
    kind = "no" if args.no_frob or not args.weight_decay else "Frobenius" if args.wd2fd else "L2"
    norms = ", imposed norms" if args.normalize else ""
    return f"{kind} decay of the factors{norms}" if args.no_frob or norms else ""


def words_of_decay(args: Settings, model: ResNet, optimizer: torch.optim.SGD) -> str:
    """Return in words what decays what."""
    decayed = args.wd2fd and not args.no_frob
    decay = factorized.FrobeniusDecay(model, args.weight_decay, strict=False) if decayed else None
    return factorized.describe_decay(optimizer, decay)


def save_merged(run: Run, classifier: Classifier, model: ResNet, test: Batches) -> float:
    """Multiply the factors of a deep network out, save the dense network, and return its test accuracy."""
    merged = factorized.merge(copy.deepcopy(model))
    run.save({MERGED: {"state_dict": merged.state_dict(), "epoch": run.args.epochs}})
    return dataclasses.replace(classifier, model=merged).evaluate(test).top1


def _depth(args: Settings) -> int:
    return int(args.arch.removeprefix("resnet"))


if __name__ == "__main__":
    launch(main, "trainer.py")
