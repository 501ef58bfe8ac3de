"""Checkpoints of translation models: plain values and tensors, read without running code."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lab import checkpoint
from lab.cli import UserError
from lab.settings import Settings

from .config import TransformerConfig
from .dictionary import Dictionary
from .transformer import Transformer, build_model

VERSION = 1

_OF_FAIRSEQ = (
    "is a checkpoint of fairseq, whose layers are built otherwise, so that it cannot be converted: "
    "train a model on the same data folder with train.py, or translate with fairseq"
)


def identity(
    config: TransformerConfig, languages: tuple[str, str], dictionaries: tuple[Dictionary, Dictionary]
) -> dict:
    """Return what a checkpoint says about its model besides the weights."""
    return {
        "version": VERSION,
        "config": dataclasses.asdict(config),
        "source_language": languages[0],
        "target_language": languages[1],
        "source_dictionary": dictionaries[0].identity(),
        "target_dictionary": dictionaries[1].identity(),
    }


def load(path: Path, device: torch.device | str = "cpu") -> dict:
    """Return the checkpoint of a translation model.

    Raises:
        UserError: if the file is missing, damaged, something else, or written by a later version.
    """
    try:
        state = checkpoint.load(path, device)
    except UserError:
        if _is_of_fairseq(path):
            raise UserError(f"{path} {_OF_FAIRSEQ}") from None
        raise
    if isinstance(state, dict) and "optimizer_history" in state:
        raise UserError(f"{path} {_OF_FAIRSEQ}")
    if not isinstance(state, dict) or not {"version", "config", "state_dict"} <= state.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    if state["version"] != VERSION:
        raise UserError(f"{path} has format {state['version']}; this program reads format {VERSION}")
    return state


def _is_of_fairseq(path: Path) -> bool:
    """Tell whether a file that cannot be loaded is of fairseq, which keeps its settings as objects of classes."""
    try:
        with open(path, "rb") as file:  # the pickle comes first, or early, and holds its strings as they are
            return b"optimizer_history" in file.read(1 << 24)
    except OSError:
        return False


def check_data(
    state: dict, languages: tuple[str, str], dictionaries: tuple[Dictionary, Dictionary], path: Path
) -> None:
    """Raise UserError unless the checkpoint `state` of file `path` belongs to these dictionaries, in this direction."""
    theirs = state["source_language"], state["target_language"]
    if theirs == languages[::-1] and theirs != languages:
        raise UserError(f"{path} translates {' to '.join(theirs)}, not {' to '.join(languages)}")
    for side, dictionary in zip(("source", "target"), dictionaries):
        theirs, ours = state[f"{side}_dictionary"], dictionary.identity()
        if theirs != ours:
            raise UserError(
                f"{path} is of another {side} vocabulary ({theirs['size']} symbols of {state[f'{side}_language']}) "
                f"than the data ({ours['size']} symbols): use the data folder it was trained with"
            )


def check_config(state: dict, config: TransformerConfig, path: Path) -> None:
    """Raise UserError if the model in the checkpoint computes something else than one of `config`, dropout aside."""
    for field, value in dataclasses.asdict(config).items():
        found = state["config"].get(field)
        if found != value and "dropout" not in field and "spectral" not in field:
            raise UserError(f"{path} is of a model with {field} {found}, not {value}; continue it with the same flags")


def check_run(state: dict, args: Settings, path: Path) -> None:
    """Raise UserError unless the run in the checkpoint can go on as the flags say: not with another optimizer, say."""
    absent = {"args", "updates", "epoch", "schedule", "meter", "optimizer"} - state.keys()
    if absent:
        raise UserError(f"{path} has no {min(absent)} to go on with; --finetune-from-model begins with its weights")
    for name in ("optimizer", "lr_scheduler"):
        theirs, ours = state["args"].get(name), getattr(args, name)
        if theirs != ours:
            raise UserError(
                f"{path} is of a run with --{name.replace('_', '-')} {theirs}, not {ours}: give the same, "
                "or begin with its weights alone, --finetune-from-model"
            )
    if 0 < args.max_update < state["updates"]:
        raise UserError(f"{path} has {state['updates']} updates already, --max-update is {args.max_update}")
    epochs = state["epoch"] if state.get("offset") else state["epoch"] - 1
    if 0 < args.epochs < epochs:
        raise UserError(f"{path} has {epochs} epochs already, --epochs is {args.epochs}")


def load_model(
    path: Path,
    languages: tuple[str, str],
    dictionaries: tuple[Dictionary, Dictionary],
    device: torch.device | str = "cpu",
) -> Transformer:
    """Return the model in a checkpoint, in evaluation mode.

    Args:
        languages, dictionaries: of the data that it is to translate.

    Raises:
        UserError: as `load`, or if it is of other data.
    """
    state = load(path, device)
    check_data(state, languages, dictionaries, path)
    config = TransformerConfig(**state["config"])
    # Not decomposed, as the weights are about to be replaced. Drawing them takes less time than importing what PyTorch
    # needs to draw on the meta device.
    shape = dataclasses.replace(config, spectral=False, spectral_quekey=False, spectral_outval=False)
    with torch.random.fork_rng(devices=[]):
        model = build_model(shape, *map(len, dictionaries))
    model.config = config
    checkpoint.load_weights(model, state, path)
    return model.to(device).eval()


def average(paths: Sequence[Path]) -> dict:
    """Return the first of several checkpoints with the mean of the weights of all; that of integers is rounded down.

    Raises:
        UserError: as `load`, or if they are not all of one model.
    """
    first = load(paths[0])
    totals = {name: _wide(tensor) for name, tensor in first["state_dict"].items()}
    for path in paths[1:]:
        weights = load(path)["state_dict"]
        differing = totals.keys() ^ weights.keys()
        differing |= {name for name in totals.keys() & weights.keys() if totals[name].shape != weights[name].shape}
        if differing:
            raise UserError(f"{path} and {paths[0]} are of different models: {min(differing)} differs")
        for name, total in totals.items():
            total += _wide(weights[name])
    means = {}
    for name, total in totals.items():
        mean = total / len(paths) if total.is_floating_point() else total // len(paths)
        means[name] = mean.to(first["state_dict"][name].dtype)
    return {**first, "state_dict": means}


def _wide(tensor: Tensor) -> Tensor:
    """Return a copy in the widest type of its kind."""
    return tensor.to(torch.float64 if tensor.is_floating_point() else torch.int64, copy=True)
