"""Folders of runs as the programs leave them, made without training."""

import json
from pathlib import Path

from lab.record import Record

RESULTS = {
    "study": "pytorch_resnet_cifar10", "network": "resnet20", "data": "digits",
    "method": "low-rank, random start, L2 decay", "metric": "validation accuracy (%)", "best": 71.0, "final": 70.0,
    "epochs": 4, "seed": 1, "rank scale": 0.111, "parameters": 63850, "dense parameters": 269722, "ratio": 0.2367,
    "decay budget": 4.1, "validation": "the test images", "seconds": 8.0, "seconds per epoch": 2.0,
    "peak memory": 10**9, "machine": "x86_64", "versions": {"factorized": "0.2.0", "torch": "2.14"}, "revision": "abc",
    "final test accuracy": 70.0,
}  # fmt: skip
ARGUMENTS = {
    "arch": "resnet20", "data": "digits", "data_dir": "/home/me/data", "epochs": 4, "lr": 0.02, "weight_decay": 1e-4,
    "decay_budget": 4.1, "rank_scale": 0.111, "target_ratio": 0.0, "spectral": False, "wd2fd": False, "seed": 1,
    "save_dir": "/home/me/runs", "no_frob": False, "normalize": None, "square": False, "device": "auto", "amp": "off",
}  # fmt: skip


def make_run(folder: Path, arguments: dict | None = None, *, curve: list[float] | None = None, **results) -> Path:
    """Write the files of a finished run of plain factors, but for what is given; its curve ends with `final`.

    Args:
        results: fields of results.json, with underscores for spaces.
    """
    changed = {name.replace("_", " "): value for name, value in results.items()}
    fields = {**RESULTS, **changed}
    args = {**ARGUMENTS, **(arguments or {}), "seed": fields["seed"], "save_dir": str(folder)}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "args.json").write_text(json.dumps(args))
    values = curve if curve is not None else [20.0, 40.0, fields["best"], fields["final"]]
    record = Record(folder, is_main=True)
    for step, value in enumerate(values):
        layers = {"metric/FrobNorm": 2.0 + step, "layers/nuclear-over-bound": 0.5 + 0.1 * step}
        layers |= {"hyper/lr-eff_frobsq": 0.02 / (2.0 + step) ** 2, "layers/imbalance": 1.0, "layers/stable-rank": 6.0}
        common = {"train/loss": 2.0 / (step + 1), "train/accuracy": value, "valid/loss": 2.0, "valid/accuracy": value}
        record.scalars({**common, "valid/acc": value, **layers}, step)
    record.close()
    (folder / "results.json").write_text(json.dumps(fields))
    return folder


SI = {"spectral": True}
FD = {"wd2fd": True}
