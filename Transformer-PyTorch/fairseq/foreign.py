"""Flags of fairseq that a program does without: accepted where nothing depends on them, else explained."""

import argparse
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lab.cli import Parser

ABSENT = "not part of this toolkit; leave it out"


@dataclass(frozen=True)
class Table:
    """What a program makes of flags that are not its own. The help shows none of them."""

    values: Iterable[str] = ()
    """Flags with a value that are accepted in silence."""
    switches: Iterable[str] = ()
    """Flags without a value that are accepted in silence."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Flags with a value that are accepted with a warning: what the program does in any case."""
    certain: Mapping[str, tuple[Iterable[str], str]] = field(default_factory=dict)
    """Flags that are accepted in silence with these values, or none if one is empty; what to do for another value."""
    hints: Mapping[str, str] = field(default_factory=dict)
    """Flags that are refused, with what to do instead."""


def add_flags(parser: Parser, *tables: Table) -> None:
    """Add the flags of `tables`, but those that the parser has itself; none is in what parsing returns."""

    def add(flag: str, **options) -> None:
        if flag not in parser._option_string_actions and flag not in parser.spellings:
            parser.add_argument(flag, action=_Foreign, help=argparse.SUPPRESS, **options)

    for table in tables:
        for flag in table.values:
            add(flag)
        for flag in table.switches:
            add(flag, nargs=0)
        for flag, note in table.notes.items():
            add(flag, note=note)
        for flag, (values, hint) in table.certain.items():
            add(flag, nargs="?" if "" in values else None, const="", accepted=values, hint=hint)
        for flag, hint in table.hints.items():  # they may have any number of values, of which the message makes no use
            add(flag, hint=hint, nargs="*")


class _Foreign(argparse.Action):
    def __init__(self, option_strings, dest, note: str = "", hint: str = "", accepted: Iterable[str] = (), **options):
        super().__init__(option_strings, argparse.SUPPRESS, **options)
        self.note, self.hint, self.accepted = note, hint, accepted

    def __call__(self, parser, namespace, values, option):
        if self.accepted and values in self.accepted:
            return
        if self.hint:
            value = f" {values}" if self.accepted else ""
            parser.error(f"{option}{value} is a flag of fairseq: {self.hint}")
        if self.note:
            warnings.warn(f"{option} has no effect: {self.note}", stacklevel=2)
