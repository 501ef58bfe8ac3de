"""What the quickstart says of its runs; and, slowly, the quickstart itself."""

import re

import pytest

from paper import quickstart
from paper.runs import find
from tests.paper.samples import FD, SI, make_run

ACCURACIES = {  # plain is worse than the others by the same every time, but for one
    "dense": [95.0, 96.0, 97.0],
    "plain": [70.0, 71.0, 75.0],
    "SI": [90.0, 91.5, 95.0],
    "FD": [60.0, 90.0, 80.0],
    "SI & FD": [92.0, 93.0, 97.1],
}
ARGUMENTS = {"dense": {"rank_scale": 0.0}, "plain": {}, "SI": SI, "FD": FD, "SI & FD": SI | FD}


def test_what_it_shows(tmp_path, capsys):
    runs = {}
    for name, found in ACCURACIES.items():
        head = {"method": "dense", "rank_scale": 0.0, "parameters": 269722} if name == "dense" else {}
        folders = [make_run(tmp_path / name / str(seed), ARGUMENTS[name], seed=seed, final=final, **head)
                   for seed, final in enumerate(found)]  # fmt: skip
        runs[name] = find(folders).runs
    quickstart.show(runs, tmp_path / "curves.png")
    text = capsys.readouterr().out
    rows = {line.split("  ")[0]: line for line in text.splitlines()}
    assert re.search(r" 63,850 .* 0\.500 ± 0\.000 .* 72\.00 ± 2\.65 .* 2\.00 ± 0\.00", rows["plain"])
    assert " +20.17 ± " in rows["SI"] and " 269,722 " in rows["dense"]
    assert "beyond chance for: SI, SI & FD." in text
    assert text.count("\n  python") + text.count("\n  cd ") == 3
    assert (tmp_path / "curves.svg").exists()


@pytest.mark.slow
def test_the_whole(tmp_path, capsys):
    quickstart.main(["--seeds", "1", "--out", str(tmp_path)])
    out = capsys.readouterr().out
    assert "beyond chance for: none of the three" in out
    assert out.splitlines()[-1].endswith(f"{tmp_path}/report.html") and (tmp_path / "report.html").exists()
    assert (tmp_path / "curves.png").exists()
