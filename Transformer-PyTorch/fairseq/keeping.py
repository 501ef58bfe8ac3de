"""Which checkpoints a run writes beside the last one, and which it removes again."""

from pathlib import Path

from lab.settings import Settings

LAST, BEST, AVERAGE = "checkpoint_last.pt", "checkpoint_best.pt", "checkpoint_avg.pt"
FILES = ("checkpoint*.pt",)


class Keeper:
    """Names the files of an epoch, `checkpoint3.pt`, and of the middle of one, `checkpoint3_200.pt`: batches follow.

    Only what this run has written under a limit is removed, nothing that an earlier part of it was to keep.
    """

    def __init__(self, args: Settings, state: dict):
        self.args = args
        self.epochs: list[str] = state.get("epochs", [])
        self.updates: list[str] = state.get("updates", [])

    def state_dict(self) -> dict:
        """Return what `state` is to be, for a run that goes on."""
        return {"epochs": self.epochs, "updates": self.updates}

    def after_epoch(self, epoch: int, is_best: bool) -> tuple[list[str], list[str]]:
        """Return the names of the files to write after an epoch, and of those to remove then."""
        args, names, outdated = self.args, [BEST] if is_best else [], []
        if epoch % max(args.save_interval, 1) == 0 and (args.average_last or not args.no_epoch_checkpoints):
            names.append(f"checkpoint{epoch}.pt")
            limit = args.average_last if args.no_epoch_checkpoints else args.keep_last_epochs
            if limit > 0:
                self.epochs.append(names[-1])
                self.epochs, outdated = _last(self.epochs, max(limit, args.average_last))
        return names, outdated

    def wants(self, updates: int) -> bool:
        """Tell whether to save in the middle of an epoch, after so many updates of the run."""
        return self.args.save_interval_updates > 0 and updates % self.args.save_interval_updates == 0

    def within_epoch(self, epoch: int, batch: int) -> tuple[list[str], list[str]]:
        """Return the names of the files to write after a batch of an epoch, and of those to remove then."""
        if self.args.no_epoch_checkpoints:
            return [], []
        names, outdated = [f"checkpoint{epoch}_{batch}.pt"], []
        if self.args.keep_interval_updates > 0:
            self.updates, outdated = _last([*self.updates, *names], self.args.keep_interval_updates)
        return names, outdated


def _last(names: list[str], limit: int) -> tuple[list[str], list[str]]:
    """Return the last `limit` names, and the others."""
    return names[-limit:], names[:-limit]


def last_epochs(folder: Path, count: int, finished: int) -> list[Path]:
    """Return the checkpoints of the last `count` epochs in a folder, in order, none of an epoch after `finished`."""
    numbers = (path.stem.removeprefix("checkpoint") for path in folder.glob("checkpoint*.pt"))
    numbers = sorted(int(n) for n in numbers if n.isdecimal() and int(n) <= finished)
    return [folder / f"checkpoint{n}.pt" for n in numbers[-count:]]
