"""A tiny corpus as text and numbered, and untrained models of it."""

from pathlib import Path

from fairseq import checkpoint
from fairseq.binarize import Settings, write_numbered
from fairseq.config import TransformerConfig
from fairseq.corpus import load_dictionaries
from fairseq.transformer import build_model

from lab.checkpoint import save

LANGUAGES = ("de", "en")
TRAINING = {"de": "eins zwei drei vier fünf sechs sie@@ ben", "en": "one two three four five six sev@@ en &apos;s"}
TEST = {
    "de": ["eins zwei drei", "vier fünf", "sechs sie@@ ben acht eins", "zwei", "drei vier fünf", "eins eins"]
    + ["neun acht"],
    "en": ["one two three", "four five", "six sev@@ en eight one", "two", "three four five", "one one"]
    + ["nine eight"],
}


def write_text(folder: Path, split: str, text: dict[str, list[str]]) -> Path:
    """Write the lines of both languages; return the common beginning of the files' names."""
    folder.mkdir(exist_ok=True)
    for language, lines in text.items():
        (folder / f"{split}.{language}").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder / split


def make_data(folder: Path, **settings) -> Path:
    """Return a data folder with a train and a test split."""
    training = {language: [words, " ".join(reversed(words.split()))] for language, words in TRAINING.items()}
    splits = {
        name: str(write_text(folder / "text", name, text)) for name, text in [("train", training), ("test", TEST)]
    }
    name = settings.get("format", "data-bin")
    write_numbered(Settings(*LANGUAGES, splits, folder / name, **settings))
    return folder / name


def make_checkpoint(path: Path, data: Path, **config) -> Path:
    """Write an untrained model for `data`, drawn from PyTorch's generator."""
    dictionaries = load_dictionaries(data, *LANGUAGES)
    sizes = {"hidden_size": 16, "filter_size": 32, "num_layers": 2, "num_heads": 2}
    config = TransformerConfig(**{**sizes, "max_positions": 40, **config})
    model = build_model(config, *map(len, dictionaries))
    for parameter in model.parameters():
        parameter.data.mul_(3)  # as first drawn, all words would be about equally likely
    save(path, {**checkpoint.identity(config, LANGUAGES, dictionaries), "state_dict": model.state_dict()})
    return path
