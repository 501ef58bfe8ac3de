"""What works with models that nobody here wrote: a table, a row for each of zoo.py.

    python benchmarks/coverage.py              all models, about five minutes on one core; MODEL... for some of them

Every cell is a check of its own, on the model factorized to half of its parameters, embeddings included, unless it says
otherwise:

    reached        share of the parameters in factorized layers, by default and with embeddings=True
    full rank      relative change of the outputs by factorizing at full rank; below 1e-4
    half           the ratio that ratio=0.5 gives; within 0.02
    step           a step of SGD with Frobenius decay moves every factor, and the loss is finite
    merge          the same outputs from the classes that there were
    load           the same bits from factorized.save, in a fresh model with other weights
    copy           a deep copy has the same outputs, and keeps them when the original changes
    average        torch.optim.swa_utils.AveragedModel starts at the same outputs
    checkpoint     the same gradients under torch.utils.checkpoint
    compile        the same outputs from torch.compile (aot_eager)
    export         the same outputs from torch.export, wherever the dense model can be exported
"""

import copy
import sys
import tempfile
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.checkpoint import checkpoint

import factorized

try:
    from benchmarks.zoo import ZOO, build, outputs
except ImportError:  # started from its own folder
    from zoo import ZOO, build, outputs


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the relative error of outputs."""
    assert found.shape == expected.shape and expected.norm() > 0
    return ((found - expected).norm() / expected.norm()).item()


def _silently(model: nn.Module, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return factorized.factorize(model, **options)


def halved(name: str) -> tuple[nn.Module, Any]:
    """Return a model of half the parameters, and an example."""
    model, example = build(name)
    return _silently(model, ratio=0.5, embeddings=True), example


def reached(name: str) -> str:
    shares = []
    for embeddings in (False, True):
        model = _silently(build(name)[0], rank_scale=0.2, embeddings=embeddings, init="kaiming")
        shares.append(factorized.summary(model).reached)
    assert shares[1] >= shares[0] > 0.8
    return " / ".join(f"{100 * share:.1f} %" for share in shares)


def full_rank(name: str) -> str:
    model, example = build(name)
    expected = outputs(model, example)
    error = difference(outputs(_silently(model, rank_scale=1.0, embeddings=True), example), expected)
    assert error < 1e-4
    return f"{error:.0e}"


def half(name: str) -> str:
    before = factorized.parameter_count(build(name)[0])
    ratio = factorized.parameter_count(halved(name)[0]) / before
    assert abs(ratio - 0.5) < 0.02
    return f"{ratio:.3f}"


def step(name: str) -> str:
    model, example = halved(name)
    layers = factorized.factorized_modules(model).values()
    before = [factor.detach().clone() for layer in layers for factor in layer.factors()]
    optimizer = torch.optim.SGD(factorized.parameter_groups(model, 1e-3), lr=0.1)
    factorized.FrobeniusDecay(model, 0.01).attach(optimizer)
    loss = outputs(model, example).square().mean()
    loss.backward()
    optimizer.step()
    after = [factor for layer in layers for factor in layer.factors()]
    assert loss.isfinite() and not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    return "yes"


def merge(name: str) -> str:
    model, example = halved(name)
    expected = outputs(model, example)
    factorized.merge(model)
    assert difference(outputs(model, example), expected) < 1e-4
    dense = build(name)[0]
    names, expected_names = ([(n, type(m).__qualname__) for n, m in whole.named_modules()] for whole in (model, dense))
    assert names == expected_names
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in dense.named_parameters()}
    return "yes"


def load(name: str) -> str:
    model, example = halved(name)
    torch.manual_seed(1)
    fresh = ZOO[name].build().eval()
    with tempfile.TemporaryDirectory() as folder:
        factorized.save(model, folder)
        factorized.load(fresh, folder)
    assert torch.equal(outputs(fresh, example), outputs(model, example))
    return "yes"


@torch.no_grad()
def copied(name: str) -> str:
    model, example = halved(name)
    expected = outputs(model, example)
    other = copy.deepcopy(model)
    for parameter in model.parameters():
        parameter.zero_()
    factorized.merge(model)
    assert torch.equal(outputs(other, example), expected)
    return "yes"


@torch.no_grad()
def average(name: str) -> str:
    model, example = halved(name)
    expected = outputs(model, example)
    averaged = AveragedModel(model)
    averaged.update_parameters(model)
    assert torch.equal(outputs(averaged.module, example), expected)
    return "yes"


def checkpointed(name: str) -> str:
    model, example = halved(name)
    found = []
    for run in (lambda: outputs(model, example), lambda: checkpoint(outputs, model, example, use_reentrant=False)):
        model.zero_grad()
        run().square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    assert all(difference(other, one) < 1e-4 for one, other in zip(*found, strict=True) if one.norm() > 0)
    return "yes"


@torch.no_grad()
def compiled(name: str) -> str:
    model, example = halved(name)
    expected = outputs(model, example)
    torch.compiler.reset()
    assert difference(outputs(torch.compile(model, backend="aot_eager"), example), expected) < 1e-4
    return "yes"


@torch.no_grad()
def exported(name: str) -> str:
    dense, example = build(name)
    try:
        _export(dense, example)
    except Exception:
        return "nor dense"
    model, _ = halved(name)
    assert difference(outputs(_export(model, example), example), outputs(model, example)) < 1e-4
    return "yes"


def _export(model: nn.Module, example: Any) -> nn.Module:
    if isinstance(example, dict):
        return torch.export.export(model, (), example, strict=False).module()
    positional = example if isinstance(example, tuple) else (example,)
    return torch.export.export(model, positional, strict=False).module()


CHECKS: dict[str, Callable[[str], str]] = {
    "reached": reached, "full rank": full_rank, "half": half, "step": step, "merge": merge, "load": load,
    "copy": copied, "average": average, "checkpoint": checkpointed, "compile": compiled, "export": exported,
}  # fmt: skip


def main(names: list[str]) -> None:
    """Print the table."""
    for name in names:
        if name not in ZOO:
            raise SystemExit(f"coverage.py: there is no {name!r}; the models are {', '.join(ZOO)}")
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, factorized {factorized.__version__}\n")
    print("| model | parameters | " + " | ".join(CHECKS) + " |")
    print("|---|" + "---:|" * (len(CHECKS) + 1))
    failed = []
    for name in names or ZOO:
        cells = [f"{factorized.parameter_count(build(name)[0]):,}"]
        for title, check in CHECKS.items():
            try:
                cells.append(check(name))
            except Exception as error:
                cells.append("**no**")
                failed.append(f"{name}, {title}: {type(error).__name__}: {str(error)[:300]}")
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    if failed:
        raise SystemExit("\n".join(["", *failed]))


if __name__ == "__main__":
    main(sys.argv[1:])
