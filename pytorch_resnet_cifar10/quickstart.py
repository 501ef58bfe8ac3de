"""Train a small ResNet dense and factorized four ways on real images of digits, in about two minutes on two cores.

Needs no network and no GPU. Ends with a table and with curves of accuracy and layer norm in `results/quickstart/`.
"""

import json
from pathlib import Path

import trainer

from lab.cli import run
from paper.figures import curves
from paper.tables import table

FOLDER = Path(__file__).resolve().parent / "results" / "quickstart"
FACTORIZED = ["--rank-scale", "0.111"]
RUNS = {
    "dense": [],
    "plain": FACTORIZED,
    "spectral": [*FACTORIZED, "--spectral"],
    "Frobenius": [*FACTORIZED, "--wd2fd"],
    "both": [*FACTORIZED, "--spectral", "--wd2fd"],
}


def main() -> None:
    """Train the five networks and print their results side by side."""
    shared = "--data digits --arch resnet20 --epochs 6 --batch-size 32 --lr 0.05 --weight-decay 5e-4".split()
    rows = []
    for name, flags in RUNS.items():
        print(f"\n{name}")
        trainer.main([*shared, *flags, "--channels-last", "--save-dir", str(FOLDER / name), "--overwrite"])
        results = json.loads((FOLDER / name / "results.json").read_text())
        rows.append(
            (
                name,
                f"{results['compressed parameter count']:,}",
                f"{results['compression ratio']:.3f}",
                f"{results['final validation accuracy']:.2f}",
                f"{results['seconds']:.0f}",
            )
        )
    figure = FOLDER / "curves.png"
    tags = {"valid/acc": "test accuracy (%)", "metric/FrobNorm": "mean Frobenius norm of the layers"}
    curves({name: FOLDER / name for name in RUNS}, tags, figure)
    print()
    print(table(("ResNet20 on digits", "parameters", "ratio", "test accuracy (%)", "seconds"), rows))
    print(f"\ncurves: {figure}")


if __name__ == "__main__":
    run(main, "quickstart.py")
