"""One run in one folder: whether it may begin there, where it goes on, what it saves, and how it ends.

    with Run.open(folder, args, computing, FILES) as run:  # refuses, or takes the folder's lock; writes nothing yet
        ...                                                # data and network: all that can go wrong
        state = run.restore(model, optimizer)
        run.begin()                                        # writes for the first time
        ...                                                # trains; run.save(...) after every epoch
        run.finish(summary, results)

Leaving the block closes the events, frees the folder and ends the process group, whatever has happened.
"""

import contextlib
import dataclasses
import itertools
import math
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer

from . import checkpoint, earlier
from .cli import Terminated, UserError
from .devices import Computing
from .earlier import files_of_run, holds_run, is_in
from .lock import NAME, Busy, Lock
from .record import Record, Summary
from .settings import defaults, names, plain, plain_value, published

# These may differ between the parts of one run: they change how it is run, not what it computes.
_FREE = {"resume", "overwrite", "device", "workers", "print_freq", "save_every", "strict", "data_dir", "channels_last"}
_LENGTH = {"epochs"}  # and this as well where a checkpoint is named: a run may be made longer


class Run:
    """A run in its folder. `open` makes one.

    Attributes:
        folder: the folder of the run.
        args: the arguments, with the folder that was chosen in place of the one that was asked for.
        source: the checkpoint that it goes on from, None for a new one.
        replaces: whether `begin` will remove an earlier run, as `--overwrite` asks.
        state: what `restore` has found there.
        record: its events and lines, from `begin` on.
    """

    record: Record

    def __init__(
        self,
        folder: Path,
        args: Any,
        computing: Computing,
        files: Collection[str],
        *,
        request: str | None = None,
        flag: str = "--resume",
        again: str = "--resume auto",
        free: Collection[str] = (),
        next_free: bool = False,
    ):
        self.folder, self.args, self.computing, self.files = folder, args, computing, tuple(files)
        self.source: Path | None = None
        self.replaces = False
        self.state: dict = {}
        self._request = args.resume if request is None else request
        self._flag, self._again, self._free, self._next_free = flag, again, free, next_free
        self._asked = folder
        self._locks = contextlib.ExitStack()
        self._begun = self._saved = False

    @classmethod
    def open(cls, folder: Path, args: Any, computing: Computing, files: Collection[str], **options) -> "Run":
        """Return the run that may begin, or go on, in `folder`, which is locked from now on.

        Args:
            args: parsed flags, among them perhaps `overwrite`.
            files: names of the files of a run, beside those that every run has; patterns may follow the first, which is
                the checkpoint to continue from.
            request: a file; `auto`, for the checkpoint in `folder`, where a run with the same arguments may have left
                it; or nothing, for a new run. By default the flag `resume`.
            flag: the flag that names a file.
            again: the flag that continues what is in the folder.
            free: arguments that may differ between parts of a run. Where they do, a finished run is continued, too: it
                may be longer now.
            next_free: take the first of FOLDER, FOLDER.1, FOLDER.2, ... that is free, instead of refusing.

        Raises:
            UserError: if `folder` holds a run that is not to be continued or replaced, or one with other arguments; if
                another process is at work there; if it cannot be written; if the file is not there.
            SystemExit: with status 0, if the run is finished already.
        """
        run = cls(folder, args, computing, files, **options)
        try:
            chosen, run.source = computing.on_main(run._choose)
            run.replaces = (
                getattr(args, "overwrite", False)
                and not run._goes_on()
                and computing.on_main(lambda: holds_run(chosen, files))
            )
        except BaseException:
            run.close()
            raise
        if chosen != folder:
            args = dataclasses.replace(args, **{k: chosen for k, v in vars(args).items() if v == folder})
        run.folder, run.args = chosen, args
        return run

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace) -> None:
        if self._begun and isinstance(error, (KeyboardInterrupt, Terminated)):
            error.args = (self._how_to_go_on(),)
        self.close()

    def close(self) -> None:
        """Close the events, free the folder and end the process group."""
        with contextlib.ExitStack() as last:
            last.callback(self.computing.close)
            last.callback(self._locks.close)
            if self._begun:
                self.record.close()

    # -- before anything is written ------------------------------------------------------------------------------------

    def _choose(self) -> tuple[Path, Path | None]:
        """Return the folder, locked, and the checkpoint to go on from."""
        str(self.folder.absolute()).encode()  # an error where the name is not UTF-8: TensorBoard could not write there
        if not self._next_free:
            try:
                self._judge()  # says what is wrong before it makes a folder or touches one
            except UserError:
                if (self.folder / NAME).exists():
                    Lock(self.folder).release()  # says so if the run is still at work
                raise
            self._locks.callback(Lock(self.folder).release)
            return self.folder, self._judge()
        base = self.folder.resolve() if self.folder.name in ("", "..") else self.folder
        others = (base.with_name(f"{base.name}.{suffix}") for suffix in itertools.count(1))
        for folder in itertools.chain([self.folder], others):
            if not holds_run(folder, self.files):
                with contextlib.suppress(Busy):
                    self._locks.callback(Lock(folder).release)
                    if not holds_run(folder, self.files):
                        return folder, None
                    self._locks.close()
        raise AssertionError

    def _judge(self) -> Path | None:
        """Return the checkpoint to go on from, None for a new run."""
        folder, source = self.folder, Path(self._request) if self._request else None
        if self._request == "auto":
            return self._continued()
        if source and not source.is_file():
            raise UserError(f"{self._flag} {source}: no such file")
        if is_in(source, folder):
            if old := earlier.arguments_of(folder, self._instead()):
                self._check_arguments(old, f"{folder} holds", {*self._free, *_LENGTH})
        elif holds_run(folder, self.files) and not getattr(self.args, "overwrite", False):
            raise UserError(
                f"{folder} already holds a run: continue it with {self._again}, "
                "replace it with --overwrite, or use another folder"
            )
        return source

    def _continued(self) -> Path | None:
        """Return the checkpoint of the run that is in the folder, if it has one."""
        folder, path = self.folder, self.folder / self.files[0]
        if old := earlier.arguments_of(folder, self._instead()):
            self._check_arguments(old, f"{folder} holds", self._free)
        elif holds_run(folder, self.files):
            raise UserError(f"{folder} holds files of a run, but no args.json that says which; {self._instead()}")
        now = plain(self.args)
        changed = any(old.get(key) != now[key] for key in (published(self.args, name) for name in self._free))
        finished = (folder / "results.json").exists()
        if finished and not changed:
            print(f"{folder} holds this run, finished")
            raise SystemExit(0)
        if path.exists():
            return path
        if path.is_symlink():
            raise UserError(f"{path} is a link to {os.readlink(path)}, which is not there")
        if finished:
            raise UserError(f"{folder} holds this run, finished, without {path.name} to continue it; {self._instead()}")
        begun = old.get("load_path") or old.get("resume")
        if isinstance(begun, str) and begun not in ("", "auto"):
            raise UserError(f"{folder} has no checkpoint yet of its run, which began with {begun}: start it again so")
        return None

    def _check_arguments(self, old: Mapping, where: str, free: Collection[str]) -> None:
        """Raise UserError if arguments differ from those of the run that is to be continued, some aside."""
        first = defaults(self.args)  # what a run of before a flag was there has for it
        for name in names(self.args):
            value = getattr(self.args, name)
            names_folder = isinstance(value, Path) and value in (self._asked, self.folder)
            theirs, ours = old.get(published(self.args, name), first.get(name)), plain_value(value)
            if name not in _FREE and name not in free and not names_folder and theirs != ours:
                raise UserError(
                    f"{where} a run with {name} {theirs}, not {ours}: "
                    "give the same arguments to continue it, or use another folder"
                )

    def _instead(self) -> str:
        return "use another folder" + (" or --overwrite" if hasattr(self.args, "overwrite") else "")

    def restore(self, model: nn.Module, optimizer: Optimizer) -> dict:
        """Restore the checkpoint that the run goes on from, and return what it holds: nothing for a new run.

        Raises:
            UserError: as `checkpoint.restore_training`; if the checkpoint is of a run with other arguments, or longer
                than this one, or holds what no run writes.
        """
        if not self.source:
            return {}
        state = checkpoint.load(self.source, self.computing.device)
        checkpoint.restore_training(state, model, optimizer, self.computing, self.source)
        with checkpoint.as_damage(self.source):
            _check_progress(state)
            if "args" in state:
                self._check_arguments({**state["args"]}, f"{self.source} is of", _LENGTH)
        if state.get("epoch", 0) > self.args.epochs:
            raise UserError(
                f"{self.source} has been trained for {state['epoch']} epochs already, --epochs is {self.args.epochs}"
            )
        self.state = state
        return state

    # -- writing -------------------------------------------------------------------------------------------------------

    def begin(self, first_epoch: int = 0) -> Record:
        """Write for the first time: remove what `--overwrite` replaces, note the arguments, begin the events.

        Args:
            first_epoch: index, for a run that no checkpoint says it of.

        Raises:
            UserError: if the folder cannot be written, or has come to hold another run in spite of the lock.
        """
        self.computing.on_main(self._open_folder)
        first = self.state.get("epoch", first_epoch)
        self.record = Record(self.folder, self.computing.is_main, first, self.state.get("seconds", 0.0))
        self._begun, self._saved = True, is_in(self.source, self.folder)
        return self.record

    def _goes_on(self) -> bool:
        """Tell whether the folder holds, or may hold, an earlier part of this run."""
        return self._request == "auto" or is_in(self.source, self.folder)

    def _open_folder(self) -> None:
        try:
            if self._next_free and holds_run(self.folder, self.files):
                raise UserError(f"another run has begun in {self.folder}: start this one again")
            if not self._next_free and self._judge() != self.source:
                raise UserError(f"another run has been at work in {self.folder}: start this one again")
            self.folder.mkdir(parents=True, exist_ok=True)
            if self._goes_on():  # until it ends again, it is not finished
                (self.folder / "results.json").unlink(missing_ok=True)
            elif getattr(self.args, "overwrite", False):
                for path in files_of_run(self.folder, self.files):
                    path.unlink(missing_ok=True)
            checkpoint.save_json(self.folder / "args.json", plain(self.args))
        except OSError as error:
            raise UserError(f"cannot write into {self.folder}: {error.strerror}; use another folder") from None

    def save(self, states: Mapping[str, object], outdated: Iterable[str] = ()) -> None:
        """Write checkpoints by name, and remove outdated ones; in the main process alone.

        The one to continue from comes last of all, so that after an interruption the epoch is repeated with all that it
        writes.
        """
        if not self.computing.is_main:
            return
        last = self.files[0]
        for name, state in states.items():
            if name != last:
                checkpoint.save(self.folder / name, state)
        for name in outdated:
            (self.folder / name).unlink(missing_ok=True)
        if last in states:
            checkpoint.save(self.folder / last, states[last])
            self._saved = True

    def finish(self, summary: Summary, more: dict, advice: Iterable[str] = ()) -> None:
        """Write `results.json`, and say what came out and where it lies; then `advice`, by lines."""
        self.record.results(summary, more)
        for line in advice:
            self.record.line(line)

    def _how_to_go_on(self) -> str:
        given = self._request == "auto"
        command = "the same command" if given else f"the same command with {self._again}"
        where = "from the last checkpoint" if self._saved else "from the beginning: there is no checkpoint yet"
        return f"{command} goes on in {self.folder}, {where}"


def _check_progress(state: Mapping) -> None:
    """Raise ValueError for values that no run saves."""
    for name, value in state.items():
        if name == "epoch" and (type(value) is not int or value < 0):
            raise ValueError(f"its epoch is {value!r}")
        if name == "seconds" or str(name).startswith("best_"):
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(f"its {name} is {value!r}")
