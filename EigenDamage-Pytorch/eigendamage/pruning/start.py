"""The network that is to be pruned: from the folder of a run of `main_pretrain.py`, or from a pruned one."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import checkpoint
from lab.cli import UserError

from .. import networks
from .pruned import Pruned

_IN_FOLDER = ("best.t7", "checkpoint.t7")


@dataclass(frozen=True)
class Start:
    """A checkpoint, and what it says of its network."""

    path: Path
    """The file of the network."""
    network: str
    depth: int
    data: str | None
    epochs: int
    """The number of epochs that the network has been trained for."""

    @classmethod
    def read(cls, source: Path) -> "Start":
        """Return what is in a file, or in a run's folder: the best network, else the last one.

        Raises:
            UserError: if there is nothing, or it is no dense or pruned network of ours.
        """
        path = _file_in(source)
        state = checkpoint.load(path)
        if not isinstance(state, dict) or not isinstance(state.get("net", state.get("state_dict")), dict):
            raise UserError(f"{path} holds no network: a checkpoint has a state_dict or net")
        args = state.get("args")
        args = args if isinstance(args, dict) else {}
        names = state.get("net", state.get("state_dict"))
        if "pruned" not in state and any(str(name).endswith((".VT", ".U")) for name in names):
            raise UserError(
                f"{path} holds a factorized network, which is compressed already; "
                "prune a dense one, trained without --rank-scale and --target-ratio"
            )
        network, depth = args.get("network"), args.get("depth")
        if network not in networks.NETWORKS or not isinstance(depth, int):
            raise UserError(
                f"{path} does not say which network it holds (its args have network and depth); "
                "give the folder of a run of main_pretrain.py"
            )
        data, epochs = args.get("data", args.get("dataset")), state.get("epoch", 0)
        return cls(path, network, depth, data, epochs if isinstance(epochs, int) else 0)

    def load(self, classes: int) -> Pruned:
        """Return the network, on the CPU.

        Raises:
            UserError: if it is another one than the checkpoint says, or has another number of classes.
        """
        state: dict[str, Any] = checkpoint.load(self.path)
        if "pruned" in state:
            with checkpoint.as_damage(self.path):
                pruned = Pruned.rebuild(state["pruned"])
            if pruned.classes != classes:
                raise UserError(f"{self.path} is of {pruned.classes} classes, and the data have {classes}")
        else:
            pruned = Pruned.dense(self.network, self.depth, classes)
        checkpoint.load_weights(pruned.model, state, self.path)
        return pruned


def _file_in(source: Path) -> Path:
    if not source.is_dir():
        if not source.is_file():
            raise UserError(f"--from {source}: no such file or folder; name the folder of a run of main_pretrain.py")
        return source
    for name in _IN_FOLDER:
        if (source / name).is_file():
            return source / name
    raise UserError(
        f"--from {source}: no {' or '.join(_IN_FOLDER)} in it; name the folder of a run of main_pretrain.py"
    )
