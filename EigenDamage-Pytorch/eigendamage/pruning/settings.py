"""What a pruning run is asked to do: flags, a configuration, and what the network to prune says of itself."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import flags, training
from lab.cli import UserError, mistakes, number
from lab.run import is_in
from lab.settings import Parser, flag

from . import configs
from .counting import COSTS
from .methods import CORRECTIONS, METHODS, SEPARABLE, Method, Scoring
from .start import Start
from .step import Pruner, Target

EPOCHS, LR, DECAY, LIMIT = 150, 1e-3, 1e-4, 0.95
BATCH_SIZES = {"vgg": 128}  # and 64
LABELS = ("sampled", "given")
SCORES = ("exact", "published")
_SHARE = number(float, above=0, most=1)


@dataclass(frozen=True)
class Round:
    """One removal, and the fine-tuning after it."""

    epochs: int
    lr: float
    weight_decay: float
    target: Target

    def rate(self, epoch: int) -> float:
        """Return the learning rate of one of its epochs, from 0."""
        return self.lr * 0.1 ** training.drops(epoch, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Settings(flags.Images, flags.Overwrite, flags.ImageTraining):
    """What a pruning run is asked to do; what is not given is left to `plans`."""

    # fmt: off
    source: Path | None = flag("network", "--source", called="--from", metavar="DIR|FILE", help="run of main_pretrain.py or ours, or a checkpoint: what is pruned")  # noqa: E501
    network: str | None = flag("network", help="as the checkpoint says (default); a contradiction is an error")
    depth: int | None = flag("network", type=int, help="likewise (default: as the checkpoint says)")
    data: str | None = flags.data(None, "--dataset", help="data set (default: that of the checkpoint)")
    method: str | None = flag("pruning")
    config: Path | None = flag("pruning", "--tmp_config", metavar="FILE", help="or JSON with all that; published ones need no file")  # noqa: E501
    target_ratio: float | None = flag("pruning", type=_SHARE, metavar="R", help="share of the dense parameters left at the end")  # noqa: E501
    cost: str = flag("pruning", default=COSTS[0], choices=COSTS, help="what --target-ratio is a share of")
    ratio: float | None = flag("pruning", type=_SHARE, metavar="R", help="or share of all scores to go in a round, as published")  # noqa: E501
    rounds: int = flag("pruning", default=1, type=flags.POSITIVE, metavar="N", help="removals, which share the epochs")
    limit: float | None = flag("pruning", type=_SHARE, metavar="L", help=f"largest share of a layer's units to go in a round (default {LIMIT}, or less for filters and --target-ratio)")  # noqa: E501
    fix_layers: int | None = flag("pruning", type=flags.COUNT, metavar="N", help="the first N layers lose nothing (default 0)")  # noqa: E501
    normalize: bool = flag("pruning", default=False, help="divide scores by their sum over the layer")
    labels: str | None = flag("pruning", choices=LABELS, help="of statistics: drawn from the predictions (default), or as given")  # noqa: E501
    samples: int | None = flag("pruning", type=flags.POSITIVE, metavar="N", help="training images for the statistics, in whole batches (default: all)")  # noqa: E501
    damping: float = flag("pruning", default=Scoring().damping, type=flags.REAL, metavar="D", help="of inverses, in mean eigenvalues")  # noqa: E501
    score: str = flag("pruning", default="exact", choices=SCORES, help="of kron-obd and kron-obs")
    correction: str = flag("pruning", default="joint", choices=CORRECTIONS, help="of kron-obs, c-obs; published: single")  # noqa: E501
    fix_rotation: bool = flag("pruning", default=False, help="of methods with rotations: do not train them")
    re_init: bool = flag("pruning", default=False, help="train what is left anew, from random weights")
    wd2fd: bool = flag("optimization", default=False, help="Frobenius decay instead of L2 decay on layers in Tucker-2 form")  # noqa: E501
    epochs: int | None = flags.epochs(None, least=0, help=f"over all rounds (default {EPOCHS} for each)")
    batch_size: int | None = flags.batch_size(None, help="images per step, over all processes (default 128 for a vgg, else 64)")  # noqa: E501
    lr: float | None = flags.lr(None, help=f"at the start of a round; a tenth from its half, a hundredth from three quarters on (default {LR})")  # noqa: E501
    weight_decay: float | None = flags.weight_decay(None, help=f"coefficient of L2 and Frobenius decay (default {DECAY})")  # noqa: E501
    save_dir: Path | None = flag("run", metavar="DIR", help="folder of the run (default runs/pruning/...)")
    resume: str = flags.resume("--auto-resume=auto")
    # fmt: on
    schedule: tuple = ()
    """The rounds of a configuration, where they differ: epochs, rate, decay, what of and which share."""


@dataclass(frozen=True)
class Plan:
    """A run: rounds of removal and fine-tuning, one after another, that start from one network."""

    folder: Path
    start: Start
    data: str
    batch_size: int
    pruner: Pruner
    rounds: tuple[Round, ...]
    args: Settings
    """The flags with what they lead to, as `lab.run.Run` keeps them."""

    @property
    def epochs(self) -> int:
        """Of all rounds."""
        return sum(r.epochs for r in self.rounds)


def build_parser(prog: str, description: str | None, methods: Sequence[str]) -> Parser:
    """Return the parser of the command line of a program that knows these methods."""
    method = flag("pruning", choices=methods, metavar="NAME", help=", ".join(methods))
    fields = [("method", str | None, method)]
    kind = dataclasses.make_dataclass("Settings", fields, bases=(Settings,), frozen=True, kw_only=True)
    return Parser(kind, prog=prog, description=description)


def plans(args: Settings, methods: Sequence[str]) -> list[Plan]:
    """Return the runs that the command line asks for: one, or one for each ratio and variant of a configuration.

    Args:
        methods: that the program knows; a single one need not be named.

    Raises:
        UserError: for flags and configurations that contradict or need each other, and as `Start.read`.
    """
    if args.config is None:
        folder = args.save_dir or Path("runs/pruning") / (args.method or methods[0])
        return [_plan(args, {}, folder, methods)]
    if args.method or args.target_ratio or args.ratio or args.rounds > 1:
        raise UserError(
            "--config says method, ratios and rounds: leave out --method, --target-ratio, --ratio, --rounds"
        )
    found = []
    variants = configs.read(args.config)
    for config in variants:
        folder = _folder(args, config, len(variants) > 1)
        steps = len(configs.numbers(config, "ratio", args.config))
        if config.get("prune_mode", configs.MODES[0]) == "iterative" or steps == 1:
            found.append(_plan(args, config, folder, methods))
            continue
        for step in range(steps):  # each ratio starts from the same network
            one = {key: configs.numbers(config, key, args.config)[step : step + 1] for key in _OF_ROUNDS}
            found.append(_plan(args, {**config, **one}, folder / str(step), methods))
    return found


_OF_ROUNDS = ("epoch", "learning_rate", "weight_decay", "ratio")


def _folder(args: Settings, config: dict[str, Any], several: bool) -> Path:
    if args.save_dir is not None:
        return args.save_dir / config["exp_name"] if several else args.save_dir
    if "summary_dir" in config:
        return Path(config["summary_dir"]).parent
    folders = [part for part in args.config.parent.parts if part not in ("/", ".", "..", "configs")]
    return Path("runs/pruning", *folders, str(config.get("exp_name") or args.config.stem))


def _plan(args: Settings, config: dict[str, Any], folder: Path, methods: Sequence[str]) -> Plan:
    method = configs.FISHER_MODES[config["fisher_mode"]] if config else args.method
    if method is None:
        if len(methods) > 1:
            raise UserError(f"give --method ({', '.join(methods)}) or --config")
        method = methods[0]
    if method not in methods:
        program = "main_prune_separable.py" if method == SEPARABLE else "main_prune.py"
        raise UserError(f"{args.config}: fisher_mode {config['fisher_mode']} is for {program}")
    if any(configs.numbers(config, "pre_model", args.config) if "pre_model" in config else []):
        raise UserError(f"{args.config}: pre_model has no effect; --resume auto goes on after a removal that was saved")
    source = args.source or (Path(config["checkpoint"]) if config.get("checkpoint") else None)
    if source is None:
        raise UserError("give the network to prune: --from with the folder of a run of main_pretrain.py")
    start = Start.read(source)
    for name, there in (("network", start.network), ("depth", start.depth)):
        for asked, where in ((getattr(args, name), f"--{name} is"), (config.get(name), f"{args.config} says")):
            if asked is not None and str(asked) != str(there):
                raise UserError(f"{source} holds a {start.network}{start.depth}, but {where} {asked}")
    if is_in(start.path, folder):
        raise UserError(f"--save-dir {folder} holds the network to prune; use another folder")
    data = args.data or config.get("dataset") or start.data
    if data is None:
        raise UserError(f"{source} does not say which data set it was trained on: give --data")
    batch_size = args.batch_size or config.get("batch_size") or BATCH_SIZES.get(start.network, 64)
    rounds = _rounds(args, config)
    pruner = _pruner(args, config, method)
    labels = args.labels or (LABELS[0] if configs.truth(config.get("fisher_type", True)) else LABELS[1])
    re_init = args.re_init or configs.truth(config.get("re_init", False))
    if args.resume and args.overwrite:
        raise UserError("--resume continues the run in --save-dir, --overwrite replaces it: give only one")
    resolved = {
        "source": source, "network": start.network, "depth": start.depth, "data": data, "method": method,
        "batch_size": int(batch_size), "labels": labels, "re_init": re_init, "save_dir": folder,
        "epochs": sum(r.epochs for r in rounds), "normalize": pruner.normalize,
        "fix_layers": pruner.skipped, "fix_rotation": pruner.fixed_rotations, "rounds": len(rounds),
    }  # fmt: skip
    first, *others = ((r.lr, r.weight_decay, r.target) for r in rounds)
    if not config or all(other == first for other in others):  # which flags alone can say
        resolved |= {"lr": rounds[0].lr, "weight_decay": rounds[0].weight_decay, "config": None}
        resolved |= {"ratio": rounds[0].target.share} if config else {}
    else:
        resolved["schedule"] = tuple((r.epochs, r.lr, r.weight_decay, *r.target) for r in rounds)
    settings = dataclasses.replace(args, **resolved)
    return Plan(folder, start, data, int(batch_size), pruner, rounds, settings)


def _rounds(args: Settings, config: dict[str, Any]) -> tuple[Round, ...]:
    """Return the rounds: those of a configuration, whose numbers flags replace in all of them; or of flags alone."""
    if config:
        columns = [configs.numbers(config, key, args.config) for key in _OF_ROUNDS]
        count = len(columns[0])
        if args.epochs is not None:
            columns[0] = _shared(args.epochs, count)
        for place, value in ((1, args.lr), (2, args.weight_decay)):
            if value is not None:
                columns[place] = [value] * count
        for epochs, lr, decay, ratio in zip(*columns):
            if epochs < 0 or epochs != int(epochs) or lr < 0 or decay < 0 or not 0 < ratio <= 1:
                raise UserError(
                    f"{args.config}: epochs {epochs:g}, rate {lr:g}, decay {decay:g} and ratio {ratio:g} make no "
                    "round: the first is a count, none is negative, and the last is above 0 and at most 1"
                )
        return tuple(Round(int(e), lr, wd, Target("scores", ratio)) for e, lr, wd, ratio in zip(*columns))
    if (args.target_ratio is None) == (args.ratio is None):
        raise UserError("give one of --target-ratio, a share of the parameters, and --ratio, a share of the scores")
    if args.ratio is not None and args.cost != COSTS[0]:
        raise UserError("--cost has no effect with --ratio, a share of the scores; give --target-ratio")
    epochs = _shared(EPOCHS * args.rounds if args.epochs is None else args.epochs, args.rounds)
    lr, decay = LR if args.lr is None else args.lr, DECAY if args.weight_decay is None else args.weight_decay
    found = []
    for index, own in enumerate(epochs):
        if args.ratio is not None:
            target = Target("scores", args.ratio)
        else:
            target = Target(args.cost, args.target_ratio ** ((index + 1) / args.rounds))
        found.append(Round(int(own), lr, decay, target))
    return tuple(found)


def _shared(epochs: int, rounds: int) -> list[float]:
    """Return the epochs of each round, as even as whole epochs can be."""
    return [epochs * (index + 1) // rounds - epochs * index // rounds for index in range(rounds)]


def _pruner(args: Settings, config: dict[str, Any], method: str) -> Pruner:
    about = METHODS[method]
    fixed = args.fix_rotation or configs.truth(config.get("fix_rotation", False)) and about.of_directions
    needs = {
        "--fix-rotation": (args.fix_rotation, about.of_directions, "a method with rotations, such as eigendamage"),
        "--wd2fd": (
            args.wd2fd,
            about.of_directions,
            "a method that leaves layers in Tucker-2 form, such as eigendamage",
        ),
        "--score": (args.score != "exact", about.published_kinds is not None, "--method kron-obd or kron-obs"),
        "--correction": (args.correction != "joint", about.corrects, "--method kron-obs or c-obs"),
    }
    for name, (given, possible, needed) in needs.items():
        if given and not possible:
            raise UserError(f"{name} has no effect without {needed}")
    with mistakes():
        limit = args.limit if args.limit is not None else float(config.get("prune_ratio_limit", LIMIT))
        limits = _limits(limit, args, about) if args.limit is None and not config else (limit,)
        skipped = args.fix_layers if args.fix_layers is not None else int(config.get("fix_layers", 0))
    if not 0 < limit <= 1 or skipped < 0:
        raise UserError(
            f"{args.config}: prune_ratio_limit {limit:g} must be above 0 and at most 1, fix_layers not negative"
        )
    re_init = args.re_init or configs.truth(config.get("re_init", False))
    scoring = Scoring(args.damping, args.score == "published", "none" if re_init else args.correction)
    normalize = args.normalize or configs.truth(config.get("normalize", False))
    return dataclasses.replace(Pruner(method, scoring), limits=limits, normalize=normalize, skipped=skipped,
                               fixed_rotations=fixed)  # fmt: skip


def _limits(limit: float, args: Settings, about: Method) -> tuple[float, ...]:
    """Return the limits of flags alone, the first of which is tried first.

    Filters of a target in parameters: a layer keeps at least half of what every layer would in an even network of that
    size. Otherwise scores of all layers together can leave a network with bottlenecks that hardly learn.
    """
    if args.target_ratio is None or about.of_directions:
        return (limit,)
    of_round = args.target_ratio ** (1 / args.rounds)
    return (min(limit, 1 - math.sqrt(of_round) / 2), limit)
