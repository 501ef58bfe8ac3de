"""Command lines: a user's mistake is one line on standard error and exit status 2, never a traceback."""

import argparse
import math
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """A mistake of the user's: the message says what is wrong and what would be right, in one line."""


class RunError(Exception):
    """A run that cannot go on, through no fault in how it was started: exit status 1 and the message in one line."""


class Parser(argparse.ArgumentParser):
    """An argument parser that reports a mistake in one line and takes no abbreviated flags."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        """Leave with one line and exit status 2."""
        raise UserError(message)


def run(main: Callable[[], object], prog: str) -> NoReturn:
    """Call `main()` and exit: 0, or 2 (1) after printing a `UserError` (`RunError`) in one line."""
    warnings.showwarning = lambda message, *_, **__: print(f"{prog}: warning: {message}", file=sys.stderr)
    try:
        main()
    except (UserError, RunError) as error:
        print(f"{prog}: error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except BrokenPipeError:  # the reader of our output has gone, as in `... | head`
        sys.stdout = None
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
