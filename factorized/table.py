"""A table of what `factorize` did to each layer."""

import torch
from torch import Tensor, nn

from .cost import cheaper_path
from .model import obstacles, parameter_count
from .patterns import factorized_modules
from .protocol import is_contracted


@torch.no_grad()
def report(model: nn.Module, example_input: Tensor | None = None) -> str:
    """Return a table with a line per linear and convolution layer: shape, rank, parameters, multiply-adds, path.

    Embeddings have one if they are factorized, and so do the query-key and output-value products of attention.

    Args:
        example_input: passed through the model once, in evaluation mode, to find the size of each layer's input.
            Without it multiply-adds and the choice of `auto` are unknown.
    """
    layers = factorized_modules(model)
    dense = obstacles(model)
    shapes = _input_shapes(model, layers, example_input) if example_input is not None else {}
    rows = [("layer", "matrix", "rank", "parameters", "multiply-adds", "path")]
    for name, layer in layers.items():
        if is_contracted(layer):
            size = layer.contract().shape
        else:
            left, right = layer.factors()[0], layer.factors()[-1]
            size = (*left.shape[:-1], right.shape[-1])  # of attention, the number of heads comes first
        shape = shapes.get(name)
        adds, path = "", getattr(layer, "path", "")
        if shape is not None:
            adds = f"{layer.multiply_adds(shape):,}"
            path = f"auto: {cheaper_path(**layer.costs(shape))}" if path == "auto" else path
        count = f"{parameter_count(layer):,}"
        rows.append((name or "(root)", "x".join(map(str, size)), str(layer.rank), count, adds, path))
    for name, reason in dense.items():
        layer = model.get_submodule(name)
        shape = "x".join(map(str, layer.weight.shape))
        why = f"dense: {reason}" if reason else "dense"
        rows.append((name or "(root)", shape, "", f"{parameter_count(layer):,}", "", why))
    rows.append(("(model)", "", "", f"{parameter_count(model):,}", "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(_aligned(cell, width, i) for i, (cell, width) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(line.rstrip() for line in lines)


def _aligned(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column in (2, 3, 4) else cell.ljust(width)


@torch.no_grad()
def _input_shapes(model: nn.Module, layers: dict[str, nn.Module], example_input: Tensor) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    names = {layer: name for name, layer in layers.items()}

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        shapes[names[layer]] = tuple(inputs[0].shape)

    handles = [layer.register_forward_pre_hook(remember) for layer in layers.values()]
    in_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        model(example_input)
    finally:
        for module in in_training:
            module.training = True
        for handle in handles:
            handle.remove()
    return shapes
