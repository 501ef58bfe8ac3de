"""What a study is made of: one `Setting` for each cell of the paper's tables, gathered in one `Study` per folder.

Text in these records is shell text: `$TRIAL`, `$GPU` and `$RESULTS` come from the script (see `scripts.py`), the other
variables from the setting itself. A new study is only more data here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress, product


@dataclass(frozen=True)
class Command:
    """One call of a program of the study's folder."""

    argv: tuple[str, ...]
    """The program and its arguments."""
    done: str = "$LOGDIR/results.json"
    """The file that marks the call as finished; its folder is the result folder."""
    training: bool = True
    """Whether it can be resumed and takes the extra flags given to the script (an evaluation does neither)."""

    def with_flags(self, flags: Mapping[str, str | None]) -> "Command":
        """Return the command with other values of flags, by their names without dashes.

        The value is "" for a switch, and None takes a flag away that has a value. A flag that is not there comes last.
        """
        argv = list(self.argv)
        for name, value in flags.items():
            at = self.position(name, argv)
            if value is None:
                argv[at : at + 2] = []
            elif at == len(argv):
                argv += [f"--{name}"] + ([value] if value else [])
            elif value:
                argv[at + 1] = value
        return replace(self, argv=tuple(argv))

    @staticmethod
    def position(name: str, argv: Sequence[str]) -> int:
        """Return where the flag of that name stands, with dashes or underscores, or the length if it is not there."""
        spelled = [token.lstrip("-").replace("_", "-") if token.startswith("-") else "" for token in argv]
        return spelled.index(name.replace("_", "-")) if name.replace("_", "-") in spelled else len(argv)


@dataclass(frozen=True)
class Setting:
    """What a script runs in each trial."""

    name: str
    """The name of its script, without the ending."""
    variables: tuple[tuple[str, str], ...]
    """Shell variables with their values, in order; a value may refer to the variables before it."""
    commands: tuple[Command, ...]
    minutes: int
    """Estimated time of one trial."""

    @property
    def runs(self) -> int:
        """The training runs of one trial."""
        return sum(command.training for command in self.commands)

    def with_flags(self, flags: Mapping[str, str | None]) -> "Setting":
        """Return the setting with other values of flags in its training commands (`Command.with_flags`)."""
        return replace(self, commands=tuple(c.with_flags(flags) if c.training else c for c in self.commands))


@dataclass(frozen=True)
class Study:
    """The settings of one experiment folder."""

    folder: str
    settings: tuple[Setting, ...]
    """The grid of the paper."""
    additions: tuple[Setting, ...] = ()
    """Settings that the paper's grid lacks; written only when asked for."""
    longest_first: bool = False
    """Whether the longest settings are given out first, otherwise the shortest."""
    resume: tuple[str, ...] = ("--resume", "auto")
    """The flags with which a training program goes on where an earlier call of the same command stopped, if any did."""

    def argv(self, command: Command) -> list[str]:
        """Return the program and its arguments as the scripts call them."""
        return [*command.argv, *(self.resume if command.training else ())]


def subsets(*switches: str) -> list[tuple[str, ...]]:
    """Return every choice of the switches, each in the given order."""
    return [tuple(compress(switches, chosen)) for chosen in product((False, True), repeat=len(switches))]
