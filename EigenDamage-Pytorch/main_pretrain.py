"""Train VGGs and ResNets, dense or to a parameter budget (Khodak et al. 2021, section 5). `--help` lists the flags."""

import warnings
from dataclasses import dataclass
from pathlib import Path

from lab.cli import launch

# isort: split
import torch
from eigendamage import data as image_sets
from eigendamage import networks
from torch import nn

import factorized
from lab import account, checkpoint, devices, flags, training
from lab.data.batches import Batches
from lab.loop import Classifier, Epoch, fit
from lab.run import Run
from lab.settings import Parser, flag, plain

EPOCHS = 200
CHECKPOINT, BEST = "checkpoint.t7", "best.t7"
FILES = (CHECKPOINT, BEST)
WHAT = {CHECKPOINT: "is the last network, to go on from", BEST: "the best", "results.json": "the numbers"}
MOMENTUM = 0.9
HERE = "."  # for --resume without a value: what is in --save-dir


@dataclass(frozen=True, kw_only=True)
class Settings(flags.Trainer):
    """What the trainer is asked to do; contradictions are a ValueError."""

    PUBLISHED = {"data": "dataset", "epochs": "epoch", "lr": "learning_rate", "save_dir": "log_dir"}

    data: str = flags.data("cifar10", "--dataset",
        help=f"{', '.join(image_sets.NORMALIZATION)}, digits, or a folder of images in train/, test/")  # fmt: skip
    network: str = flag("network", default="vgg", choices=networks.NETWORKS, help="network")
    depth: int = flag("network", default=19, type=int, metavar="N",
        help="vgg: 11, 13, 16, 19; resnet: 6n + 2; presnet: 9n + 2")  # fmt: skip
    kaiming: bool = flag("network", default=False, help="start the classifier of a vgg, and factors, Kaiming normal")
    epochs: int = flags.epochs(EPOCHS, "--epoch", least=0)
    batch_size: int = flags.batch_size(128)
    lr: float = flags.lr(0.1)
    weight_decay: float = flags.weight_decay(3e-3)
    save_dir: Path = flags.save_dir("runs/pretrain", "--log_dir")
    resume: str = flags.resume("-r", "--load_path", "--auto-resume=auto", nargs="?", const=HERE,
        help="checkpoint to go on from; auto: that of --save-dir, if any; without a value: that one, which must be there")  # fmt: skip  # noqa: E501

    # Of old command lines.
    decay_every: int = flag("optimization", default=60, type=int)
    decay_ratio: float = flag("optimization", default=0.1, type=float)

    def __post_init__(self) -> None:
        super().__post_init__()
        networks.check_depth(self.network, self.depth)
        if self.kaiming and self.network != "vgg" and (self.spectral or not flags.is_factorized(self)):
            raise ValueError(
                f"--kaiming has no effect on a {self.network} whose factors it does not draw; leave it out"
            )
        if self.resume in ("auto", HERE) and self.overwrite:
            raise ValueError("--resume continues the run in --save-dir, --overwrite replaces it: give only one")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(Settings, prog="main_pretrain.py", description=__doc__)


def warn_of_unused_flags(args: Settings) -> None:
    """Warn of flags of old command lines that ask for another schedule than there is."""
    for name, value in (("decay_every", 60), ("decay_ratio", 0.1)):
        if getattr(args, name) != value:
            message = "has no effect: the rate falls to a tenth at 1/2 and again at 3/4 of the epochs"
            warnings.warn(f"--{name.replace('_', '-')} {message}", stacklevel=2)


def build_model(args: Settings, num_classes: int) -> tuple[nn.Module, flags.Factorization]:
    """Return the network that the flags ask for, with its counts."""
    return networks.factorize(networks.build(args.network, args.depth, num_classes, args.kaiming), args)


def build_optimizer(args: Settings, model: nn.Module, computing: devices.Computing) -> torch.optim.SGD:
    """Return SGD with L2 decay, or with `--wd2fd` Frobenius decay on the factors in place of it."""
    return training.sgd(
        model, computing, lr=args.lr, momentum=MOMENTUM, weight_decay=args.weight_decay,
        exempt_factors=args.wd2fd, frobenius=args.wd2fd,
    )  # fmt: skip


def learning_rate(args: Settings, epoch: int) -> float:
    """Return the rate of an epoch."""
    return args.lr * 0.1 ** training.drops(epoch, args.epochs)


@torch.no_grad()
def layer_metrics(model: nn.Module) -> dict[str, float]:
    """Return mean norm and non-orthogonality of the factorized layers by TensorBoard tag; nothing if all are dense."""
    layers = list(factorized.factorized_modules(model).values())
    if not layers:
        return {}
    shares = [share for layer in layers for share in factorized.non_orthogonality(*layer.factors())]
    norms = factorized.frobenius_norms(layers)
    return {"metric/FrobNorm": norms.mean().item(), "metric/NonOrth": torch.stack(shares).mean().item()}


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says, and leave the files of the run in `--save-dir`."""
    args = build_parser().parse_args(argv)
    warn_of_unused_flags(args)
    computing = devices.start(args)
    request = str(args.save_dir / CHECKPOINT) if args.resume == HERE else args.resume
    with Run.open(args.save_dir, args, computing, FILES, request=request) as run:
        data = image_sets.load(args.data, args, computing, args.batch_size)
        model, counts = build_model(args, len(data[0].data.classes))
        train(run, computing.place(model), counts, data)


def train(run: Run, model: nn.Module, counts: flags.Factorization, data: tuple[Batches, Batches, Batches]) -> None:
    """Train, from the checkpoint that the run goes on from if there is one, and leave the run's files in its folder.

    All that can be wrong is found before anything is written.
    """
    train, valid, test = data
    computing = run.computing

    def rate(epoch: int) -> float:
        return learning_rate(run.args, epoch)

    args, budget = training.settle(run.args, rate, run.args.epochs, len(train), MOMENTUM)
    optimizer = build_optimizer(args, model, computing)
    classifier = Classifier(computing.wrap(model), optimizer, computing)
    state = run.restore(model, optimizer)
    first_epoch = state.get("epoch", 0)
    training.rehearse(run, model, classifier, train, rate(first_epoch))
    record = run.begin()
    decay = factorized.FrobeniusDecay(model, args.weight_decay) if args.wd2fd else None
    words = factorized.describe_decay(optimizer, decay)
    account.tell(run, f"{args.network}{args.depth}", model, data, counts, words, budget)

    def log_rate(epoch: int) -> None:
        record.scalars({"train/lr": rate(epoch), "hyper/lr": rate(epoch)}, epoch)

    def log_and_save(epoch: Epoch) -> None:
        scalars = epoch.scalars(rate(epoch.index))
        del scalars["hyper/lr"]  # before the epoch
        part = "valid" if args.holdout else "test"
        published = {"train/acc": epoch.train.top1, f"{part}/acc": epoch.valid.top1, f"{part}/loss": epoch.valid.loss}
        record.scalars({**scalars, **published, **layer_metrics(model)}, epoch.index)
        progress = {"best_acc": epoch.best, "epoch": epoch.index + 1, "loss": epoch.valid.loss, "args": plain(run.args)}
        states: dict[str, object] = {BEST: {"net": model.state_dict(), **progress}} if epoch.is_best else {}
        progress |= {"seconds": record.seconds, "best_epoch": epoch.best_epoch}
        states[CHECKPOINT] = checkpoint.training_state(model, optimizer, computing, weights="net", **progress)
        run.save(states)

    last = fit(
        classifier, train, valid, record,
        epochs=args.epochs,
        learning_rate=rate,
        first_epoch=first_epoch,
        best=state.get("best_acc", 0.0),
        best_epoch=state.get("best_epoch"),
        before_epoch=log_rate,
        after_epoch=log_and_save,
    )  # fmt: skip
    results = account.results(classifier, last, state.get("best_acc"), counts, valid, test)
    summary = account.summary(
        run, args, counts, budget, study="EigenDamage-Pytorch", network=f"{args.network}{args.depth}",
        data=args.data, epochs=args.epochs, validation=account.validation(valid, test),
        metric="validation accuracy (%)", best=results["best validation accuracy"],
        final=results["final validation accuracy"],
    )  # fmt: skip
    more = f"go on: the same flags with --epochs {2 * args.epochs} --resume {run.folder / CHECKPOINT}"
    run.finish(summary, results, account.ending(run, last, WHAT, (classifier, train), [more] if args.epochs else []))


if __name__ == "__main__":
    launch(main, "main_pretrain.py")
