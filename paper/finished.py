"""A finished run: what it was asked to do, and what came out of it."""

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from .events import Curves
from .method import method_of

# Arguments that say where and how something is run, not what it computes; and the seed, which trials differ in.
ASIDE = {
    "seed", "resume", "auto_resume", "load_path", "overwrite", "device", "device_id", "GPU", "cpu", "workers",
    "print_freq", "save_every", "strict", "data_dir", "save_dir", "log_dir", "teacher_checkpoint", "student_checkpoint",
    "channels_last", "dump_frobnorms", "start_epoch", "evaluate", "deterministic", "log_interval", "log_format",
    "no_progress_bar", "no_epoch_checkpoints", "keep_last_epochs", "save_interval", "distributed_world_size",
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """A finished run, from its own folder or from a record of it."""

    path: Path
    """The folder, or the file of the record."""
    results: Mapping[str, Any]
    """What its `results.json` holds."""
    arguments: Mapping[str, Any]
    name: str
    """The last parts of its folder's path."""
    setting: str | None
    """Of the paper's grid, which decides where the generated scripts run it; None for other runs."""
    evaluation: Mapping[str, Any] = field(default_factory=dict)
    """What `generate.py` found out about a translation, {} without that."""
    read_curves: Callable[[], Curves] = field(default=dict, repr=False, compare=False)

    @property
    def study(self) -> str:
        """Return the name of the study's folder."""
        return self.results["study"]

    @property
    def seed(self) -> int:
        """Return the seed, by which trials are told apart."""
        return self.results["seed"]

    @property
    def metric(self) -> str:
        """Return what `best` and `final` are."""
        return self.results["metric"]

    @property
    def higher_is_better(self) -> bool:
        """Return whether it is an accuracy or a BLEU, and no error or loss."""
        return "accuracy" in self.metric or "BLEU" in self.metric

    @property
    def method(self) -> str:
        """Return the method in the paper's short words (`paper.method`)."""
        return method_of(self.results, self.arguments)

    @property
    def data(self) -> str:
        """Return the data set's name, which is that of its folder if it has one."""
        return os.path.basename(self.results["data"].rstrip("/")) or self.results["data"]

    @cached_property
    def curves(self) -> Curves:
        """Return steps and values by TensorBoard tag, {} if the run logged none.

        Raises:
            UserError: if they cannot be read.
        """
        return self.read_curves()

    def value(self, name: str) -> Any:
        """Return what `name` is for this run: a property, a field of its results or an argument; None if it has none.

        Args:
            name: dashes, underscores and spaces are alike.
        """
        plain = name.replace("-", "_").replace(" ", "_")
        if plain in ("method", "data", "setting", "name"):
            return getattr(self, plain)
        for values in (self.results, self.arguments):
            for key, value in values.items():
                if key.replace("-", "_").replace(" ", "_") == plain:
                    return portable(value)
        return None

    @property
    def identity(self) -> tuple:
        """Return what a run and a record of it have in common, and two runs have not."""
        numbers = tuple(self.results[name] for name in ("study", "network", "seed", "best", "final", "seconds"))
        plain = portable({name: value for name, value in self.arguments.items() if name not in ASIDE})
        return (*numbers, self.data, json.dumps(plain, sort_keys=True))


def portable(value: Any) -> Any:
    """Return a value without what JSON or another machine has not.

    An absolute path becomes its last part, a number that is not finite None.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str) and os.path.isabs(value):
        return os.path.basename(value.rstrip("/"))
    if isinstance(value, dict):
        return {key: portable(item) for key, item in value.items()}
    return [portable(item) for item in value] if isinstance(value, list) else value
