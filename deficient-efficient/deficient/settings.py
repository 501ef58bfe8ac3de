"""What `main.py` is asked to do: its flags, what they are where they are not given, and which do not go together."""

import argparse
import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from lab import flags
from lab.cli import number
from lab.data import images
from lab.settings import Parser, Settings, flag

from . import convs, networks
from .networks import RECIPES, Config

DATASETS = ("cifar10", "cifar100", "imagenet", "digits")
STUDENT, TEACHER = "student", "teacher"
FOLDERS = {TEACHER: Path("wrn_40_2_T"), STUDENT: Path("wrn_40_2_student_KT")}


@dataclass(frozen=True, kw_only=True)
class Network(Settings):
    """Which network, of which convolutions."""

    network: str = flag("network", default="WideResNet", choices=list(RECIPES), help="network")
    wrn_depth: int = flag("network", default=40, type=number(int, least=1, most=10_000), metavar="N",
        help="depth of a WideResNet, 6n + 4")  # fmt: skip
    wrn_width: float = flag("network", default=2, type=number(float, above=0), metavar="X",
        help="widening factor of a WideResNet")  # fmt: skip
    conv: str | None = flag("network", metavar="NAME[_HYPER]",
        help=f"class of convolutions, with its hyper-parameter: {', '.join(convs.KINDS)}")  # fmt: skip
    module: str | None = flag("network", metavar="FILE",
        help="Python file, which is run, with a class Conv, and Block if need be; used without --conv, and for a "
        "teacher that was trained with one")  # fmt: skip

    # Of old command lines: there is no other block.
    blocktype: str = flag("network", default="Basic", choices=("Basic",))

    def __post_init__(self) -> None:
        if self.conv is None and self.module is None:
            raise ValueError("give --conv, the class of convolutions, or --module")
        super().__post_init__()

    def refuse_low_rank(self, wanted: bool) -> None:
        """Raise ValueError if the network is wanted low-rank, but is not a WideResNet of dense convolutions."""
        if wanted and (self.conv != "Conv" or self.network != "WideResNet"):
            raise ValueError(
                "--rank-scale and --target-ratio make a WideResNet with --conv Conv low-rank; "
                f"they do not go with {self.network} and --conv {self.conv}"
            )


def _milestones(text: str) -> list[int]:
    try:
        steps = json.loads(text)
        ascending = all(isinstance(step, int) and step > 0 for step in steps) and sorted(set(steps)) == steps
    except (ValueError, TypeError):
        ascending = False
    if not ascending:
        raise argparse.ArgumentTypeError(f"must be a list of ascending epochs, like [60,120,160], not {text}")
    return steps


def _recipe(what: str) -> str:
    return f"{what} (default of the network)"


@dataclass(frozen=True, kw_only=True)
class Training(Network, flags.Trainer):
    """What `main.py` is asked to do; contradictions are a ValueError."""

    PUBLISHED = {"at_split": "AT_split"}

    dataset: str | None = flag("data", words="only", choices=DATASETS,
        help="data set, which also fixes normalization and augmentation (default cifar10)")  # fmt: skip
    mode: str = flag("run", words="too", default=TEACHER, choices=(STUDENT, TEACHER),
        help="teacher: ordinary training; student: under a trained teacher")  # fmt: skip
    data: str | None = flags.data(None,
        help=f"{', '.join(DATASETS)}, or a folder with train/CLASS/* and test/CLASS/* (default: the word DATASET); "
        "with DATASET, images in place of that set")  # fmt: skip
    imagenet_loc: Path | None = flag("data", metavar="DIR",
        help="folder with train/CLASS/* and val/CLASS/* (default: imagenet where data sets are kept)")  # fmt: skip
    workers: int | None = flag("speed", type=flags.COUNT, metavar="N",
        help=_recipe("processes that load imagenet; other images live in memory"))  # fmt: skip
    save_dir: Path | None = flag("run", metavar="DIR",
        help=f"folder of the run; DIR.1 and so on where it holds one (default {FOLDERS[TEACHER]}, of a student "
        f"{FOLDERS[STUDENT]})")  # fmt: skip
    teacher_checkpoint: Path | None = flag("run", "-t", metavar="DIR",
        help=f"folder or checkpoint of a student's teacher (default {FOLDERS[TEACHER]}); of a teacher what --save-dir "
        "is")  # fmt: skip
    student_checkpoint: Path | None = flag("run", "-s", metavar="DIR", type=Path)
    resume: str = flags.resume("-r", nargs="?", const="auto",
        help="checkpoint to go on from; auto, or no value: that of --save-dir, if any")  # fmt: skip
    budget: int | None = flag("network", type=flags.POSITIVE, metavar="N",
        help="choose the hyper-parameter of --conv NAME for so many parameters")  # fmt: skip
    epochs: int | None = flags.epochs(None, help=_recipe("number of epochs"))
    batch_size: int | None = flags.batch_size(None, help=_recipe("images per step, over all processes"))
    lr: float | None = flags.lr(None, help=_recipe("learning rate at the start"))
    weight_decay: float | None = flags.weight_decay(None, help=_recipe("coefficient of L2 and Frobenius decay"))
    momentum: float = flag("optimization", default=0.9, type=flags.SHARE, metavar="M", help="momentum of SGD")
    epoch_step: list[int] | None = flag("optimization", type=_milestones, metavar="JSON",
        help=_recipe("epochs at which the rate falls, e.g. [60,120,160]"))  # fmt: skip
    lr_decay_ratio: float | None = flag("optimization", type=number(float, above=0), metavar="X",
        help=_recipe("factor of the rate at each of --epoch-step"))  # fmt: skip
    nocrswd: bool = flag("optimization", default=False,
        help="no scaling of structured parameters' decay by the compression ratio")  # fmt: skip
    clip_grad: float | None = flag("optimization", type=number(float, above=0), metavar="NORM",
        help="clip gradients, before Frobenius decay")  # fmt: skip
    at_split: int = flag("optimization", default=1, type=flags.POSITIVE, metavar="N",
        help="attention taps per stage of a WideResNet")  # fmt: skip
    temperature: float = flag("optimization", default=4.0, type=number(float, above=0), metavar="T",
        help="of distillation")  # fmt: skip
    alpha: float = flag("optimization", default=0.0, type=flags.SHARE, metavar="A",
        help="share of distillation in the classification loss")  # fmt: skip
    beta: float = flag("optimization", default=1000.0, type=flags.REAL, metavar="B",
        help="weight of attention transfer")  # fmt: skip
    kl_reduction: str = flag("optimization", default="mean", choices=("mean", "batchmean"),
        help="mean of the distillation loss: over images and classes (default), or images")  # fmt: skip
    auxiliary_weight: float | None = flag("optimization", type=flags.REAL, metavar="X",
        help="of DARTS' auxiliary loss, e.g. 0.4 (default: half and half)")  # fmt: skip
    print_freq: int = flag("run", default=10, type=flags.POSITIVE, metavar="N",
        help="batches between readings of the loss")  # fmt: skip

    # Of old command lines: there is no other transfer.
    aux_loss: str = flag("optimization", default="AT", choices=("AT",))

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget and (self.conv is None or flags.is_factorized(self)):
            raise ValueError("--budget chooses the hyper-parameter of --conv NAME and goes with no rank scale or ratio")
        if self.auxiliary_weight is not None and self.network != "DARTS":
            raise ValueError(f"--auxiliary-weight has no effect on {self.network}, which has no auxiliary head")
        if self.rank_path != "auto" and not flags.is_factorized(self):
            raise ValueError("--rank-path has no effect without --rank-scale or --target-ratio")
        self.refuse_low_rank(flags.is_factorized(self))
        if self.conv and self.is_structured():
            kind = convs.KINDS.get(self.conv) if self.budget else convs.split(self.conv)[0]
            if kind and self.wd2fd and not kind.frobenius:
                raise ValueError(
                    f"--wd2fd: Frobenius decay is not defined for {self.conv}; leave it to the default decay"
                )
            if kind and self.spectral and not kind.spectral:
                raise ValueError(f"--spectral: there is no spectral initialization of {self.conv}")

    def is_structured(self) -> bool:
        """Return whether the convolutions are of a class that is not the dense one."""
        return not flags.is_factorized(self) and self.conv != "Conv"

    def completed(self) -> "Training":
        """Return the settings with what was not given, from the network's recipe and from flags of the same meaning."""
        dataset, data, data_dir = self.dataset, self.data, self.data_dir
        if data in DATASETS and dataset in (None, data):
            dataset, data = data, None
        elif data and data not in images.LOADERS and Path(data).is_dir() and not (Path(data) / "train").is_dir():
            data, data_dir = None, Path(data)  # as once: in place of --data-dir
        changes: dict = {"dataset": dataset or "cifar10", "data": data, "data_dir": data_dir, **self._folders()}
        recipe = RECIPES[self.network]
        for name in ("epoch_step", "lr_decay_ratio"):
            if recipe.epoch_step is None and getattr(self, name) is not None:
                flag = f"--{name.replace('_', '-')}"
                raise ValueError(f"{flag} has no effect on {self.network}, whose rate follows a cosine")
        for name in ("batch_size", "epochs", "lr", "weight_decay", "workers", "lr_decay_ratio"):
            changes[name] = getattr(recipe if getattr(self, name) is None else self, name)
        changes["epoch_step"] = self.epoch_step or (recipe.epoch_step and list(recipe.epoch_step))
        if self.budget:
            changes["conv"] = networks.conv_for_budget(config(self, ("?",) * 10), self.budget)
        settings = dataclasses.replace(self, **changes)
        if settings.conv or settings.mode == TEACHER:  # running a student's module is left to building it
            networks.count(config(settings, ("?",) * 10))
        return settings

    def _folders(self) -> dict[str, Path]:
        """Return the folders of the run, of the teacher and of the student; one of these two is the first."""
        own, other = f"{self.mode}_checkpoint", {TEACHER: STUDENT, STUDENT: TEACHER}[self.mode]
        given = getattr(self, own)
        if given and self.save_dir and given != self.save_dir:
            raise ValueError(f"--save-dir {self.save_dir} and -{self.mode[0]} {given} mean the same: give only one")
        folder = self.save_dir or given or FOLDERS[self.mode]
        elsewhere = getattr(self, f"{other}_checkpoint") or FOLDERS[other]
        if self.mode == STUDENT and folder.resolve() == elsewhere.resolve():
            raise ValueError(f"teacher and student have the same folder, {folder}: give -t and --save-dir")
        return {"save_dir": folder, own: folder, f"{other}_checkpoint": elsewhere}


def config(args: Training, classes: tuple[str, ...], rank_scale: float = 0.0) -> Config:
    """Return the network that the flags ask for."""
    return Config(
        network=args.network, classes=classes, conv=args.conv, module=None if args.conv else args.module,
        depth=args.wrn_depth, width=args.wrn_width, splits=args.at_split, rank_scale=rank_scale,
    )  # fmt: skip


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(Training, prog="main.py", description="Train WideResNets and others with structured convolutions.")
    parser.spell("--device", "--GPU")
    parser.spell("--at-split", "--AT_split")
    return parser
