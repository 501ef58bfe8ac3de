"""Latency in evaluation of a ResNet50 and a ViT-S at a quarter of their parameters: dense, factorized and deployed.

The factorized network takes the path that each layer chooses by its costs; the deployed one consists of plain layers,
each dense or in steps by what was faster when it was timed on its own.

Target: deployed never slower than the better of the other two, within 5 %.
"""

import argparse
import copy
import functools

import timm
import torch
from timing import begin, device, medians

import factorized
from factorized.deployment import deployed

NETWORKS = {"ResNet50": "resnet50", "ViT-S": "vit_small_patch16_224"}


def main() -> None:
    """Print a table of latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--batches", type=int, nargs="+", default=(1, 8))
    parser.add_argument("--splits", nargs="+", default=("channel", "spatial"), choices=("channel", "spatial"))
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="CPU time of one thread, for a busy machine")
    args = parser.parse_args()
    clock = begin(args.cpu_time)
    print("| network | batch | dense (ms) | factorized | deployed | layers in steps | deployed / better of both |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, build in NETWORKS.items():
        for split in args.splits if name == "ResNet50" else args.splits[:1]:
            torch.manual_seed(0)
            dense = timm.create_model(build).eval().to(device())
            small = factorized.factorize(copy.deepcopy(dense), ratio=args.ratio, split=split, init="kaiming")
            for batch in args.batches:
                x = torch.randn(batch, 3, 224, 224, device=device())
                plain, forms = deployed(copy.deepcopy(small), x, measure=True)
                models = {"dense": dense, "factorized": small, "deployed": plain}
                with torch.inference_mode():
                    calls = {kind: functools.partial(model, x) for kind, model in models.items()}
                    seconds = medians(calls, repeats=args.repeats, clock=clock)
                dense_time, factorized_time, deployed_time = (1e3 * seconds[kind] for kind in models)
                steps = sum(form.choice == "steps" for form in forms)
                called = f"{name} ({split})" if name == "ResNet50" else name
                print(
                    f"| {called} | {batch} | {dense_time:.1f} | {factorized_time:.1f} | {deployed_time:.1f} | "
                    f"{steps} of {len(forms)} | {deployed_time / min(dense_time, factorized_time):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
