"""What the quickstart says of its runs; and, slowly, the quickstart itself."""

from pathlib import Path

import pytest

from paper import quickstart

ACCURACIES = {  # plain is worse than the others by the same every time, but for one
    "dense": [95.0, 96.0, 97.0],
    "plain": [70.0, 71.0, 75.0],
    "spectral": [90.0, 91.5, 95.0],
    "Frobenius": [60.0, 90.0, 80.0],
    "both": [92.0, 93.0, 97.1],
}


def test_what_it_shows(capsys):
    results = {
        name: [
            {
                "final test accuracy": accuracy,
                "seconds": 8.0,
                "compressed parameter count": 269_722 if name == "dense" else 63_850,
            }
            for accuracy in found
        ]
        for name, found in ACCURACIES.items()
    }
    quickstart.show(results, {name: [0.5, 0.5, 0.5] for name in results}, Path("curves.png"))
    text = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    assert rows[2] == ["plain", "63,850", "0.50 ± 0.00", "72.0 ± 2.6", "", "8"]
    assert rows[3][4].startswith("+20.2 ± ")
    assert "beyond chance for: spectral, both." in text
    assert text.count("\n  python") + text.count("\n  cd ") == 3


@pytest.mark.slow
def test_the_whole(tmp_path, capsys):
    quickstart.main(["--seeds", "1", "--out", str(tmp_path)])
    assert "beyond chance for: none of the three" in capsys.readouterr().out
    assert (tmp_path / "curves.png").exists()
