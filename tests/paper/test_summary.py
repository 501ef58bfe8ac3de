"""Tables of runs: how trials are grouped and compared, the grid's cells, published values, and the forms of a table."""

import csv
import io
import json
import re

import numpy
import pytest
import scipy.stats

from lab.cli import UserError
from paper import keep, summary
from paper.cells import Comparison, group
from paper.planned import plans_of
from paper.runs import find
from paper.selection import sections
from paper.statistics import Difference
from paper.studies import STUDIES
from paper.summary import Options, table_of
from paper.tables import FORMS, Table
from tests.paper.samples import FD, SI, make_run

PLAIN_LAST, SI_LAST = [70.0, 72.0, 71.0], [75.0, 79.0, 74.5]


@pytest.fixture
def tree(tmp_path):
    """Two arms of three trials and a dense one of two."""
    for arm, arguments, finals in (("plain", {}, PLAIN_LAST), ("spectral", SI, SI_LAST)):
        for seed, final in enumerate(finals, 1):
            make_run(tmp_path / arm / str(seed), arguments, seed=seed, final=final, best=final + 1)
    for seed in (1, 2):
        dense = {"method": "dense", "rank_scale": 0.0, "parameters": 269722, "ratio": 1.0}
        make_run(tmp_path / "dense" / str(seed), {"rank_scale": 0.0}, seed=seed, final=90.0 + seed, best=93.0, **dense)
    return tmp_path


def rows_of(tree, **options) -> tuple[list[dict], tuple[str, ...]]:
    (section,) = sections(find([tree]).runs)
    made = table_of(section, Options(**options))
    return [dict(zip(("what", *made.columns), row)) for row in made.texts], made.notes


def test_trials_are_grouped_and_compared_seed_by_seed(tree):
    rows, notes = rows_of(tree)
    assert [(row["what"], row["trials"]) for row in rows] == [("dense", "2"), ("plain", "3"), ("SI", "3")]
    assert rows[1]["last (%)"] == f"{numpy.mean(PLAIN_LAST):.2f} ± {numpy.std(PLAIN_LAST, ddof=1):.2f}"
    assert rows[1]["best (%)"] == f"{numpy.mean(PLAIN_LAST) + 1:.2f} ± {numpy.std(PLAIN_LAST, ddof=1):.2f}"
    interval = scipy.stats.ttest_rel(SI_LAST, PLAIN_LAST).confidence_interval(0.95)
    mean, half = rows[2]["last against plain"].split(" ± ")
    assert float(mean) - float(half) == pytest.approx(interval.low, abs=0.02)
    assert float(mean) + float(half) == pytest.approx(interval.high, abs=0.02)
    dense = scipy.stats.ttest_rel([91.0, 92.0], PLAIN_LAST[:2]).confidence_interval(0.95)
    assert rows[0]["last against plain"] == f"+20.50 ± {(dense.high - dense.low) / 2:.2f}"
    assert rows[1]["last against plain"] == "" and rows[1]["parameters"] == "63,850"
    assert notes[1] == "All: rank scale 0.111, decay B 4.1, epochs 4."


def test_what_only_some_have_is_not_said_of_all(tmp_path):
    make_run(tmp_path / "budget", {"target_ratio": 0.1, "rank_scale": 0.0})
    make_run(tmp_path / "tensor", {"rank_scale": 0.0, "conv": "TensorTrain_0.234"})
    make_run(tmp_path / "dense", {"rank_scale": 0.0}, method="dense")
    _, notes = rows_of(tmp_path)
    assert notes[1] == "All: decay B 4.1, epochs 4."


def test_what_differs_makes_another_group(tree):
    make_run(tree / "fast/1", {"lr": 0.1}, seed=1, final=60.0)
    make_run(tree / "old/4", {"lr": 0.02}, seed=4, final=71.0)
    rows, _ = rows_of(tree)
    assert [(row["what"], row["lr"], row["trials"]) for row in rows] == [
        ("dense", "0.02", "2"), ("plain", "0.02", "4"), ("plain", "0.1", "1"), ("SI", "0.02", "3")
    ]  # fmt: skip
    by_arm, _ = rows_of(tree, by=("arm",), against="fast", columns=("trials", "difference"))
    fast = next(row for row in by_arm if row["what"].endswith("fast"))
    assert fast["trials"] == "1" and "last against fast" in fast
    assert [row["last against fast"] for row in by_arm if row["what"].endswith("plain")] == ["+10.00"]


def test_decay_and_dose(tree, tmp_path):
    """Cells are compared with the one of the same dose; where there is none, with the only one there is."""
    for dose in (1.0, 12.0):
        make_run(tree / f"plain-{dose}/1", {"decay_budget": dose}, decay_budget=dose, final=50.0 + dose)
        make_run(tree / f"both-{dose}/1", SI | FD | {"decay_budget": dose}, decay_budget=dose, final=60.0 + 2 * dose)
    cells = group(find([tree]).runs)
    comparison = Comparison(cells)
    found = {(cell.method, cell.label("decay")): comparison.difference(cell) for cell in cells}
    assert found["SI & FD", "B 1"].mean == 62 - 51 and found["SI & FD", "B 12"].mean == 84 - 62
    assert found["SI", "B 4.1"].mean == pytest.approx(76 + 1 / 6 - 71)
    assert found["dense", "B 4.1"].mean == pytest.approx(20.5) and found["plain", "B 12"] is None


def test_mean_of_the_last_epochs(tmp_path):
    curve = [10.0, 20.0, 60.0, 61.0, 63.0, 62.0]
    make_run(tmp_path / "plain/1", curve=curve, final=62.0)
    rows, _ = rows_of(tmp_path, last=3, compare="mean")
    assert rows[0]["mean of last 3"] == f"{(61 + 63 + 62) / 3:.2f}"
    assert "mean of last 4" not in rows_of(tmp_path, last=4)[0][0]  # of six epochs that is not the end


def test_the_test_images_have_a_column_where_others_were_held_out(tmp_path):
    head = {"validation": "100 held out of the training images", "final": 70.0, "final_test_accuracy": 68.5}
    make_run(tmp_path / "plain/1", {"holdout": 100}, **head)
    (row,), notes = rows_of(tmp_path)
    assert (row["last (%)"], row["test (%)"]) == ("70.00", "68.50") and "100 held out" in notes[0]
    make_run(tmp_path / "errors/1", study="deficient-efficient", metric="validation error (%)", **head)
    (cell,) = group(find([tmp_path / "errors"]).runs)
    assert cell.values("test") is None  # an accuracy is no error
    make_run(tmp_path / "without/1", final_test_accuracy=70.0)
    assert "test (%)" not in rows_of(tmp_path / "without")[0][0]


def test_translations(tmp_path):
    """A loss, whose lowest value is the best; BLEU from what the translation of the test set has left."""
    for seed, score in ((1, 30.0), (2, 31.0)):
        arguments = {"frobenius_decay": 1e-4, "weight_decay": 0.0, "decay_budget": None}
        head = {"study": "Transformer-PyTorch", "metric": "validation loss (bits a token)", "decay_budget": None}
        folder = make_run(tmp_path / f"fd/{seed}", arguments, seed=seed, final=3.25, best=3.125, **head)
        (folder / "bleu.log.json").write_text(json.dumps({"tokenized BLEU": {"score": score}, "sacreBLEU": "lost"}))
    (row,), notes = rows_of(tmp_path)
    assert (row["last"], row["best"], row["tokenized BLEU"]) == ("3.250 ± 0.000", "3.125 ± 0.000", "30.50 ± 0.71")
    assert "sacreBLEU" not in row and "best the lowest after any" in notes[0]
    assert notes[1] == "All: rank scale 0.111, decay 0.0001, epochs 4."


def test_repeated_seeds_and_mixed_machines_are_told(tree):
    make_run(tree / "again/1", seconds=9.0, final=10.0, machine="H100")
    rows, notes = rows_of(tree)
    assert rows[1]["last (%)"] != "" and rows[1]["trials"] == "3"
    assert any("seed 1 do not count" in note for note in notes)


@pytest.mark.parametrize("study", STUDIES)
def test_the_grid_is_shown_with_its_commands(study, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper.runs.ROOT", tmp_path)
    summary.main([study])
    out = capsys.readouterr().out
    for setting in STUDIES[study].settings:
        training = sum(command.training for command in setting.commands)
        assert out.count(f"python -m paper run {study} --only {setting.name}\n") == training
        assert len({plan.labels for plan in plans_of(STUDIES[study], setting)}) == training


def test_a_run_fills_its_cell(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper.runs.ROOT", tmp_path)
    folder = tmp_path / "EigenDamage-Pytorch/results/resnet_32_x2-cifar10/0.1/spectral+frob/1"
    arguments = SI | FD | {"target_ratio": 0.1, "weight_decay": 1e-4, "decay_budget": None, "rank_scale": 0.0}
    head = {"study": "EigenDamage-Pytorch", "network": "resnet32", "data": "cifar10", "ratio": 0.1}
    make_run(folder, arguments, **head, final=94.0)
    flags = ["EigenDamage-Pytorch", "--only", "cifar10-resnet_32_x2-0.1-*"]
    summary.main(flags)
    lines = capsys.readouterr().out.splitlines()
    both = next(line for line in lines if line.startswith("SI & FD"))
    assert re.search(r" 94\.00 .* 94\.34$", both) and "paper run" not in both
    assert sum("paper run" in line for line in lines) == 3
    assert "  Published: Khodak et al. 2021, Table 1, through a quotation." in lines
    keep.main([str(folder), "--to", str(tmp_path / "results")])  # the record of it fills the cell, too
    (folder / "results.json").unlink()
    (folder / "args.json").unlink()
    capsys.readouterr()
    summary.main(flags)
    again = capsys.readouterr().out.splitlines()
    assert next(line for line in again if line.startswith("SI & FD")).split()[:9] == both.split()[:9]


def test_published_rows_of_other_methods(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("paper.runs.ROOT", tmp_path)
    summary.main(["EigenDamage-Pytorch", "--only", "cifar10-vgg*"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("GraSP")] == [
        ["GraSP", "0.02", "92.19"], ["GraSP", "0.05", "93.04"], ["GraSP", "0.1", "93.30"]
    ]  # fmt: skip
    assert not any("%" in line and "94.49" in line for line in lines)


def written(tree, capsys, form: str, *more: str) -> str:
    capsys.readouterr()
    summary.main(["pytorch_resnet_cifar10", "--from", str(tree), "--format", form, *more])
    return capsys.readouterr().out


def test_forms(tree, capsys):
    chosen = ("--columns", "trials", "last", "difference")
    rows = list(csv.DictReader(io.StringIO(written(tree, capsys, "csv", *chosen))))
    spectral = next(row for row in rows if row["resnet20 on digits"] == "SI")
    assert float(spectral["last (%)"]) == pytest.approx(numpy.mean(SI_LAST), abs=1e-9)
    assert float(spectral["last (%), standard deviation"]) == pytest.approx(numpy.std(SI_LAST, ddof=1), abs=1e-9)
    markdown = written(tree, capsys, "markdown", *chosen).splitlines()
    assert markdown[:2] == [
        "| resnet20 on digits | trials |     last (%) | last against plain |",
        "|--------------------|-------:|-------------:|-------------------:|",
    ]
    assert markdown[3] == "| plain              |      3 | 71.00 ± 1.00 |                    |"
    latex = written(tree, capsys, "latex", *chosen)
    assert r"SI & 3 & 76.17 $\pm$ 2.47 & +5.17 $\pm$" in latex and r"last (\%)" in latex
    assert latex.startswith("\\begin{tabular}{lrrr}\n\\toprule\n") and "\\bottomrule\n\\end{tabular}\n% " in latex


def test_files(tree, capsys, tmp_path):
    out = written(tree, capsys, "markdown", "--out", str(tmp_path / "table.md"))
    assert out == f"wrote 1 tables to {tmp_path / 'table.md'}\n"
    assert (tmp_path / "table.md").read_text() == written(tree, capsys, "markdown")


def test_unknown_columns_are_refused():
    with pytest.raises(UserError, match="there is no column accuracy, only budget, trials"):
        Options(columns=("trials", "accuracy"))


def test_csv_of_several_networks_is_one_table(tree, capsys, tmp_path):
    """What is passed over is said elsewhere than in the table, and once if two of the folders hold it."""
    make_run(tmp_path / "other/plain/1", {"arch": "resnet32"}, network="resnet32", decay_budget=None)
    (tmp_path / "other/broken.json").write_text("{")
    capsys.readouterr()
    chosen = ["--format", "csv", "--columns", "trials", "last", "difference"]
    summary.main(["pytorch_resnet_cifar10", "--from", str(tree), str(tmp_path / "other"), *chosen])
    output, errors = capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO(output)))
    assert {row["table"] for row in rows} == {"resnet20 on digits", "resnet32 on digits"}
    assert all(None not in row and None not in row.values() for row in rows)  # each row has all columns, and no more
    (other,) = [row for row in rows if row["table"] == "resnet32 on digits"]
    assert [other[name] for name in ("row", "trials", "last (%)", "last against plain")] == ["plain", "1", "70.0", ""]
    assert errors.startswith(f"passed over: {tmp_path / 'other/broken.json'} is not JSON (") and errors.count("\n") == 1


def test_latex_has_no_character_that_means_something_there():
    odd = Table("A_1 & 100 %", ("#$^~\\{}",), (("x\ny <b>", Difference(-1.5, 0.25)),), ("note",))
    header, row = FORMS["latex"]([odd]).splitlines()[2:5:2]
    assert header == r"A\_1 \& 100 \% & \#\$\textasciicircum{}\textasciitilde{}\textbackslash{}\{\} \\"
    assert row == r"x\textbackslash{}ny \textless{}b\textgreater{} & $-$1.50 $\pm$ 0.25 \\"
