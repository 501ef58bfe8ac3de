"""Figures of runs: what they show, and that names do not lie on each other."""

import argparse
import itertools
import re
import struct
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace

import pytest
import scipy.stats

from lab.cli import UserError
from paper import figures
from paper.cells import group
from paper.charts import Line, Panel, _apart, draw, styles
from paper.method import method_of, start_of
from paper.panels import against, course, gain_of_frobenius
from paper.parts import by_start, facets
from paper.runs import find
from paper.selection import sections
from tests.paper.samples import FD, SI, make_run

GRID = {"plain": {}, "SI": SI, "FD": FD, "SI & FD": SI | FD}


@pytest.fixture(scope="module")
def tree(tmp_path_factory) -> Path:
    """Four methods at two doses and two scales, two trials each, and a dense network."""
    tree = tmp_path_factory.mktemp("tree")
    for scale, dose in ((0.111, 4.0), (0.111, 1.0), (0.333, 4.0)):
        for index, (method, arguments) in enumerate(GRID.items()):
            for seed in (1, 2):
                arguments = {**arguments, "rank_scale": scale, "decay_budget": dose}
                head = {"rank_scale": scale, "decay_budget": dose, "ratio": 2 * scale, "seed": seed}
                final = 60 + 10 * index + dose + seed
                make_run(tree / f"{method}-{scale}-{dose}/{seed}", arguments, final=final, best=final, **head)
    dense = {"method": "dense", "rank_scale": 0.0, "parameters": 269722, "ratio": 1.0, "decay_budget": 4.0}
    make_run(tree / "dense/1", {"rank_scale": 0.0, "decay_budget": 4.0}, final=95.0, best=95.0, **dense)
    return tree


def texts_of(path: Path) -> set[str]:
    """Return what is written in an SVG file."""
    nodes = ElementTree.fromstring(path.read_text()).iter()
    return {"".join(node.itertext()) for node in nodes if node.tag.endswith("}text")}


def test_the_figures_of_a_tree(tree, tmp_path, capsys):
    figures.main(["pytorch_resnet_cifar10", "--from", str(tree), "--out", str(tmp_path / "out")])
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    stems = {name.removeprefix("resnet20-digits-").rpartition(".")[0] for name in names}
    assert {name.rpartition(".")[2] for name in names} == {"png", "svg"} and len(names) == 2 * len(stems)
    facets = ("rank-scale_0.111-decay_B-1", "rank-scale_0.111-decay_B-4", "rank-scale_0.333")
    assert stems == {f"{facet}-{kind}" for facet in facets for kind in ("curves", "norms")} | {
        "decay_B-4-against-ratio", "decay_B-4-against-rank-scale", "rank-scale_0.111-against-decay"
    }  # fmt: skip
    assert capsys.readouterr().out.count(" and .svg\n") == len(names) // 2
    texts = texts_of(tmp_path / "out/resnet20-digits-rank-scale_0.111-against-decay.svg")
    assert {"plain", "SI", "FD", "SI & FD", "decay budget", "accuracy (%), last epoch"} <= texts


def test_points_are_the_trials(tree):
    cells = [cell for cell in group(find([tree]).runs) if cell.label("rank scale") != "0.333"]
    (facet,) = [members for _, members in facets(cells, ["decay"])]
    panel = against(facet, "last", "accuracy", "decay budget", lambda run: run.results["decay budget"], 5)
    lines = {line.name: line for line in panel.lines}
    assert lines["SI"].x == (1.0, 4.0) and lines["SI"].values == ((72.0, 73.0), (75.0, 76.0))
    assert lines["dense"].x == (4.0,)  # one dose alone is a point
    by_ratio = against(cells, "last", "accuracy", "ratio", lambda run: run.results["ratio"], 5)
    assert by_ratio is None  # a single size has no course


def test_what_frobenius_decay_gains(tmp_path):
    """Seed by seed: FD and SI & FD against the start's own L2 decay at the same dose, with the interval of a t test."""
    gains = {1.0: [1.0, 2.0, 4.5], 12.0: [9.0, 5.0, 7.0]}
    for dose, gained in gains.items():
        for seed, gain in enumerate(gained):
            for method, final in (("SI", 50.0 + seed), ("SI & FD", 50.0 + seed + gain), ("plain", 40.0)):
                arguments = {**GRID[method], "decay_budget": dose}
                folder = tmp_path / f"{method}-{dose}/{seed}"
                make_run(folder, arguments, seed=seed, final=final, best=final, decay_budget=dose)
    panel = gain_of_frobenius(group(find([tmp_path]).runs), "last", "accuracy", "decay budget", 5)
    (line,) = panel.lines
    assert (line.name, line.x, line.means) == ("SI & FD", (1.0, 12.0), [2.5, 7.0])
    for half, gained in zip(line.bars, gains.values()):
        interval = scipy.stats.ttest_1samp(gained, 0).confidence_interval(0.95)
        assert half == pytest.approx((interval.high - interval.low) / 2)


def test_dense_networks_belong_to_all_sizes(tree):
    found = {common.get("rank scale"): members for common, members in facets(group(find([tree]).runs), ["decay"])}
    assert set(found) == {"0.111", "0.333"}
    assert all([cell.method for cell in members].count("dense") == 1 for members in found.values())


NORMALIZATION = {"no decay": {"no_frob": True}, "imposed norms": {"no_frob": True, "normalize": "norms"}}


def test_the_normalization_experiment_has_figures_of_its_own(tree, tmp_path):
    """Of Frobenius decay and the arms that go by it; in the others they would be points of one size among lines."""
    for name, arguments in NORMALIZATION.items():
        arguments = {**FD, **arguments, "rank_scale": 0.111, "decay_budget": 4.0}
        make_run(tmp_path / f"runs/{name}/1", arguments, rank_scale=0.111, decay_budget=4.0, ratio=0.222, seed=1)
    places = ["--from", str(tree), str(tmp_path / "runs")]
    figures.main(["pytorch_resnet_cifar10", *places, "--out", str(tmp_path)])
    stem = "resnet20-digits-rank-scale_0.111-decay_B-4"
    own = texts_of(tmp_path / f"{stem}-normalization-norms.svg")
    assert {"FD", *NORMALIZATION} <= own and not {"plain", "SI", "SI & FD", "dense"} & own  # none has a spectral start
    for name in (f"{stem}-norms", "resnet20-digits-decay_B-4-against-rank-scale"):
        usual = texts_of(tmp_path / f"{name}.svg")
        assert {"plain", "FD"} <= usual and not usual & set(NORMALIZATION)


FORMS = {"lin": "", "qk": "_quekey", "ov": "_outval"}


def test_many_methods_are_in_parts_by_their_start():
    """All forms of a Transformer's methods are too many lines for one panel; the dense network is with each part."""
    starts, decays = [(), ("lin",), ("lin", "qk", "ov")], [(), ("lin",), ("ov",), ("lin", "qk", "ov")]
    cells = [SimpleNamespace(method="dense")]
    for start, decay in itertools.product(starts, decays):
        arguments = {f"spectral{end}": form in start for form, end in FORMS.items()}
        arguments |= {f"wd2fd{end}": form in decay for form, end in FORMS.items()}
        cells.append(SimpleNamespace(method=method_of({"method": "low-rank"}, arguments)))
    parts = by_start(cells)
    assert list(parts) == ["dense", "random start", "SI (lin)", "SI"]
    assert [cell.method for cell in parts["random start"]] == ["dense", "plain", "FD (lin)", "FD (ov)", "FD"]
    assert {len(members) for members in parts.values()} == {1, 5}
    assert list(by_start(cells[:8])) == [""] and by_start([]) == {}
    deep = [SimpleNamespace(method=f"deep {method}") for method in GRID]
    assert list(by_start([*cells[:8], *deep[:1]])) == [""]  # which looks like plain, but thin


@pytest.mark.parametrize(
    ("method", "start"),
    [
        ("dense, SI", "dense"), ("deep SI & FD", "SI"), ("deep plain", "random start"), ("SI, student", "SI"),
        ("SI (qk, ov) & FD (lin)", "SI (qk, ov)"), ("CRS, student", "random start"),
        ("L2 & imposed norms", "random start"),
        ("c-obd", "pruned"), ("eigendamage-separable", "pruned"),
    ],
)  # fmt: skip
def test_the_start_of_a_method(method, start):
    assert start_of(method) == start


def test_only_arms_of_the_normalization_experiment(tmp_path):
    make_run(tmp_path / "runs/none/1", {**FD, "no_frob": True})
    figures.main(["pytorch_resnet_cifar10", "--from", str(tmp_path / "runs"), "--out", str(tmp_path)])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        f"resnet20-digits-normalization-{kind}.png" for kind in ("curves", "norms")
    ]


def test_by_arm(tree, tmp_path, capsys):
    flags = ["pytorch_resnet_cifar10", "--from", str(tree), "--out", str(tmp_path), "--by", "arm"]
    figures.main([*flags, "--only", "SI*0.111*"])
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [
        "resnet20-digits-curves.png", "resnet20-digits-norms.png"
    ]  # fmt: skip
    assert "SI-0.111-1.0" in (tmp_path / "resnet20-digits-norms.svg").read_text()


def test_course_is_of_the_epochs_that_all_trials_have():
    curves = [{"a": ([0, 1, 2], [1.0, 2.0, 3.0])}, {"a": ([0, 1], [5.0, float("nan")])}, {}]
    panel = course({"one": curves, "none": [{}]}, "a", "A", offset=1)
    assert panel.lines == (Line("one", (1.0,), ((1.0, 5.0),)),)
    assert course({"one": curves}, "b", "B") is None


def test_styles_are_those_of_the_methods():
    """Whatever else is drawn: a reader of two figures must not take one method for another."""
    assert styles(["SI", "plain"])["SI"] == styles(["dense", "other", "SI"])["SI"]
    several = styles(["other", "more", "SI & FD", "plain"])
    assert len({style[:2] for style in map(tuple, several.values())}) == 4
    assert len(styles(map(str, range(20)))) == 20
    assert styles(["deep SI", "x"])["deep SI"] == styles(["SI"])["SI"]  # which is drawn thin, see `Line.is_thin`


def test_separate_runs_are_drawn_beside_each_other():
    lines = tuple(Line(str(number), (0.1, 1.0), ((1.0,), (2.0,))) for number in range(12))
    panel = Panel("A", "x", lines, points=True, logarithmic=True)
    first, last = panel.places(lines[0]), panel.places(lines[-1])
    assert last[0] / first[0] == pytest.approx(last[1] / first[1])  # by the same share of the width
    assert 0.1 / 1.1 < first[0] < 0.1 < last[0] < 0.11  # still at its place
    assert Panel("A", "x", lines).places(lines[0]) == [0.1, 1.0]


def test_names_are_moved_apart():
    assert _apart([0.2, 0.5], 0.1) == [0.2, 0.5]
    assert _apart([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert _apart([1.0, 1.0], 0.1) == pytest.approx([0.9, 1.0])  # never above the panel
    moved = _apart([0.1, 0.11, 0.19, 0.8], 0.1)
    assert all(b - a >= 0.1 - 1e-9 for a, b in zip(moved, moved[1:])) and moved[3] == 0.8


def test_files(tmp_path):
    lines = tuple(Line(name, (0.0, 1.0), ((1.0, 2.0), (3.0, 3.0))) for name in ("one", "two <b>"))
    draw([Panel("A", "x", lines), Panel("B", "x", lines, points=True)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    draw([Panel("A", "x", lines), Panel("B", "x", lines, points=True)], tmp_path / "figure.png")
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}  # equal numbers, equal bytes
    svg = (tmp_path / "figure.svg").read_text()
    assert "two &lt;b&gt;" in svg and not re.search(r"\d{4}-\d\d-\d\dT", svg)


def test_panels_are_in_rows_of_three(tmp_path):
    for count, (width, height) in {2: (1200, 468), 3: (1800, 468), 5: (1800, 936)}.items():
        draw([Panel(str(number), "x", (Line("a", (1.0,), ((1.0,),)),)) for number in range(count)], tmp_path / "a.png")
        assert struct.unpack(">II", (tmp_path / "a.png").read_bytes()[16:24]) == (width, height)
        assert {str(number) for number in range(count)} <= texts_of(tmp_path / "a.svg")


def test_nothing_to_draw(tmp_path):
    folder = make_run(tmp_path / "a/1")
    for events in folder.glob("events.*"):
        events.unlink()
    with pytest.raises(UserError, match="nothing to draw"):
        figures.main(["pytorch_resnet_cifar10", "--from", str(folder), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_kinds_of_layers_stand_beside_each_other(tmp_path):
    """On one vertical axis, each with the dense network and the methods in their own colours."""
    for kind, final in (("Tucker", 20.0), ("TensorTrain", 40.0)):
        for ratio in (0.1, 0.2):
            head = {"network": f"WRN of {kind}_{ratio}", "ratio": ratio, "final": final + 50 * ratio, "seed": 1}
            make_run(tmp_path / f"runs/{kind}-{ratio}/1", {}, **head)
    dense = {"network": "WRN", "method": "dense", "rank_scale": 0.0, "ratio": 1.0, "final": 90.0}
    make_run(tmp_path / "runs/dense/1", {}, seed=1, **dense)
    (section,) = sections(find([tmp_path / "runs"]).runs)
    made = dict(figures.figures_of(section, argparse.Namespace(by=(), last=5)))
    panels = made["-against-ratio"]
    assert [panel.title for panel in panels] == [
        f"{kind}: accuracy (%), last epoch" for kind in ("TensorTrain", "Tucker")
    ]
    assert [[line.means for line in panel.lines] for panel in panels] == [[[45.0, 50.0]], [[25.0, 30.0]]]
    assert [(panel.level, panel.alike) for panel in panels] == [(("dense", 90.0), True)] * 2
    assert {line.name for panel in panels for line in panel.lines} == {"plain"}
    draw(panels, tmp_path / "both.png")
    heights = re.findall(
        r'<g id="ytick_\d+">.*?<use xlink:href="#\w+" x="[\d.]+" y="([\d.]+)"',
        (tmp_path / "both.svg").read_text(),
        re.S,
    )
    assert heights and len(heights) % 2 == 0 and heights[: len(heights) // 2] == heights[len(heights) // 2 :]


def test_what_students_lose_has_a_panel_of_its_own(tmp_path):
    """It is another loss than that of the others, with which it has no axis in common."""
    for name, mode in (("taught", "student"), ("alone", "teacher")):
        make_run(tmp_path / f"{name}/1", {"mode": mode}, seed=1)
    runs = {run.method: [run] for run in find([tmp_path]).runs}
    panels = {panel.title: [line.name for line in panel.lines] for panel in figures.learning_curves(runs)}
    assert panels == {
        "training loss": ["plain"], "training loss with the transfer's": ["plain, student"],
        "validation accuracy (%)": ["plain", "plain, student"],
    }  # fmt: skip
