"""Train a small ResNet on images of digits, dense and factorized four ways, each with several seeds.

Takes about two minutes on two cores and needs no network and no GPU. Ends with a table, a figure, what to see in them,
and what to do next.
"""

import contextlib
import os
import runpy
import sys
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from tqdm import tqdm

from lab.cli import Parser, launch, number

from .charts import draw
from .finished import Run
from .method import PLAIN
from .panels import course, learning_curves
from .report import page_about, write
from .runs import Found, find
from .selection import sections
from .statistics import paired_difference
from .summary import Options, table_of
from .tables import as_text

STUDY = Path(__file__).resolve().parent.parent / "pytorch_resnet_cifar10"
FACTORIZED = ["--rank-scale", "0.111"]
METHODS = {
    "dense": [],
    PLAIN: FACTORIZED,
    "SI": [*FACTORIZED, "--spectral"],
    "FD": [*FACTORIZED, "--wd2fd"],
    "SI & FD": [*FACTORIZED, "--spectral", "--wd2fd"],
}
# Three epochs are 135 steps. So that decay acts at all in so few, its coefficient is 50 times the paper's.
SHARED = (
    "--data digits --arch resnet20 --epochs 3 --batch-size 32 --lr 0.02 --weight-decay 5e-3 --channels-last".split()
)

STEPS = 3 * 45
SHOWN = ("trials", "parameters", "training loss", "last", "difference", "seconds")
NORM = "mean Frobenius norm of the convolutions"

INTRODUCTION = """\
A ResNet20 whose convolutions are products U VT of two thin matrices keeps 24 % of its parameters, and trains faster.
What it loses in accuracy depends on two things that cost nothing:
  SI   spectral initialization: the factors start from the singular value decomposition of the dense network's initial
       weights, and not as random matrices of their own
  FD   Frobenius decay: weight decay acts on the product U VT, and not on U and VT
Training it on images of digits, dense and factorized four ways, with {seeds} seeds each:
"""

EXPLANATION = """\
What to see in {figure}:
  left    The training loss after each epoch. A better start shows in the first one, Frobenius decay from the next on.
  middle  The accuracy on the test images. The band is the range over the seeds.
  right   The mean Frobenius norm of the convolutions' weights. Factors with a random start of their own multiply out to
          weights far from the size that a dense network starts with; spectral initialization starts at the dense one's
          size, less what the small rank cuts off. Frobenius decay pulls the product down, and L2 decay of the factors
          hardly moves it.
{verdict}
A small network and {steps} steps show what the methods act on. What they are worth after a full training is what the
experiments measure; the paper found them to matter most where networks are compressed strongly.

What to do next:
  cd pytorch_resnet_cifar10 && python trainer.py --data cifar10 --arch resnet20 --rank-scale 0.111 --spectral --wd2fd
                                  the same on CIFAR-10, 200 epochs: for a GPU
  python -m paper scripts --dry-run
                                  the paper's experiments, a script for each
  python -c "import factorized as f, torchvision; f.factorize(torchvision.models.resnet18(), ratio=0.2, verbose=True)"
                                  the library on a network of your own
"""


def train(name: str, seed: int, folder: Path) -> None:
    """Train one network in this process, on one thread, with what it prints in a file of its folder."""
    import torch

    torch.set_num_threads(1)
    sys.path.insert(0, str(STUDY))  # where the program looks for its own modules
    program = runpy.run_path(str(STUDY / "trainer.py"))
    folder.mkdir(parents=True, exist_ok=True)
    argv = [*SHARED, *METHODS[name], "--seed", str(seed), "--save-dir", str(folder), "--overwrite"]
    with open(folder / "log.txt", "w") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        program["main"](argv)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(prog="python -m paper quickstart", description=__doc__)
    add, count = parser.add_argument, number(int, least=1)
    add("--seeds", type=count, default=4, metavar="N", help="trainings of each kind (default %(default)s)")
    add("--jobs", type=count, default=os.cpu_count(), metavar="N", help="trainings at a time (default %(default)s)")
    add("--out", type=Path, default=STUDY / "results" / "quickstart", metavar="DIR", help="gets runs and figure")
    return parser


def main(argv: list[str] | None = None) -> None:
    """Train the networks, and show the results side by side."""
    args = build_parser().parse_args(argv)
    seeds = range(args.seeds)
    print(INTRODUCTION.format(seeds=args.seeds))
    folders = {name: [args.out / name.replace(" & ", "+") / str(seed) for seed in seeds] for name in METHODS}
    # One thread to a process: such small images leave nothing for a second one to do.
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        started = [pool.submit(train, name, seed, folders[name][seed]) for seed in seeds for name in METHODS]
        for training in tqdm(started, desc="training", unit="run", dynamic_ncols=True):
            training.result()
    found = {name: find(folders[name]) for name in METHODS}
    show({name: found[name].runs for name in METHODS}, args.out / "curves.png")
    every = Found([run for name in METHODS for run in found[name].runs], [], [])
    page = args.out.resolve() / "report.html"
    write(page_about(every, "ResNet20 on digits, dense and factorized four ways", {}), page)
    print(f"All of it on one page, to be opened in a browser: {page}")


def show(runs: dict[str, list[Run]], figure: Path) -> None:
    """Draw the figure, and print the table of the runs' results and what there is to see."""
    norm = course({name: [run.curves for run in trials] for name, trials in runs.items()}, "metric/FrobNorm", NORM)
    draw([*learning_curves(runs), *filter(None, [norm])], figure)
    (section,) = sections(run for trials in runs.values() for run in trials)
    print(f"\n{as_text(table_of(section, Options(columns=SHOWN)))}\n")
    final = {name: [run.results["final"] for run in trials] for name, trials in runs.items()}
    sure = [name for name in ("SI", "FD", "SI & FD") if paired_difference(final[name], final[PLAIN]).is_beyond_chance]
    verdict = f"The difference in accuracy to plain is beyond chance for: {', '.join(sure) or 'none of the three'}."
    print(EXPLANATION.format(figure=figure, verdict=verdict, steps=STEPS))


if __name__ == "__main__":
    launch(main, "python -m paper quickstart")
