"""Statistics and scores of VGG19 for pruning, on images of CIFAR's size: seconds of CPU time and peak memory.

Each pair computes the same scores: once as `main_prune.py` does, in one streaming pass, and once by a plain loop over
the layers that keeps what it needs of every example (unfolded patches, gradients of weights) until all layers are done.
Every measurement is a process of its own with one thread; peak memory is what it took on top of network and images.

    python benchmarks/kfac.py --images 16
"""

import argparse
import multiprocessing
import resource
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from timing import describe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "EigenDamage-Pytorch"))

from eigendamage.pruning.methods import METHODS, Scoring, directions
from eigendamage.pruning.pruned import Pruned
from eigendamage.pruning.statistics import collect

METHODS_MEASURED = ("c-obd", "kron-obd", "eigendamage")
CLASSES = 10


def streaming(pruned, images, labels, name):
    """Return the scores of all layers as main_prune.py computes them."""
    method = METHODS[name]
    moments = collect(pruned.model, list(pruned.units), [(images, labels)], method.kinds)
    return {layer: scored(pruned.convolutions[layer], moments[layer], name) for layer in pruned.units}


def scored(layer, moments, name):
    """Return the scores of a layer's filters, or of its directions."""
    method = METHODS[name]
    if method.of_directions:
        found = directions(layer, moments, method.basis)
        return torch.cat([found.output_scores, found.input_scores])
    return method.score(layer.weight.detach().flatten(1), moments, Scoring())


def plain(pruned, images, labels, name):
    """Return the same scores from what a loop over the layers has kept of every example."""
    inputs, outputs = {}, {}
    hooks = []
    for layer, module in pruned.convolutions.items():

        def keep(module, args, output, layer=layer):
            inputs[layer], outputs[layer] = args[0], output
            output.retain_grad()

        hooks.append(module.register_forward_hook(keep))
    loss = F.cross_entropy(pruned.model.eval()(images), labels, reduction="sum")
    loss.backward()
    for hook in hooks:
        hook.remove()
    kept = {}
    with torch.no_grad():
        for layer in pruned.convolutions:
            patches = F.unfold(inputs[layer], 3, padding=1)  # (batch, in kh kw, positions)
            gradients = outputs[layer].grad.flatten(2)
            kept[layer] = patches, gradients, gradients @ patches.mT if name == "c-obd" else None
        scores = {}
        for layer, (patches, gradients, of_weights) in kept.items():
            batch, size, positions = patches.shape
            moments = {"G": torch.einsum("bot,bpt->op", gradients, gradients) / batch}
            if name == "c-obd":
                moments["diagonal"] = of_weights.square().mean(0)
            elif name == "eigendamage":
                taps = patches.view(batch, size // 9, 9 * positions)
                moments["channels"] = torch.einsum("bit,bjt->ij", taps, taps) / (9 * batch * positions)
            else:
                A = torch.einsum("bit,bjt->ij", patches, patches) / (batch * positions)
                weight = pruned.convolutions[layer].weight.flatten(1)
                moments |= {"A": A, "power": ((weight @ A) * weight).sum(1)}
            scores[layer] = scored(pruned.convolutions[layer], moments, name)
    return scores


def measure(way: str, name: str, images: int, result) -> None:
    """Compute the scores in this process, and send seconds, bytes and the scores of the last layer."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    pruned = Pruned.dense("vgg", 19, CLASSES)
    data = torch.randn(images, 3, 32, 32), torch.randint(CLASSES, (images,))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    scores = {"streaming": streaming, "plain": plain}[way](pruned, *data, name)
    seconds = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    result.send((seconds, 1024 * peak, {layer: values.double().tolist() for layer, values in scores.items()}))


def run(way: str, name: str, images: int):
    """Measure in a process of its own."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(False)
    process = context.Process(target=measure, args=(way, name, images, there))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=32, help="in the one batch (default 32)")
    parser.add_argument("--methods", nargs="+", choices=METHODS_MEASURED, default=METHODS_MEASURED)
    args = parser.parse_args()
    print(f"{describe()}; CPU time of one thread; VGG19, {args.images} images of 32 x 32")
    print(f"{'method':12} {'streaming':>20} {'plain loop':>20} {'time':>7} {'memory':>7} {'scores differ by':>17}")
    for name in args.methods:
        (s, s_bytes, scores), (p, p_bytes, others) = (run(way, name, args.images) for way in ("streaming", "plain"))
        apart = max(
            (torch.tensor(scores[layer]) - torch.tensor(others[layer])).abs().max().item() / max(others[layer])
            for layer in scores
        )
        cells = [f"{seconds:.2f} s {taken / 2**20:,.0f} MiB" for seconds, taken in ((s, s_bytes), (p, p_bytes))]
        print(f"{name:12} {cells[0]:>20} {cells[1]:>20} {p / s:>6.1f}x {p_bytes / s_bytes:>6.1f}x {apart:>17.1e}")


if __name__ == "__main__":
    main()
