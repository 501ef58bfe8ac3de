"""Configurations in JSON with the published keys, and the published ones themselves as a few lines of data.

Values of single rounds are lists separated by commas, in one text: `"ratio": "0.4,0.5"`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lab.cli import UserError

from .methods import SEPARABLE

MODES = ("one_pass", "iterative")
FISHER_MODES = {"diag": "c-obd", "OBD_F2": "kron-obd", "OBS_F2": "kron-obs", "full": "c-obs", "eigen": "eigendamage",
                "eigen_svd": SEPARABLE}  # fmt: skip
"""Published names of methods."""
KEYS = (
    "exp_name", "network", "depth", "dataset", "batch_size", "epoch", "learning_rate", "weight_decay", "ratio",
    "fisher_mode", "fisher_type", "fix_layers", "checkpoint", "pruner", "normalize", "prune_mode", "prune_ratio_limit",
    "fix_rotation", "re_init", "use_patch", "pre_model", "summary_dir", "checkpoint_dir",
)  # fmt: skip
_NEEDED = ("network", "depth", "dataset", "epoch", "learning_rate", "weight_decay", "ratio", "fisher_mode")

# -- the published grid ------------------------------------------------------------------------------------------------

_NETWORKS = {"vgg19": ("vgg", 19, 128), "resnet32": ("resnet", 32, 64)}  # network, depth, batch size
_ALGORITHMS = {
    "fisher_diag": "diag", "kfacf_OBD_F2": "OBD_F2", "kfacf_OBS_F2": "OBS_F2", "kfacf_full": "full",
    "kfacf_eigen": "eigen",
}  # fmt: skip
_SVD = {"svd_eigendamage": "eigen_svd"}
_NO_PATCH = ("kfacf_OBS_F2", "kfacf_full")
_SIX = "0.4,0.5,0.6,0.7,0.8,0.9"
# Folder, algorithms, data sets, networks, mode, ratios, limit, learning rate.
_GRID: tuple[tuple[str, Mapping[str, str], tuple[str, ...], tuple[str, ...], str, str, float, str], ...] = (
    ("cifar", _ALGORITHMS, ("cifar10", "cifar100"), ("vgg19", "resnet32"), "one_pass", _SIX, 0.95, "1e-3"),
    ("cifar", _ALGORITHMS, ("cifar10", "cifar100"), ("vgg19", "resnet32"), "iterative", ",".join(7 * ["0.5"]), 0.5,
     "1e-3"),
    ("tiny_imagenet", _ALGORITHMS, ("tiny_imagenet",), ("vgg19",), "one_pass", "0.5,0.6,0.7,0.8,0.9", 0.95, "1e-3"),
    ("svd", _SVD, ("cifar100",), ("vgg19",), "one_pass", _SIX, 0.95, "1e-4"),
    ("svd", _SVD, ("tiny_imagenet",), ("vgg19",), "one_pass", _SIX, 0.95, "1e-5"),
)  # fmt: skip


def published() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the published configurations, each with the path that it had, and sweeps of one variant over them."""
    for group, algorithms, data_sets, nets, mode, ratios, limit, lr in _GRID:
        for data in data_sets:
            for net in nets:
                network, depth, batch = _NETWORKS[net]
                steps = len(ratios.split(","))
                for prefix, fisher_mode in algorithms.items():
                    patch = "_no_patch" if prefix in _NO_PATCH else ""
                    folder = f"configs/exp_for_{group}/{data}/{net}/{mode}"
                    stem = prefix if group == "svd" else f"{prefix}_base"
                    base = f"{folder}/base/{stem}.json"
                    yield base, {
                        "exp_name": f"{data}_{net}_{prefix}{patch}_{mode}_", "network": network, "depth": depth,
                        "dataset": data, "batch_size": batch, "epoch": ",".join(steps * ["150"]),
                        "learning_rate": ",".join(steps * [lr]), "weight_decay": ",".join(steps * ["1e-4"]),
                        "ratio": ratios, "fisher_mode": fisher_mode, "fisher_type": "true", "fix_layers": 0,
                        "checkpoint": f"checkpoint/pretrain/{data}_{net}_best.t7", "normalize": False,
                        "prune_mode": mode, "prune_ratio_limit": limit, "fix_rotation": False, "re_init": False,
                        "use_patch": fisher_mode.startswith("eigen"),
                    }  # fmt: skip
                    yield f"{folder}/{prefix}_exps.json", {"base": base, "exps": [{"name": "normal"}]}


# -- reading -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, Any]]:
    """Return the configurations in a file: one, or the variants of a sweep. A published path needs no file.

    Raises:
        UserError: if there is no such file, or it is no configuration.
    """
    content = _load(path)
    if "exps" not in content:
        return [_checked(content, path)]
    base, variants = content.get("base"), content["exps"]
    if not isinstance(base, str) or not isinstance(variants, list) or not all(isinstance(v, dict) for v in variants):
        raise UserError(f"{path} is no sweep: it needs base, a path, and exps, a list of variants with a name")
    found = []
    places = [Path(base), path.parent / base]
    config = _load(next((place for place in places if place.is_file()), places[0]))
    for variant in variants:
        if not isinstance(variant.get("name"), str):
            raise UserError(f"{path}: a variant in exps has no name")
        changed = {**config, **{key: value for key, value in variant.items() if key != "name"}}
        found.append(_checked({**changed, "exp_name": f"{config.get('exp_name', '')}{variant['name']}"}, path))
    return found


def _load(path: Path) -> dict[str, Any]:
    if path.is_dir():
        raise UserError(f"--config {path} is a folder; name a JSON file in it")
    if not path.is_file():
        known = dict(published())
        if (name := path.as_posix().removeprefix("./")) in known:
            return known[name]
        near = difflib.get_close_matches(name, known, 1)
        raise UserError(f"--config {path}: no such file, and no published one{f'; {near[0]} is' if near else ''}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no configuration: it holds a {type(content).__name__}, not keys with values")
    return content


def _checked(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return a configuration whose keys are known and whose lists are of one length."""
    for key in config:
        if key not in KEYS:
            near = difflib.get_close_matches(key, KEYS, 1)
            raise UserError(f"{path}: unknown key {key!r}{f'; did you mean {near[0]!r}?' if near else ''}")
    if missing := [key for key in _NEEDED if key not in config]:
        raise UserError(f"{path} lacks {', '.join(missing)}")
    mode = config["fisher_mode"]
    if mode not in FISHER_MODES:
        known = ", ".join(FISHER_MODES)
        more = ": it was never implemented" if str(mode).startswith("ekfac") else ""
        raise UserError(f"{path}: fisher_mode {mode!r} is not supported{more}; choose from {known}")
    if config.get("prune_mode", MODES[0]) not in MODES:
        raise UserError(f"{path}: prune_mode must be {' or '.join(MODES)}, not {config['prune_mode']!r}")
    if str(mode).startswith("eigen") and not truth(config.get("use_patch", True)):
        raise UserError(f"{path}: use_patch must be true with fisher_mode {mode}, whose inputs share all positions")
    lengths = {key: len(numbers(config, key, path)) for key in ("epoch", "learning_rate", "weight_decay", "ratio")}
    if len(set(lengths.values())) > 1:
        said = ", ".join(f"{count} of {key}" for key, count in lengths.items())
        raise UserError(f"{path} says different numbers of rounds: {said}; give one value for each round")
    return config


def numbers(config: Mapping[str, Any], key: str, path: Path) -> list[float]:
    """Return the values of a key, one for each round."""
    value = config[key]
    if isinstance(value, str):
        value = value.split(",")
    texts = value if isinstance(value, list) else [value]
    try:
        return [float(text) for text in texts]
    except (TypeError, ValueError):
        raise UserError(f"{path}: {key} must be numbers separated by commas, not {value!r}") from None


def truth(value: object) -> bool:
    """Return a switch, which may be the text `true`."""
    return value is True or str(value).lower() in ("true", "1")
