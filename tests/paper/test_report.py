"""The page about runs: what it holds, that it needs nothing else, and that a browser shows and sorts it."""

import re
import shlex
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import main_pretrain
import pytest
import train
import trainer
from deficient import settings

from lab.cli import UserError
from lab.lock import Lock
from lab.settings import plain
from paper import report
from paper.finished import ASIDE
from paper.reproduce import command_of
from paper.runs import find
from tests.harness import REPOSITORY
from tests.paper.samples import SI, make_run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()


@pytest.fixture
def tree(tmp_path) -> Path:
    for arm, arguments, finals in (("plain", {}, [70.0, 9.5]), ("si", SI, [80.0, 100.0])):
        for seed, final in enumerate(finals):
            make_run(tmp_path / "runs" / arm / str(seed), arguments, seed=seed, final=final, best=final)
    tail = "EigenDamage-Pytorch/results/vgg_19_nfc-cifar10/0.1/spectral/2"
    failed, going = tmp_path / "runs" / tail, tmp_path / "runs/going/1"
    for folder in (failed, going):
        folder.mkdir(parents=True)
        (folder / "args.json").write_text("{}")
    (failed / "failed").write_text("it failed with status 2")
    (failed / "log.txt").write_text("first\n" * 50 + "error: <b>out</b> of memory\x1b[0m\n")
    (going / "progress.json").write_text('{"done": 3, "total": 10, "unit": "epochs"}')
    (tmp_path / "runs/bad").mkdir()
    (tmp_path / "runs/bad/results.json").write_text("{")
    return tmp_path


def written(tree: Path, *flags: str) -> str:
    report.main([str(tree / "runs"), "-o", str(tree / "report.html"), *flags])
    return (tree / "report.html").read_text()


class Reader(HTMLParser):
    """Collects the tags that are open, and what could lead elsewhere."""

    def __init__(self):
        super().__init__()
        self.open, self.leads, self.wrong = [], [], []

    def handle_starttag(self, tag, attrs):
        self.leads += [v for name, v in attrs if name in ("src", "href") and not v.startswith(("data:", "#"))]
        if tag not in ("meta", "link", "img", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass  # of SVG

    def handle_endtag(self, tag):
        if self.open and self.open[-1] == tag:
            self.open.pop()
        else:
            self.wrong.append(tag)


def test_the_page(tree):
    going = Lock(tree / "runs/going/1")
    text = written(tree)
    going.release()
    reader = Reader()
    reader.feed(text)
    assert (reader.open, reader.leads, reader.wrong) == ([], [], [])
    assert "4 finished, 1 running, 1 failed" in text and "3 of 10 epochs" in text
    assert "error: &lt;b&gt;out&lt;/b&gt; of memory\\x1b[0m" in text and text.count("first") < 25
    command = "python -m paper run EigenDamage-Pytorch --only cifar10-vgg_19_nfc-0.1-spectral</code>"
    assert command in text and "it failed with status 2" in text
    assert text.count('<details class="run"') == 6 and text.count("data:image/svg+xml;base64,") == 2
    assert "is not JSON" in text and "--spectral" in text and "39.75 ± 42.78" in text
    assert "http-equiv" not in text


@pytest.mark.skipif(not CHROMIUM, reason="needs Chromium")
def test_a_browser_shows_and_sorts_it(tree):
    text = written(tree)
    script = """
    const head = [...document.querySelectorAll('th')].find(th => th.textContent === 'last (%)')
    const read = () => [...head.closest('table').tBodies[0].rows].map(row => row.cells[0].textContent).join(' ')
    const seen = [read()]
    for (const times of [1, 2]) { head.firstChild.click(); seen.push(read() + ' ' + head.getAttribute('aria-sort')) }
    const wide = document.documentElement.scrollWidth > innerWidth
    const images = [...document.images].every(image => image.complete && image.naturalWidth > 300)
    document.title = JSON.stringify([seen, wide, images])
    """
    probe = tree / "probe.html"
    probe.write_text(text.replace("</html>", f"<script>onload = () => {{ {script} }}</script></html>"))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tree / 'profile'}", "--window-size=1250,1000"]
    shown = subprocess.run([*command, "--dump-dom", probe.as_uri()], capture_output=True, text=True, timeout=120)
    title = re.search(r"<title>(.*?)</title>", shown.stdout)[1].replace("&quot;", '"')
    assert title == '[["plain SI","plain SI ascending","SI plain descending"],false,true]'


def test_watching(tree, monkeypatch, capsys):
    """A run that ends in the meantime is on the next page; what has not changed is not drawn again."""
    pages, drawn = [], []
    draw = report.picture
    monkeypatch.setattr(report, "picture", lambda *args: drawn.append(args[1]) or draw(*args))

    def sleep(seconds):
        pages.append((tree / "report.html").read_text())
        assert seconds == 7
        if len(pages) == 2:
            make_run(tree / "runs/plain/7", seed=7)
        if len(pages) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        report.main([str(tree / "runs"), "-o", str(tree / "report.html"), "--watch", "7"], sleep)
    assert '<meta http-equiv="refresh" content="7">' in pages[0]
    assert ["4 finished" in page for page in pages] == [True, True, False] and "5 finished" in pages[2]
    assert len(drawn) == 4


PARSERS = {
    "pytorch_resnet_cifar10": (trainer, "--data digits --rank-scale 0.1 --spectral --decay-budget 4 --amp bf16"),
    "EigenDamage-Pytorch": (main_pretrain, "--dataset digits --network vgg --depth 11 --target-ratio 0.1 --wd2fd"),
    "deficient-efficient": (settings, "cifar10 teacher --conv Tucker_0.2 --epoch_step [3,5] --nocrswd"),
    "Transformer-PyTorch": (
        train,
        "data-bin/x --arch transformer_small --lr 0.25,0.1 --lr-scheduler fixed --wd2fd-outval --max-update 9",
    ),
}


@pytest.mark.parametrize("study", PARSERS)
def test_the_command_that_repeats_a_run(tmp_path, study):
    program, flags = PARSERS[study]
    parser = program.build_parser()
    arguments = plain(parser.parse_args(flags.split()))
    (run,) = find([make_run(tmp_path / "1", study=study)]).runs
    object.__setattr__(run, "arguments", arguments)
    folder, command = command_of(run).split(" && python ")
    assert folder == f"cd {study}"
    name, *argv = shlex.split(command)
    assert (REPOSITORY / study / name).is_file()
    again = plain(parser.parse_args(argv))
    differing = {name for name in arguments if arguments[name] != again[name]} - ASIDE
    assert differing == set()


def test_nothing_there(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no runs in"):
        report.main([str(tmp_path / "empty"), "-o", str(tmp_path / "r.html")])
    assert not (tmp_path / "r.html").exists()
