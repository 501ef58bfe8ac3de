"""Make a teacher of the WRN-50-2 that torchvision's maintainers trained on ImageNet (21.5 % top-1 error, 5.9 % top-5).

    python import_teacher.py -t wrn_50_2.imagenet
    python main.py imagenet student --network WRN_50_2 --conv Shuffle_1 -t wrn_50_2.imagenet -s student

The weights are downloaded, and their checksum verified, unless a file is given. They are those of the recipe whose
images are cropped as `main.py` crops them.
"""

from dataclasses import dataclass
from pathlib import Path

from lab.cli import UserError, launch

# isort: split
from deficient.networks import Config, build
from deficient.teacher import CHECKPOINT
from torchvision.models import Wide_ResNet50_2_Weights

import lab.settings
from lab import checkpoint, flags
from lab.data import folder as image_folder
from lab.earlier import holds_run
from lab.settings import Parser, flag

WEIGHTS = Wide_ResNet50_2_Weights.IMAGENET1K_V1
CLASSES = len(WEIGHTS.meta["categories"])


def class_names(folder: Path) -> tuple[str, ...]:
    """Return the classes of ImageNet as `main.py` names them, after the folders of images.

    Raises:
        UserError: if there are not a thousand.
    """
    try:
        names = image_folder.class_names(folder)
    except (OSError, UserError):
        names = ()
    if len(names) != CLASSES:
        raise UserError(f"--imagenet_loc: {folder} must hold the {CLASSES} classes of ImageNet, it has {len(names)}")
    return names


def downloaded() -> dict:
    """Return torchvision's weights.

    Raises:
        UserError: if they cannot be had.
    """
    try:
        return WEIGHTS.get_state_dict(progress=True, check_hash=True)
    except Exception as error:  # of the network, the disk, a checksum: there is no common type
        raise UserError(f"cannot download {WEIGHTS.url} ({error}): fetch it and give it, --weights FILE") from None


@dataclass(frozen=True, kw_only=True)
class Settings(lab.settings.Settings):
    """Where the teacher goes, and what it is made of."""

    save_dir: Path = flag("run", "-t", "--teacher_checkpoint", required=True, metavar="DIR",
        help="folder of the teacher")  # fmt: skip
    data_dir: Path = flags.data_dir()
    imagenet_loc: Path | None = flag("data", metavar="DIR",
        help="folder with train/CLASS/* (default: imagenet where data sets are kept)")  # fmt: skip
    weights: Path | None = flag("data", metavar="FILE", help="torchvision's file, instead of downloading it")


def build_parser() -> Parser:
    """Return the parser of the command line."""
    return Parser(Settings, prog="import_teacher.py", description=__doc__.splitlines()[0])


def main(argv: list[str] | None = None) -> None:
    """Write the teacher's checkpoint."""
    args = build_parser().parse_args(argv)
    folder = args.save_dir
    if holds_run(folder, (CHECKPOINT,)):
        raise UserError(f"{folder} already holds a run; use another folder")
    config = Config("WRN_50_2", class_names((args.imagenet_loc or args.data_dir / "imagenet") / "train"))
    weights = checkpoint.load(args.weights) if args.weights else downloaded()
    model = build(config)
    checkpoint.load_weights(model, {"state_dict": weights}, args.weights or WEIGHTS.url)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        checkpoint.save(folder / CHECKPOINT, {"config": config.to_dict(), "state_dict": model.state_dict()})
    except OSError as error:
        raise UserError(f"cannot write into {folder}: {error.strerror}") from None
    print(f"{folder / CHECKPOINT}: WRN-50-2 of {CLASSES} classes")


if __name__ == "__main__":
    launch(main, "import_teacher.py")
