"""Train VGGs and ResNets, dense or to a parameter budget (Khodak et al. 2021, section 5). `--help` lists the flags."""

import argparse
import warnings
from pathlib import Path

from lab.cli import Parser, UserError, mistakes, number, run

# isort: split
import torch
from eigendamage import data as image_sets
from eigendamage import networks
from torch import nn

import factorized
from lab import checkpoint, devices, flags, training
from lab.data.images import Batches
from lab.loop import Classifier, Epoch, fit
from lab.run import Run, plain

DATA_DIR = Path(__file__).resolve().parent.parent / "data"
EPOCHS = 200
CHECKPOINT, BEST = "checkpoint.t7", "best.t7"
FILES = (CHECKPOINT, BEST)
WHAT = {CHECKPOINT: "is the last network, to go on from", BEST: "the best", "results.json": "the numbers"}
MOMENTUM = 0.9


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="main_pretrain.py", description=__doc__)
    add = parser.add_argument
    count, positive, real = number(int, least=0), number(int, least=1), number(float, least=0)
    sets = f"{', '.join(image_sets.NORMALIZATION)}, digits, or a folder with train/CLASS/* and test/CLASS/*"
    # fmt: off
    add("--network", choices=networks.NETWORKS, default="vgg", help="network (default vgg)")
    add("--depth", type=int, default=19, help="vgg: 11, 13, 16, 19 (default); resnet: 6n + 2; presnet: 9n + 2")
    add("--kaiming", action="store_true", help="start the classifier of a vgg, and factors, Kaiming normal")
    add("--dataset", default="cifar10", help=f"{sets} (default cifar10)")
    add("--data-dir", type=Path, default=DATA_DIR, help="where data sets are kept (default: data/ of the repository)")
    add("--holdout", type=count, default=0, metavar="N", help="validate on N training images, not on the test images")
    add("--epoch", type=count, default=EPOCHS, help=f"number of epochs (default {EPOCHS})")
    add("--batch_size", type=positive, default=128, help="images per step, over all processes (default 128)")
    add("--learning_rate", type=real, default=0.1, help="learning rate at the start (default 0.1)")
    flags.add_decay(parser, "--weight_decay", default=3e-3,
        help="coefficient of L2 and Frobenius decay (default 3e-3)")
    add("--decay_every", type=int, default=60, help=argparse.SUPPRESS)
    add("--decay_ratio", type=float, default=0.1, help=argparse.SUPPRESS)
    add("--log_dir", type=Path, default=Path("runs/pretrain"), help="folder of the run (default runs/pretrain)")
    add("--auto-resume", action="store_true", help="continue the run in --log_dir if there is one")
    add("--resume", "-r", action="store_true", help="continue the run in --log_dir, which must be there")
    add("--load_path", default="", metavar="FILE", help="or continue from this file; best.t7 has weights alone")
    add("--overwrite", action="store_true", help="replace the run that --log_dir holds")
    # fmt: on
    flags.add_flags(parser)
    devices.add_flags(parser)
    return parser


def check(args: argparse.Namespace) -> None:
    """Raise UserError for flags that contradict or need each other."""
    with mistakes():
        flags.check(args)
        networks.check_depth(args.network, args.depth)
    if args.kaiming and args.network != "vgg" and (args.spectral or not flags.is_factorized(args)):
        raise UserError(f"--kaiming has no effect on a {args.network} whose factors it does not draw; leave it out")
    asked = [f"--{flag}" for flag in ("auto-resume", "resume", "load_path") if getattr(args, flag.replace("-", "_"))]
    if len(asked) > 1:
        raise UserError(f"give only one of {', '.join(asked)}")
    for name in ("auto-resume", "resume"):
        if getattr(args, name.replace("-", "_")) and args.overwrite:
            raise UserError(f"--{name} continues the run in --log_dir, --overwrite replaces it: give only one")
    for flag, default in (("decay_every", 60), ("decay_ratio", 0.1)):
        if getattr(args, flag) != default:
            message = f"--{flag} has no effect: the rate falls to a tenth at 1/2 and again at 3/4 of the epochs"
            warnings.warn(message, stacklevel=2)


def build_model(args: argparse.Namespace, num_classes: int) -> tuple[nn.Module, flags.Factorization]:
    """Return the network that the flags ask for, with its counts."""
    with mistakes():
        return networks.factorize(networks.build(args.network, args.depth, num_classes, args.kaiming), args)


def build_optimizer(args: argparse.Namespace, model: nn.Module, computing: devices.Computing) -> torch.optim.SGD:
    """Return SGD with L2 decay, or with `--wd2fd` Frobenius decay on the factors in place of it."""
    return training.sgd(
        model, computing, lr=args.learning_rate, momentum=MOMENTUM, weight_decay=args.weight_decay,
        exempt_factors=args.wd2fd, frobenius=args.wd2fd,
    )  # fmt: skip


def learning_rate(args: argparse.Namespace, epoch: int) -> float:
    """Return the rate of an epoch."""
    return args.learning_rate * 0.1 ** training.drops(epoch, args.epoch)


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
    """Train as the command line says, and leave the files of the run in `--log_dir`."""
    args = build_parser().parse_args(argv)
    check(args)
    computing = devices.start(args)
    folder: Path = args.log_dir
    request = "auto" if args.auto_resume else str(folder / CHECKPOINT) if args.resume else args.load_path
    flag = "--load_path" if args.load_path else "--resume"
    with Run.open(folder, args, computing, FILES, request=request, flag=flag, again="--auto-resume") as run:
        data = image_sets.load(args.dataset, args, computing, args.batch_size)
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

    args, budget = training.settle(run.args, rate, run.args.epoch, len(train), MOMENTUM)
    optimizer = build_optimizer(args, model, computing)
    classifier = Classifier(computing.wrap(model), optimizer, computing)
    state = run.restore(model, optimizer)
    first_epoch = state.get("epoch", 0)
    training.rehearse(run, model, classifier, train, rate(first_epoch))
    record = run.begin()
    decay = factorized.FrobeniusDecay(model, args.weight_decay) if args.wd2fd else None
    words = factorized.describe_decay(optimizer, decay)
    training.tell(run, f"{args.network}{args.depth}", model, data, counts, words, budget)

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
        epochs=args.epoch,
        learning_rate=rate,
        first_epoch=first_epoch,
        best=state.get("best_acc", 0.0),
        best_epoch=state.get("best_epoch"),
        before_epoch=log_rate,
        after_epoch=log_and_save,
    )  # fmt: skip
    results = training.results(classifier, last, state.get("best_acc"), counts, valid, test)
    summary = training.summary(
        run, args, counts, budget, study="EigenDamage-Pytorch", network=f"{args.network}{args.depth}",
        data=args.dataset, epochs=args.epoch, validation=training.validation(valid, test),
        metric="validation accuracy (%)", best=results["best validation accuracy"],
        final=results["final validation accuracy"],
    )  # fmt: skip
    more = f"go on: the same flags with --epoch {2 * args.epoch} --load_path {run.folder / CHECKPOINT}"
    run.finish(summary, results, training.ending(run, last, WHAT) + [more] * bool(args.epoch))


if __name__ == "__main__":
    run(main, "main_pretrain.py")
