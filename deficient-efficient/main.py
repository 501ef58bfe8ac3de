"""Train networks with structured convolutions, alone or under a teacher (Khodak et al. 2021, section 5).

    python main.py cifar10 teacher --save-dir DIR --wrn-depth 28 --wrn-width 10 --conv TensorTrain_0.234 --spectral
    python main.py cifar10 student --save-dir OTHER -t DIR --wrn-depth 28 --wrn-width 10 --conv Tucker_0.211

`--help` lists the flags.
"""

import dataclasses
import math

from lab.cli import UserError, launch, mistakes

# isort: split
import torch
from deficient import data, networks, settings, teacher
from deficient.decay import parameter_groups
from deficient.objective import Objective
from deficient.teacher import CHECKPOINT
from deficient.wide_resnet import BLOCK_CONVS
from torch import nn

import factorized
from lab import account, checkpoint, devices, training
from lab.data.batches import Batches
from lab.flags import Factorization
from lab.loop import Classifier, Epoch, cross_entropy, fit
from lab.run import Run

BEST = "best.t7"
FILES = (CHECKPOINT, BEST)
WHAT = {CHECKPOINT: "is the last network", BEST: "the best", "results.json": "the numbers"}
HISTORY = ("train_losses", "train_errors", "val_losses", "val_errors")


def build_model(args: settings.Training, classes: tuple[str, ...]) -> tuple[nn.Module, networks.Config, Factorization]:
    """Return the network that the flags ask for, what rebuilds it, and its counts."""
    with mistakes():
        config = settings.config(args, classes, args.rank_scale)
        dense = networks.skeleton(networks.reference(config))
        if args.target_ratio:
            found = factorized.find_rank_scale(dense, args.target_ratio, include=BLOCK_CONVS, strict=args.strict)
            config = dataclasses.replace(config, rank_scale=found.rank_scale)
        model = networks.build(config, spectral=args.spectral, rank_path=args.rank_path)
    if args.spectral and not config.rank_scale and not any(hasattr(m, "spectral_") for m in model.modules()):
        raise UserError("--spectral: no layer of this network has a spectral initialization")
    original, compressed = factorized.parameter_count(dense), factorized.parameter_count(model)
    return model, config, Factorization(original, compressed, config.rank_scale)


def build_optimizer(
    args: settings.Training, model: nn.Module, ratio: float, computing: devices.Computing
) -> tuple[torch.optim.SGD, factorized.FrobeniusDecay | None]:
    """Return SGD with its decay, and the Frobenius decay among it if `--wd2fd` asks for it."""
    groups = parameter_groups(model, args.weight_decay, ratio=1.0 if args.nocrswd else ratio, frobenius=args.wd2fd)
    optimizer = torch.optim.SGD(groups, lr=args.lr, momentum=args.momentum)
    if args.clip_grad:
        parameters = list(model.parameters())

        def clip(*_) -> None:
            nn.utils.clip_grad_norm_(parameters, args.clip_grad)

        optimizer.register_step_pre_hook(clip)
    if not args.wd2fd:
        return optimizer, None
    if not factorized.factorized_modules(model):
        raise UserError("--wd2fd: no layer of this network has Frobenius decay")
    in_backward = not computing.scaler.is_enabled() and not args.clip_grad  # else it would be scaled or clipped, too
    decay = factorized.FrobeniusDecay(model, args.weight_decay)
    decay.attach(optimizer, in_backward)
    return optimizer, decay


def learning_rate(args: settings.Training, epoch: int) -> float:
    """Return the rate of an epoch: lowered at every milestone, or along a cosine to zero."""
    if args.epoch_step is None:
        return args.lr * (1 + math.cos(math.pi * epoch / args.epochs)) / 2
    return args.lr * args.lr_decay_ratio ** sum(epoch >= step for step in args.epoch_step)


def build_objective(
    args: settings.Training,
    taught: teacher.Teacher | None,
    model: nn.Module,
    train: Batches,
    computing: devices.Computing,
) -> Objective:
    """Return the training loss; under a teacher if there is one, which must fit the data and the network."""
    if taught is None:
        return Objective(auxiliary_weight=args.auxiliary_weight)
    teacher.check_classes(taught, train.data.classes)
    network = computing.place(taught.network())
    if args.beta:
        teacher.check_taps(model, network, next(train.epoch(0))[0][:1])
    return Objective(
        network, args.temperature, args.alpha, args.beta, args.kl_reduction, auxiliary_weight=args.auxiliary_weight
    )


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = settings.build_parser().parse_args(argv)
    taught = teacher.read(args.teacher_checkpoint, args.module) if args.mode == settings.STUDENT else None
    computing = devices.start(args)
    with open_run(args, computing) as run:
        batches = data.load(args, computing)
        model, config, counts = build_model(args, batches[0].data.classes)
        train(run, computing.place(model), taught, config, counts, batches)


def open_run(args: settings.Training, computing: devices.Computing) -> Run:
    """Return the run in its folder. A folder that holds a run is left alone, and the next one taken.

    Raises:
        UserError: if the folder holds a run with other arguments.
    """
    return Run.open(args.save_dir, args, computing, FILES, next_free=not (args.resume or args.overwrite))


def train(
    run: Run,
    model: nn.Module,
    taught: teacher.Teacher | None,
    config: networks.Config,
    counts: Factorization,
    batches: tuple[Batches, Batches, Batches],
) -> None:
    """Train, and leave the run's files in its folder. All that can be wrong is found before anything is written."""
    train, valid, test = batches
    computing = run.computing

    def rate(epoch: int) -> float:
        return learning_rate(run.args, epoch)

    args, budget = training.settle(run.args, rate, run.args.epochs, len(train), run.args.momentum)
    optimizer, decay = build_optimizer(args, model, counts.ratio, computing)
    objective = build_objective(args, taught, model, train, computing)
    classifier = Classifier(computing.wrap(model), optimizer, computing, objective, read_every=args.print_freq)
    state = run.restore(model, optimizer)
    first_epoch = state.get("epoch", 0)
    history = restored_history(run, state)
    training.rehearse(run, model, classifier, train, rate(min(first_epoch, args.epochs - 1)))
    record = run.begin()
    network = f"WRN-{args.wrn_depth}-{args.wrn_width:g}" if args.network == "WideResNet" else args.network
    name = f"{network} of {args.conv or args.module}"
    account.tell(run, name, model, batches, counts, factorized.describe_decay(optimizer, decay), budget)
    if objective.teacher is not None:
        plain = dataclasses.replace(classifier, model=objective.teacher, objective=cross_entropy)
        record.line(f"teacher: error {100 - plain.evaluate(valid).top1:.2f}% of {len(valid.data)} images")

    def before_epoch(epoch: int) -> None:
        if hasattr(model, "drop"):
            model.drop.fill_(networks.RECIPES[args.network].drop_path * epoch / args.epochs)

    def after_epoch(epoch: Epoch) -> None:
        scalars = {"learning_rate": rate(epoch.index), **epoch.scalars(rate(epoch.index))}
        for part, averages in (("train", epoch.train), ("val", epoch.valid)):
            scalars |= {f"{part}_loss": averages.loss}
            scalars |= {f"{part}_top1": 100 - averages.top1, f"{part}_top5": 100 - averages.top5}
            history[f"{part}_losses"].append(averages.loss)
            history[f"{part}_errors"].append(100 - averages.top1)
        if decay:
            scalars["train_frob_penalty"] = decay.penalty().item()
        record.scalars(scalars, epoch.index)
        progress = {"epoch": epoch.index + 1, "seconds": record.seconds}
        progress |= {"best_error": 100 - epoch.best, "best_top1": epoch.best}  # 100 - error would be rounded
        progress |= {"config": config.to_dict(), "history": history, "best_epoch": epoch.best_epoch}
        state = checkpoint.training_state(model, optimizer, computing, **progress)
        best = {BEST: {"state_dict": state["state_dict"], **progress}} if epoch.is_best else {}
        run.save({**best, CHECKPOINT: state})

    last = fit(
        classifier, train, valid, record,
        epochs=args.epochs,
        learning_rate=rate,
        first_epoch=first_epoch,
        best=state.get("best_top1", 0.0),
        best_epoch=state.get("best_epoch"),
        before_epoch=before_epoch,
        after_epoch=after_epoch,
    )  # fmt: skip
    results = {
        "final validation error": history["val_errors"][-1],
        "best validation error": 100 - last.best if last else state["best_error"],
        "original parameter count": counts.original,
        "compressed parameter count": counts.compressed,
        "compression ratio": counts.ratio,
        "rank scale": counts.rank_scale,
        "validation images": account.validation(valid, test),
    }
    if args.holdout:
        results["final test error"] = 100 - classifier.evaluate(test).top1
    summary = account.summary(
        run, args, counts, budget, study="deficient-efficient", network=name, data=args.data or args.dataset,
        decay="" if args.wd2fd or args.nocrswd or not args.weight_decay else "L2 decay times the compression ratio",
        epochs=args.epochs, validation=results["validation images"], metric="validation error (%)",
        best=results["best validation error"], final=results["final validation error"],
    )  # fmt: skip
    more = f"a student learns from it: main.py {args.dataset} student -t {run.folder} --save-dir FOLDER ..."
    run.finish(summary, results, account.ending(run, last, WHAT, (classifier, train), [more]))


def restored_history(run: Run, state: dict) -> dict[str, list[float]]:
    """Return the losses and errors of the epochs that are done.

    Raises:
        UserError: if the checkpoint does not hold as many as it says.
    """
    if not run.source:
        return {name: [] for name in HISTORY}
    with checkpoint.as_damage(run.source):
        history = {name: [float(value) for value in state["history"][name]] for name in HISTORY}
        if {len(values) for values in history.values()} != {state["epoch"]}:
            raise ValueError("its history is not as long as its epochs are many")
    return history


if __name__ == "__main__":
    launch(main, "main.py")
