"""Command lines: a user's mistake is one line on standard error and exit status 2, never a traceback."""

import argparse
import errno
import math
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user's: the message says what is wrong and what would be right, in one line."""


class RunError(Exception):
    """A run that cannot go on, through no fault in how it was started: exit status 1 and the message in one line."""


FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "a file gets too large"}
"""System errors that end a run with one line, and what it says."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and takes no abbreviated flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with one line and exit status 2."""
        raise UserError(message)


def run(main: Callable[[], object], prog: str) -> NoReturn:
    """Call `main()` and exit: 0, or 2 (1) after printing a `UserError` (`RunError`, a full disk) in one line.

    Of several processes on a machine one prints the mistakes and warnings, which all have in common.
    """

    def say(kind: str, text: object) -> None:
        print(f"{prog}: {kind}: {' '.join(str(text).split())}", file=sys.stderr)

    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not what tests put in their place
            stream.reconfigure(encoding="utf-8")  # whatever the locale says
    first = os.environ.get("LOCAL_RANK", "0") == "0"
    warnings.showwarning = lambda message, *_, **__: say("warning", message) if first else None
    try:
        main()
    except UserError as error:
        if first:
            say("error", error)
        sys.exit(2)
    except RunError as error:
        say("error", error)
        sys.exit(1)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stdout = None
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        say("error", f"cannot write {error.filename or 'a file'}: {FULL[error.errno]}")
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"{prog}: interrupted", file=sys.stderr)
        sys.exit(130)
    sys.exit(0)


def number(
    kind: type[int] | type[float], *, least: float = -math.inf, above: float = -math.inf, most: float = math.inf
) -> Callable[[str], float]:
    """Return an argparse type: a finite `kind` that is at least `least`, above `above` and at most `most`."""
    bounds = [f"at least {least}"] * (least > -math.inf) + [f"above {above}"] * (above > -math.inf)
    bounds += [f"at most {most}"] * (most < math.inf)
    wanted = " ".join([{int: "an integer", float: "a number"}[kind], " and ".join(bounds)]).strip()

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (abs(value) < math.inf and value >= least and value > above and value <= most):  # false for nan
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
        return value

    return parse
