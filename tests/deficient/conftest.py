"""The trainer called in this process, on a tiny data set and a network small enough for a test."""

from pathlib import Path

import main as trainer
import pytest

from tests.deficient.images import write_images


class Study:
    """A folder with data, in which `main.py` is called."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.data = write_images(folder / "images")

    def command(self, mode: str, *flags: object) -> list[str]:
        """Return a command line for a network small enough for a test."""
        shared = ["cifar10", mode, "--data", self.data, "--data-dir", self.folder, "--device", "cpu"]
        small = ["--wrn_depth", 10, "--wrn_width", 0.25, "--batch_size", 10, "--epochs", 2]
        return [str(token) for token in [*shared, *small, *flags]]

    def run(self, mode: str, *flags: object) -> None:
        """Call the trainer."""
        trainer.main(self.command(mode, *flags))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Study:
    """Return a study shared by the tests of a module."""
    return Study(tmp_path_factory.mktemp("study"))
