"""Train dense or factorized ResNets on CIFAR (Khodak et al. 2021, sections 4 and 6). `--help` lists the flags."""

import argparse
import contextlib
import copy
import dataclasses
from pathlib import Path

from lab.cli import Parser, UserError, mistakes, number, run

# isort: split
import torch
from norms import NormImposer, NormRecorder, read_norms
from resnet import BLOCK_CONVS, DEPTHS, ResNet, resnet

import factorized
from lab import checkpoint, devices, flags, training
from lab.data.images import Batches
from lab.loop import Classifier, Epoch, fit
from lab.run import Run

DATA_DIR = Path(__file__).resolve().parent.parent / "data"
WARM_UP_DEPTHS = (56, 110, 1202)

CHECKPOINT, LATEST, BEST, MERGED, NORMS = "checkpoint.th", "model.th", "best.th", "merged.th", "frobnorms.tensor"
FILES = (CHECKPOINT, LATEST, BEST, MERGED, NORMS)
WHAT = {LATEST: "is the last network", BEST: "the best", CHECKPOINT: "to go on from", "results.json": "the numbers"}


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="trainer.py", description=__doc__)
    add = parser.add_argument
    count, positive, real = number(int, least=0), number(int, least=1), number(float, least=0)
    archs = [f"resnet{depth}" for depth in DEPTHS]
    # fmt: off
    add("--arch", "-a", choices=archs, default="resnet32", help="network (default resnet32)")
    add("--data", default="cifar10", help="cifar10 (default), cifar100, digits, or a folder of images in train/, test/")
    add("--data-dir", type=Path, default=DATA_DIR, help="where data sets are kept (default: data/ of the repository)")
    add("--holdout", type=count, default=0, metavar="N", help="validate on N training images, not on the test images")
    add("--workers", "-j", type=count, default=4, help="accepted for old command lines: images live in memory")
    add("--epochs", type=positive, default=200, help="total number of epochs (default 200)")
    add("--start-epoch", type=count, default=0, help="index of the first epoch; --resume finds its own")
    add("--batch-size", "-b", type=positive, default=128, help="images per step, over all processes (default 128)")
    add("--lr", "--learning-rate", type=real, default=0.1, help="base learning rate (default 0.1)")
    add("--momentum", type=number(float, least=0, most=1), default=0.9, help="momentum of SGD (default 0.9)")
    flags.add_decay(parser, "--weight-decay", "--wd", default=1e-4,
        help="coefficient of L2 and Frobenius decay (default 1e-4)")
    add("--print-freq", "-p", type=positive, default=50, help="batches between readings of the loss (default 50)")
    add("--resume", default="", metavar="FILE", help="checkpoint to continue; auto: that of --save-dir, if any")
    add("--evaluate", "-e", action="store_true", help="evaluate the network of --resume and stop")
    add("--pretrained", action=_Removed, help=argparse.SUPPRESS)
    add("--half", dest="amp", action="store_const", const="bf16", default="off", help="old name of --amp bf16")
    add("--save-dir", type=Path, default=Path("save_temp"), help="folder of the run (default save_temp)")
    add("--save-every", type=count, default=10, help="epochs between checkpoints; 0: only the last (default 10)")
    add("--overwrite", action="store_true", help="replace the run that --save-dir holds")
    flags.add_flags(parser)
    add("--square", action="store_true", help="deep form: a middle factor M between U and VT")
    add("--residual", type=real, default=0.0, help="standard deviation of the noise on M's identity start (default 0)")
    add("--no-frob", action="store_true", help="with --wd2fd: no decay at all on factorized layers")
    add("--dump-frobnorms", action="store_true", help="record the Frobenius norms of the layers at every step")
    add("--normalize", metavar="FILE", help="impose the norms that --dump-frobnorms recorded")
    # fmt: on
    devices.add_flags(parser)
    return parser


class _Removed(argparse.Action):
    def __init__(self, option_strings, dest, **options):
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, **options)

    def __call__(self, parser, *_):
        parser.error("--pretrained never had an effect and is gone; start from weights with --resume FILE")


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict or need each other."""
    with mistakes():
        flags.check(args)
        if not flags.is_factorized(args):
            flags.require(args, "--rank-scale or --target-ratio", "square", "dump_frobnorms", "normalize")
        if not args.square:
            flags.require(args, "--square", "residual")
        if not args.wd2fd:
            flags.require(args, "--wd2fd", "no_frob")
    if args.evaluate and not args.resume:
        raise UserError("--evaluate needs --resume FILE, the network to evaluate")
    if args.start_epoch >= args.epochs:
        raise UserError(f"--start-epoch {args.start_epoch} leaves nothing of --epochs {args.epochs}")


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """Return the rate of an epoch. The deep networks of `WARM_UP_DEPTHS` run epoch 0 at a tenth of the base rate."""
    warm_up = epoch == 0 and _depth(args) in WARM_UP_DEPTHS
    return args.lr * 0.1 ** (training.drops(epoch, args.epochs) + warm_up)


def build_model(args: argparse.Namespace, num_classes: int) -> tuple[ResNet, flags.Factorization]:
    """Return the network that the flags ask for, with its counts."""

    def noisy(identity: torch.Tensor) -> torch.Tensor:
        return identity + args.residual * torch.randn_like(identity) if args.residual else identity

    model = resnet(_depth(args), num_classes)
    with mistakes():
        middle = noisy if args.square else None
        return flags.apply(model, args, include=BLOCK_CONVS, square=args.square, square_init=middle)


def build_optimizer(args: argparse.Namespace, model: ResNet, computing: devices.Computing) -> torch.optim.SGD:
    """Return SGD with L2 decay, and Frobenius decay of the factorized layers attached if `--wd2fd` asks for it."""
    return training.sgd(
        model, computing, lr=args.lr, momentum=args.momentum, weight_decay=args.weight_decay,
        exempt_factors=args.wd2fd, frobenius=args.wd2fd and not args.no_frob,
    )  # fmt: skip


def load_data(args: argparse.Namespace, computing: devices.Computing) -> tuple[Batches, Batches, Batches]:
    """Return the batches to train, validate and test on."""
    return training.load_batches(args.data, args, computing, batch_size=args.batch_size, evaluation_size=128)


def main(argv: list[str] | None = None) -> None:
    """Train, or evaluate, as the command line says."""
    args = build_parser().parse_args(argv)
    check(args)
    computing = devices.start(args)
    if args.evaluate:
        with contextlib.closing(computing):
            evaluate(args, computing)
        return
    with Run.open(args.save_dir, args, computing, FILES, free=("dump_frobnorms",)) as run:
        data = load_data(args, computing)
        model, counts = build_model(args, len(data[0].data.classes))
        train(run, computing.place(model), counts, data)


def evaluate(args: argparse.Namespace, computing: devices.Computing) -> None:
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
    training.tell(run, args.arch, model, data, counts, words_of_decay(args, model, optimizer), budget)

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
    results = training.results(classifier, last, state.get("best_prec1"), counts, valid, test)
    if args.square:
        results["merged test accuracy"] = save_merged(run, classifier, model, test)
    summary = training.summary(
        run, args, counts, budget, study="pytorch_resnet_cifar10", network=args.arch, data=args.data,
        epochs=args.epochs, validation=training.validation(valid, test),
        metric="validation accuracy (%)", best=results["best validation accuracy"],
        final=results["final validation accuracy"],
    )  # fmt: skip
    run.finish(summary, results, training.ending(run, last, WHAT) + [
        f"evaluate: the same flags with --evaluate --resume {run.folder / BEST}; "
        f"go on: with --epochs {2 * args.epochs} --resume {run.folder / CHECKPOINT}"
    ])  # fmt: skip


def words_of_decay(args: argparse.Namespace, model: ResNet, optimizer: torch.optim.SGD) -> str:
    """Return in words what decays what."""
    decayed = args.wd2fd and not args.no_frob
    decay = factorized.FrobeniusDecay(model, args.weight_decay, strict=False) if decayed else None
    return factorized.describe_decay(optimizer, decay)


def save_merged(run: Run, classifier: Classifier, model: ResNet, test: Batches) -> float:
    """Multiply the factors of a deep network out, save the dense network, and return its test accuracy."""
    merged = factorized.merge(copy.deepcopy(model))
    run.save({MERGED: {"state_dict": merged.state_dict(), "epoch": run.args.epochs}})
    return dataclasses.replace(classifier, model=merged).evaluate(test).top1


def _depth(args: argparse.Namespace) -> int:
    return int(args.arch.removeprefix("resnet"))


if __name__ == "__main__":
    run(main, "trainer.py")
