"""The comparisons by method: their size, and that the programs take their commands."""

import json
from collections import Counter
from pathlib import Path

import pytest
from deficient import settings

from paper import comparison


@pytest.mark.parametrize(("name", "count"), [("wrn_28_10", 12), ("darts", 12), ("wrn_50_2", 8)])
def test_commands(name, count, capsys):
    comparison.main([name])
    first, *runs = json.loads(capsys.readouterr().out)
    start = runs[0].index("main.py") + 1
    made, folders, modes = first[first.index("-t") + 1], [], Counter()
    for words in [first, *runs] if first[1] == "main.py" else runs:
        args = settings.build_parser().parse_args(words[words.index("main.py") + 1 :])
        if words is first:
            continue
        modes[args.mode] += 1
        folders.append(args.student_checkpoint if args.mode == "student" else args.teacher_checkpoint)
        if args.mode == "student":
            assert (args.teacher_checkpoint, args.alpha, args.beta) == (Path(made), 0, 1000)
    assert modes == {"teacher": count, "student": count}
    assert len(set(folders)) == 2 * count and Path(made) not in folders
    assert all(words[:start] == runs[0][:start] for words in runs)
    assert f"{name}.tensortrain_0.2" in str(folders)
