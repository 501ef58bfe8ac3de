"""From tokenized text to the folders that training reads; common to all corpora."""

import json
from pathlib import Path

from lab.cli import UserError

from .. import folders
from ..binarize import Settings, write_numbered
from ..text import write_lines
from .corpora import LANGUAGES, Text
from .tokens import Segmenter, learn


def write(text: Text, base: Path, name: str, how: dict, merges: int | None = None, least: int = 0) -> None:
    """Write `<base>/data/<name>`, the text, and `<base>/data-bin/<name>`, the numbers.

    Args:
        text: tokenized.
        how: all that decides the result, as plain values; goes into `how.json` beside the text. What is there
            already may only be replaced by the same.
        merges: subwords are made by this many merges learned from both languages; None leaves words whole.
        least: words seen less often in the training text are unknown.

    Raises:
        UserError: if the folders hold a corpus made in another way, or cannot be written.
    """
    folder = base / "data" / name
    check_how(folder, how)
    with folders.whole(folder) as new:
        if merges is not None:
            code = learn((line for language in LANGUAGES for line in text["train"][language]), merges)
            write_lines(new / "code", code)
            segment = Segmenter(code)
            text = {
                split: {language: segment(lines, f"{split}.{language}") for language, lines in sides.items()}
                for split, sides in text.items()
            }
        for split, sides in text.items():
            for language, lines in sides.items():
                write_lines(new / f"{split}.{language}", lines)
        (new / "how.json").write_text(json.dumps(how, indent=4) + "\n")
    splits = {split: str(folder / split) for split in text}
    write_numbered(Settings(*LANGUAGES, splits, base / "data-bin" / name, thresholds=(least, least)))
    print(f"text in {folder}, data for train.py in {base / 'data-bin' / name}")


def check_how(folder: Path, how: dict) -> None:
    """Raise a `UserError` if `folder` holds a corpus made in another way."""
    try:
        old = json.loads((folder / "how.json").read_text("utf-8-sig"))
    except FileNotFoundError:
        return
    except (OSError, ValueError):
        raise UserError(f"{folder / 'how.json'} cannot be read; remove the folder, or use another --destdir") from None
    if old != how:
        raise UserError(f"{folder} was made with {old}, not {how}; remove it, or use another --destdir")
