"""Settings: what a command line makes of them, by which names, and what is refused when they are made."""

from dataclasses import FrozenInstanceError, dataclass
from pathlib import Path

import pytest

from lab.cli import UserError, number
from lab.settings import Parser, Settings, flag, plain


@dataclass(frozen=True, kw_only=True)
class Shared(Settings):
    speed: str = flag("speed", "--half=bf16", default="off", help="how fast")
    seed: int = flag("run", default=0, type=int, help="of random numbers")


@dataclass(frozen=True, kw_only=True)
class Wide(Shared):
    PUBLISHED = {"width": "wide"}

    data: Path = flag("data", words="too", required=True, metavar="DIR", help="where it is")
    kind: str | None = flag("data", words="only", choices=("a", "b"))
    width: int = flag("network", "-w", "--wide", "--breadth", default=64, type=number(int, least=1), help="channels")
    rates: list[float] = flag("network", default=[0.5], type=lambda text: [float(text)], help="learning rates")
    deep: bool = flag("network", default=False, help="more layers")
    workers: int = flag("run", default=4, type=int)

    def __post_init__(self):
        super().__post_init__()
        if self.width % 2:
            raise ValueError(f"--width must be even, not {self.width}")
        if self.width < 4:
            self.require("--width 4", "deep")


def parse(*tokens: str) -> Wide:
    return Parser(Wide, prog="wide.py").parse_args(tokens)


def test_defaults():
    assert parse("here") == Wide(data=Path("here"))
    assert vars(parse("here")) == {
        "speed": "off", "seed": 0, "data": Path("here"), "kind": None, "width": 64, "rates": [0.5], "deep": False,
        "workers": 4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("tokens", "field", "value"),
    [
        (["--wide", "8"], "width", 8),
        (["--wide=8"], "width", 8),
        (["-w", "8"], "width", 8),
        (["--breadth", "8", "--width", "6"], "width", 6),
        (["--half"], "speed", "bf16"),
        (["--half", "--speed", "bf16"], "speed", "bf16"),
        (["--deep"], "deep", True),
        (["--rates", "2"], "rates", [2.0]),
        (["--workers", "1"], "workers", 1),
    ],
)
def test_names_of_flags(tokens, field, value):
    assert getattr(parse("here", *tokens), field) == value


@pytest.mark.parametrize("tokens", [["there", "a"], ["--deep", "there", "--seed", "0", "a"], ["--data", "there", "a"]])
def test_words_stand_anywhere(tokens):
    if tokens[0] == "--data":  # the first word is the data's, too
        with pytest.raises(UserError, match="given as --data there and as the word a"):
            parse(*tokens)
    else:
        args = parse(*tokens)
        assert (args.data, args.kind) == (Path("there"), "a")


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ([], "the following arguments are required: --data DIR"),
        (["here", "--width", "7"], "--width must be even, not 7"),
        (["here", "--breadth", "0"], "argument -w/--width: must be an integer at least 1, not 0"),
        (["here", "--width", "2", "--deep"], "--deep has no effect without --width 4"),
        (["here", "--half", "--speed", "off"], "give only one of --half, --speed"),
        (["here", "--half=no"], "argument --half: takes no value, as it means --speed bf16"),
        (["here", "--widht", "2"], "unrecognized arguments: --widht; did you mean --width?"),
        (["here", "c"], "invalid choice: 'c'"),
    ],
)
def test_mistakes(tokens, message):
    with pytest.raises(UserError) as error:
        parse(*tokens)
    assert message in str(error.value)


def test_settings_refuse_contradictions_and_change():
    with pytest.raises(ValueError, match="must be even"):
        Wide(data=Path(), width=3)
    with pytest.raises(FrozenInstanceError):
        Wide(data=Path()).width = 2


def test_files_have_the_published_names_and_the_programs_own_fields_first():
    found = plain(Wide(data=Path("here")))
    assert found["wide"] == 64 and "width" not in found and found["data"] == "here"
    assert list(found) == ["data", "kind", "wide", "rates", "deep", "workers", "speed", "seed"]


def test_help_shows_each_flag_once_with_its_default():
    text = " ".join(Parser(Wide, prog="wide.py").format_help().split())
    assert "-w, --width WIDTH channels (default 64)" in text and "of random numbers (default 0)" in text
    for hidden in ("--wide ", "--breadth", "--half", "--workers"):
        assert hidden not in text
    groups = [text.index(f" {group}: ") for group in ("data", "network", "run", "speed")]
    assert groups == sorted(groups)
