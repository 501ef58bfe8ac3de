"""The trained network that a student learns from, rebuilt from its checkpoint alone."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from lab import checkpoint
from lab.cli import UserError

from .networks import Config, build

CHECKPOINT = "checkpoint.t7"


@dataclass(frozen=True)
class Teacher:
    """A checkpoint that has been read, and what it was trained on."""

    source: Path
    config: Config
    state: dict

    def network(self) -> nn.Module:
        """Return the trained network, in evaluation mode and without gradients.

        Raises:
            UserError: if the weights are of another network.
        """
        try:
            model = build(self.config)
        except ValueError as error:
            raise UserError(f"the teacher of {self.source} cannot be built: {error}") from None
        checkpoint.load_weights(model, self.state, self.source)
        return model.eval().requires_grad_(False)


def read(path: Path, module: str | None = None) -> Teacher:
    """Return the teacher of a run's folder or of a checkpoint file.

    Args:
        module: the Python file of its convolutions, if it was trained with one. A file that only the checkpoint names
            is never run.

    Raises:
        UserError: if there is none, it cannot be read, or its convolutions are in a module that was not given.
    """
    source = path / CHECKPOINT if path.is_dir() else path
    if not source.is_file():
        raise UserError(f"no teacher at {path}: train one with main.py DATASET teacher -t {path}, or give its folder")
    state = checkpoint.load(source)
    try:
        config = Config.from_dict(state["config"])
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{source} is no checkpoint of main.py: it does not say which network it holds") from None
    if config.conv is None:
        if module is None:
            raise UserError(f"the teacher's convolutions come from a Python file: give it, --module {config.module}")
        config = replace(config, module=module)
    return Teacher(source, config, state)


def check_classes(teacher: Teacher, classes: tuple[str, ...]) -> None:
    """Raise UserError if the teacher was trained on other classes."""
    if teacher.config.classes != tuple(classes):
        theirs, ours = (", ".join(names[:3]) + ", ..." for names in (teacher.config.classes, classes))
        raise UserError(
            f"the teacher {teacher.source} is of another data set: it knows {len(teacher.config.classes)} classes "
            f"({theirs}), these images have {len(classes)} ({ours})"
        )


@torch.no_grad()
def check_taps(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Raise UserError if the attention maps of the two for `images` do not match in number and size."""
    was_training = student.training
    sizes = [[tuple(tap.shape[2:]) for tap in model.eval()(images, full=True).taps] for model in (student, teacher)]
    student.train(was_training)
    if sizes[0] != sizes[1]:
        mine, theirs = (", ".join("x".join(map(str, size)) for size in found) for found in sizes)
        raise UserError(
            f"attention maps of the student ({mine}) and the teacher ({theirs}) do not match: "
            "give the teacher's --network and --AT_split, or --beta 0"
        )
