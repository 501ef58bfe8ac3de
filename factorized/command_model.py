"""The model that a command of `python -m factorized` names, its weights, and an input of the size that is asked for."""

import argparse
import importlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .calls import run
from .store_files import NOTE

MODEL = (
    "torchvision:NAME or timm:NAME (random weights), or MODULE:FUNCTION, which is called without arguments and looked "
    "for in the working directory, too"
)


class Mistake(Exception):
    """What is wrong with a command, and what would be right, in one line."""


def is_saved(path: str) -> bool:
    """Tell whether a path is a folder written by `factorized.save`."""
    return (Path(path) / NOTE).is_file()


def model_of(args: argparse.Namespace) -> nn.Module:
    """Return the dense model that a command names, with its weights if a file of them is given.

    Raises:
        Mistake: if there is none.
    """
    place, _, name = args.model.partition(":")
    if is_saved(args.model):
        raise Mistake(f"{args.model} is factorized already: give the dense model, {MODEL}")
    if not name:
        raise Mistake(f"{args.model} is neither a folder written by factorized.save nor a model: {MODEL}")
    if not all(part.isidentifier() for part in place.split(".")) or place.endswith(".py"):
        meant = Path(place).stem if Path(place).stem.isidentifier() else "MODULE"
        raise Mistake(f"{place!r} is no module: write {meant}:{name}, as in an import")
    build = _found(place, name)
    try:
        model = build()
    except Exception as error:  # of any kind, by whose code it is
        raise Mistake(f"{args.model} could not be built: {type(error).__name__}: {error}") from None
    if not isinstance(model, nn.Module):
        raise Mistake(f"{args.model} gives a {type(model).__name__}, not a torch.nn.Module")
    if args.weights is not None:
        _load(model, Path(args.weights))
    return model


def _found(place: str, name: str) -> Any:
    """Return what builds a model when it is called without arguments."""
    try:
        sys.path.insert(0, os.getcwd())
        module = importlib.import_module("torchvision.models" if place == "torchvision" else place)
    except ModuleNotFoundError as error:
        raise Mistake(f"there is no module {error.name}: install it, or go to its folder") from None
    except Exception as error:  # of any kind, by whose code it is
        raise Mistake(f"{place} cannot be imported: {type(error).__name__}: {error}") from None
    finally:
        sys.path.pop(0)
    if place == "timm":
        return lambda: module.create_model(name)
    if place == "torchvision":
        return lambda: module.get_model(name, weights=None)
    try:
        found = getattr(module, name)
    except AttributeError as error:
        raise Mistake(f"{place}:{name}: {error}") from None
    if isinstance(found, nn.Module) or not callable(found):
        raise Mistake(f"{place}:{name} is a {type(found).__name__}: name a function that builds a model and returns it")
    return found


def _load(model: nn.Module, path: Path) -> None:
    if path.is_dir():
        raise Mistake(f"{path} is a folder: --weights is a file of the dense model's state dict")
    state: Any
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        state = load_file(path)
    else:
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except OSError:
            raise
        except Exception as error:  # of many kinds, by what is wrong with the file
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise Mistake(f"{path} is no file of tensors: {reason}") from None
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]
    try:
        model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    except (RuntimeError, AttributeError) as error:
        raise Mistake(f"{path} does not fit the model: {error}") from None


def size_of(args: argparse.Namespace) -> str | None:
    """Return the size of an input: the one that is given, or images of 224 x 224 for torchvision and timm."""
    return args.input or ("1x3x224x224" if args.model.startswith(("torchvision:", "timm:")) else None)


def example_of(args: argparse.Namespace, model: nn.Module) -> torch.Tensor | None:
    """Return an input of the size that is asked for, or None without one.

    Raises:
        Mistake: for what is no size, or one that the model cannot be called with.
    """
    text = size_of(args)
    if text is None:
        return None
    kind, _, sizes = text.rpartition(":")
    try:
        shape = [int(size) for size in sizes.split("x")]
    except ValueError:
        shape = []
    if kind not in ("", "tokens") or not shape or min(shape) < 1:
        raise Mistake(f"--input {text} is no size: write 1x3x224x224 for images, tokens:1x128 for indices")
    generator = torch.Generator().manual_seed(0)
    example = torch.zeros(shape, dtype=torch.long) if kind else torch.randn(shape, generator=generator)
    training = model.training
    try:
        with torch.inference_mode():
            run(model.eval(), example)
    except Exception as error:  # of any kind, by whose code it is
        raise Mistake(f"{args.model} cannot be called with an input of --input {text}: {error}") from None
    model.train(training)
    return example
