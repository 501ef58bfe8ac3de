"""Settings: a frozen dataclass with a field for each flag, from which the command line is made.

    @dataclass(frozen=True, kw_only=True)
    class Settings(flags.Speed):
        width: int = flag("network", "-w", "--wide", default=64, type=number(int, least=1), help="channels")

        def __post_init__(self):
            super().__post_init__()
            if self.width % 2:
                raise ValueError(f"--width must be even, not {self.width}")

    settings = Parser(Settings, prog="program.py").parse_args()

A field's name is that of its flag, with dashes. What contradicts or needs each other is refused when settings are made:
a ValueError then, which the command line reports as a mistake.
"""

import argparse
import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from . import cli

VOCABULARY = (
    "data", "data_dir", "holdout", "rank_scale", "target_ratio", "spectral", "wd2fd", "epochs", "batch_size", "lr",
    "weight_decay", "decay_budget", "save_dir", "resume", "overwrite", "seed", "device", "amp", "compile",
    "channels_last",
)  # fmt: skip
"""What is called so in every program that has it; the help shows these before others."""

GROUPS = ("data", "network", "factorization", "optimization", "run", "speed")
"""The groups of the help, in this order; others come behind them."""

FLAG = "flag"  # where a field keeps what the command line is to know of it
WORD = "word:"  # before the name of what is given as a word, without a flag


def flag(
    group: str,
    *names: str,
    called: str = "",
    default: Any = None,
    help: str = "",
    words: str = "",
    one_of: str = "",
    **options: Any,
) -> Any:
    """Return the field of a flag.

    Args:
        group: of the help.
        names: short ones, such as `-b`, which the help shows; and further long ones, such as `--wide`, or `--half=0.5`,
            which stands for a value. The help does not show these.
        called: the flag, where it is not the name of the field.
        help: the line of the help, which adds the default by itself; "" hides the flag: one of old command lines.
        words: `too` if the value may also be given without the flag, as a word of its own; `only` if it has no flag.
        one_of: of the flags with the same text here only one may be given.
        options: further ones of `add_argument`. The type follows from that of the field if it is a switch or a path.
    """
    known = {
        "called": called,
        "group": group,
        "names": names,
        "help": help,
        "words": words,
        "one_of": one_of,
        "options": options,
    }
    if isinstance(default, (list, dict)):
        return dataclasses.field(default_factory=default.copy, metadata={FLAG: {**known, "default": default}})
    return dataclasses.field(default=default, metadata={FLAG: {**known, "default": default}})


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """What a program is asked to do.

    Attributes:
        PUBLISHED: fields that have another name in the files of a run, with that name.
    """

    PUBLISHED: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        """Raise ValueError for settings that contradict or need each other."""

    def completed(self) -> "Settings":
        """Return the settings with what was not given filled in. Raises ValueError as making settings does."""
        return self

    def require(self, needed: str, *names: str) -> None:
        """Raise ValueError if one of the switches `names` is on, saying that it has no effect without `needed`."""
        for name in names:
            if getattr(self, name):
                raise ValueError(f"--{name.replace('_', '-')} has no effect without {needed}")


def plain(settings: Any) -> dict[str, Any]:
    """Return settings by the names and with the types that files have: JSON and checkpoints can hold them."""
    return {published(settings, name): plain_value(getattr(settings, name)) for name in names(settings)}


def names(settings: Any) -> list[str]:
    """Return the names of the fields: those of a program's own settings come before what several programs share."""
    own = [name for name in vars(settings) if name in type(settings).__annotations__]
    return list(dict.fromkeys([*own, *vars(settings)]))


def published(settings: Any, name: str) -> str:
    """Return the name that a field has in files."""
    return getattr(settings, "PUBLISHED", {}).get(name, name)


def defaults(settings: Any) -> dict[str, Any]:
    """Return the defaults of those fields that are flags, as `plain` has them."""
    fields = [field for field in dataclasses.fields(settings) if FLAG in field.metadata]
    return {field.name: plain_value(field.metadata[FLAG]["default"]) for field in fields}


def plain_value(value: Any) -> Any:
    """Return a setting's value in a type that JSON and checkpoints can hold."""
    if isinstance(value, (list, tuple)):
        return [plain_value(item) for item in value]
    return str(value) if isinstance(value, Path) else value


class Parser(cli.Parser):
    """The command line of settings.

    Args:
        kind: the settings' class.
        options: of `ArgumentParser`.
    """

    def __init__(self, kind: type[Settings], **options: Any):
        super().__init__(**{"usage": "%(prog)s [FLAG ...]", **options})
        self.kind = kind
        self._required: list[tuple[str, str]] = []
        fields = [(field, field.metadata[FLAG]) for field in dataclasses.fields(kind) if FLAG in field.metadata]
        fields.sort(key=lambda pair: [*VOCABULARY, pair[0].name].index(pair[0].name))
        titles = dict.fromkeys((*GROUPS, *(about["group"] for _, about in fields)))
        groups = {title: self.add_argument_group(title) for title in titles}
        exclusive: dict[str, Any] = {}
        for field, about in fields:
            group = groups[about["group"]]
            if about["one_of"]:
                group = exclusive.setdefault(about["one_of"], group.add_mutually_exclusive_group())
            self._add(group, field, about)

    def _add(self, group: Any, field: dataclasses.Field, about: Mapping[str, Any]) -> None:
        name, options = about["called"] or "--" + field.name.replace("_", "-"), dict(about["options"])
        short = [other for other in about["names"] if not other.startswith("--")]
        self.spell(name, *(other for other in about["names"] if other.startswith("--")))
        options |= {"default": about["default"], "help": about["help"] or argparse.SUPPRESS}
        if "action" not in options:
            if field.type is bool:
                options["action"] = "store_true"
            elif field.type in (Path, Path | None):
                options.setdefault("type", Path)
        if options.pop("required", False):
            self._required.append((field.name, f"{name} {options['metavar']}" if about["words"] else name))
        if about["words"]:
            text = options["help"] if about["words"] == "only" else argparse.SUPPRESS
            word = {key: value for key, value in options.items() if key in ("type", "choices", "metavar")}
            group.add_argument(WORD + field.name, nargs="?", help=text, **{"metavar": field.name.upper(), **word})
        if about["words"] != "only":
            group.add_argument(*short, name, dest=field.name, **options)

    def parse_args(self, args: Sequence[str] | None = None, namespace: None = None) -> Any:  # type: ignore[override]
        """Return the settings that the command line asks for.

        Raises:
            UserError: for what it cannot say, and for settings that contradict or need each other.
        """
        tokens = self.spelled(sys.argv[1:] if args is None else args)
        values = vars(self.parse_intermixed_args(tokens))  # words may stand anywhere among the flags
        for field in [name for name in values if name.startswith(WORD)]:
            word, name = values.pop(field), field.removeprefix(WORD)
            if word is not None and values.get(name) not in (None, self.get_default(name), word):
                self.error(f"given as --{name} {values[name]} and as the word {word}")
            values[name] = values.get(name) if word is None else word
        for name, shown in self._required:
            if values.get(name) is None:
                self.error(f"the following arguments are required: {shown}")
        try:
            return self.kind(**values).completed()
        except ValueError as error:
            self.error(str(error))
