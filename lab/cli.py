"""Command lines: a user's mistake is one line on standard error and exit status 2, never a traceback.

Programs import this module before all that takes long to import: from then on Ctrl-C is one line, too.
"""

import argparse
import contextlib
import difflib
import errno
import math
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn


class UserError(Exception):
    """A mistake of the user's: the message says what is wrong and what would be right, in one line."""


class RunError(Exception):
    """A run that cannot go on, through no fault in how it was started: exit status 1 and the message in one line."""


class Terminated(BaseException):
    """SIGTERM has come. Its text, as that of a `KeyboardInterrupt`, says how to go on."""


FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file gets too large"}
"""System errors that end a run with one line, and what it says."""

# What PyTorch and NumPy say, in errors of types that say nothing, of memory that there is not ...
_NO_MEMORY = re.compile(
    "can't allocate memory|not enough memory|out of memory|OutOfMemory|unable to mmap|CUBLAS.*ALLOC"
)
# ... of numbers too large for what they are to be used as ...
_OUT_OF_RANGE = re.compile(
    "Storage size calculation overflowed|Overflow when unpacking|without overflow|multiplication overflow"
    "|Maximum allowed dimension exceeded|contained non-finite values"
)
# ... and of another process of the same run that is gone.
_ALONE = re.compile("Connection (closed|reset) by peer|gloo|NCCL|Socket Timeout|Broken pipe", re.IGNORECASE)


class Help(argparse.RawDescriptionHelpFormatter):
    """Help with the description as it was written, and with the default of every flag that has one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help or "", action.default
        silent = default is None or default is False or default in ("", argparse.SUPPRESS) or "default" in text
        return text if silent else f"{text} (default %(default)s)".lstrip()

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and takes no abbreviated flags.

    Dashes and underscores within a flag are alike. No argument may be empty: an empty path would be the current folder.

    Attributes:
        spellings: other names of flags, by these, with dashes: the flag and, for a name that also says its value, that
            value. The help and messages have the flag alone.
    """

    def __init__(self, **options: Any):
        super().__init__(allow_abbrev=False, **{"formatter_class": Help, **options})
        self.spellings: dict[str, tuple[str, str | None]] = {}

    def spell(self, flag: str, *names: str) -> None:
        """Accept `names` in place of `flag`; one that ends with `=VALUE` stands for the flag with that value."""
        for name in names:
            name, equals, value = name.partition("=")
            self.spellings[name.replace("_", "-")] = (flag, value if equals else None)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ):
        """Parse, as argparse does, after refusing unknown flags and empty arguments."""
        tokens = sys.argv[1:] if args is None else args
        return super().parse_known_args(self.spelled(tokens), namespace)

    def spelled(self, tokens: Sequence[str]) -> list[str]:
        """Return the arguments, with every flag as it was declared.

        Raises:
            UserError: for a flag that is unknown, and an empty argument.
        """
        declared = {option.replace("_", "-"): (option, None) for option in self._option_string_actions}
        known = {**declared, **self.spellings}
        tokens = list(tokens)
        end = tokens.index("--") if "--" in tokens else len(tokens)
        spelled: list[str] = []
        typed: dict[str, dict[str, str]] = {}
        for token, following in zip(tokens[:end], [*tokens[1:end], "-"]):
            name, equals, value = token.partition("=")
            if name.startswith("--"):
                if name.replace("_", "-") not in known:
                    self.error(f"unrecognized arguments: {token}{self._meant(name)}")
                exact = name in self._option_string_actions
                flag, meant = (name, None) if exact else known[name.replace("_", "-")]
                if meant is not None:
                    if equals:
                        self.error(f"argument {name}: takes no value, as it means {flag} {meant}")
                    equals, value = "=", meant
                typed.setdefault(flag, {})[name] = value or ("" if following.startswith("-") else following)
                name, token = flag, flag + equals + value
            if not token or equals and not value and name.startswith("--"):
                flag = name or (spelled[-1] if spelled and spelled[-1].startswith("-") else "")
                self.error(f"argument {flag}: must not be empty" if flag else "an argument is empty")
            spelled.append(token)
        for values in typed.values():  # of one flag the last value holds, but two names with values of their own differ
            if len(set(values.values())) > 1 and any(known[n.replace("_", "-")][1] is not None for n in values):
                self.error(f"give only one of {', '.join(sorted(values))}")
        return spelled + tokens[end:]

    def _meant(self, name: str) -> str:
        shown = [o for o, action in self._option_string_actions.items() if action.help != argparse.SUPPRESS]
        names = {option.replace("_", "-"): option for option in shown}
        near = difflib.get_close_matches(name.lower().replace("_", "-"), names, 1)
        return f"; did you mean {names[near[0]]}?" if near else ""

    def error(self, message: str) -> NoReturn:
        """Leave with one line and exit status 2."""
        raise UserError(message)


def printable(text: str) -> str:
    """Return `text` with escapes for what a terminal would obey and for bytes of file names that are not UTF-8."""
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else ascii(character)[1:-1]


def launch(main: Callable[[], object], prog: str) -> NoReturn:
    """Call `main()` and exit: with status 0, or after one line for what has ended it.

    The status is 2 for a mistake of the user's, a `UserError` or an error of the system's or of numbers that no check
    has foreseen; 1 for a run that cannot go on, a `RunError`, a full disk, or output that nobody reads; 130 for Ctrl-C;
    143 for SIGTERM. Other errors are defects of ours and keep their traceback.

    Of several processes on a machine one prints the mistakes and warnings, which all have in common.
    """

    def say(kind: str, text: object) -> None:
        print(f"{prog}: {kind}{printable(' '.join(str(text).split()))}", file=sys.stderr)

    _mend_streams()
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    warnings.showwarning = lambda message, *_, **__: say("warning: ", message) if first else None
    try:
        try:
            with _terminable():
                main()
            sys.stdout.flush()
        except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
            with contextlib.suppress(OSError):  # of a stream that is no file
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # takes what is still buffered
            sys.exit(1)
        except (Exception, KeyboardInterrupt, Terminated) as error:
            status, kind, text = _ending(error)
            if status is None:
                raise
            if first or not isinstance(error, (UserError, KeyboardInterrupt)):
                say(kind, text)
            sys.exit(status)
    except BrokenPipeError:  # nobody reads the errors either
        os._exit(1)
    sys.exit(0)


def _ending(error: BaseException) -> tuple[int | None, str, str]:
    """Return exit status, kind and text of the line for an error; None as status for a defect of ours."""
    text = str(error)
    line = text.splitlines()[0] if text else ""
    match error:
        case UserError():
            return 2, "error: ", text
        case RunError():
            return 1, "error: ", text
        case KeyboardInterrupt():
            return 130, "interrupted: " if text else "interrupted", text
        case Terminated():
            return 143, "terminated: " if text else "terminated", text
        case OSError(errno=int(code)) if code in FULL:
            return 1, "error: ", f"cannot write {_name(error) or 'a file'}: {FULL[code]}"
        case OSError():
            return 2, "error: ", f"{_name(error) or 'the system says'}: {error.strerror or text}"
        case OverflowError():
            return 2, "error: ", f"a number is out of range: {line}"
        case UnicodeEncodeError(object=name) if error.reason == "surrogates not allowed":
            return 2, "error: ", f"{name}: a name that is not UTF-8 cannot be used here"
        case RecursionError() if "JSON" in text:
            return 2, "error: ", "a JSON file is nested too deep to be read"
    if isinstance(error, MemoryError) or _NO_MEMORY.search(text):
        size = re.search(r"(?:tried to allocate|allocate) ([\d.]+ \w+)", text, re.IGNORECASE)
        wanted = f" ({size[1]} were asked for)" if size else ""
        return 2, "error: ", f"out of memory{wanted}: use a smaller network, batch or data set"
    if isinstance(error, (RuntimeError, TypeError, ValueError)) and _OUT_OF_RANGE.search(text):
        return 2, "error: ", f"a number is out of range: {line}"
    if isinstance(error, RuntimeError) and int(os.environ.get("WORLD_SIZE", "1")) > 1 and _ALONE.search(text):
        return 1, "error: ", "another process of this run has ended; see what it said, and resume the run"
    return None, "", ""


def _name(error: OSError) -> str:
    """Return the file that a system error is about, or nothing."""
    return os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes, os.PathLike)) else ""


def _mend_streams() -> None:
    """Make standard output and error take all text, whatever the locale says, and even if they are closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
        elif hasattr(stream, "reconfigure"):  # not what tests put in their place
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """Raise `Terminated` in this process at SIGTERM, so that unfinished files are removed.

    Not where there are several processes: one that waits for another could not hear it.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        yield
        return
    process = os.getpid()

    def terminate(number: int, _) -> NoReturn:
        if os.getpid() != process:  # a child, which has its parent's handlers
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _report_interrupt(kind: type[BaseException], error: BaseException, trace) -> None:
    """Print one line for Ctrl-C before `launch` is called, while modules are imported; leave all else to Python."""
    if not issubclass(kind, KeyboardInterrupt):
        return sys.__excepthook__(kind, error, trace)
    print(f"{Path(sys.argv[0]).name}: interrupted", file=sys.stderr, flush=True)
    os._exit(130)


sys.excepthook = _report_interrupt


@contextlib.contextmanager
def mistakes() -> Iterator[None]:
    """Take a ValueError, by which functions refuse their arguments, as a mistake of the user, who has chosen them.

    Raises:
        UserError: with its text.
    """
    try:
        yield
    except ValueError as error:
        raise UserError(error) from None


def number(
    kind: type[int] | type[float], *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """Return an argparse type: a finite `kind` that is at least `least`, above `above` and at most `most`."""
    bounds = {"at least": least, "above": above, "at most": most}
    words = " and ".join(f"{word} {bound}" for word, bound in bounds.items() if abs(bound) < math.inf)
    wanted = f"{'an integer' if kind is int else 'a number'} {words}".strip()

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (abs(value) < math.inf and value >= least and value > above and value <= most):  # false for nan
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
        return value

    return parse
