"""Checkpoints of translation models: plain values and tensors, read without running code."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from lab import checkpoint
from lab.cli import UserError

from .config import TransformerConfig
from .dictionary import Dictionary
from .transformer import Transformer, build_model

VERSION = 1


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
    state = checkpoint.load(path, device)
    if not isinstance(state, dict) or not {"version", "config", "state_dict"} <= state.keys():
        raise UserError(f"{path} is not a checkpoint of train.py")
    if state["version"] != VERSION:
        raise UserError(f"{path} has format {state['version']}; this program reads format {VERSION}")
    return state


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
