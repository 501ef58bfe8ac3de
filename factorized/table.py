"""What a model's layers cost, dense and factorized: a table for people, and the same for programs."""

import dataclasses
import math
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .budget import parameter_count
from .calls import Call, calls_of
from .cost import cheaper_path
from .eligible import Weight, weights
from .handover import DENSE_REASON
from .layers.linear import Conv1D
from .layers.weight import ComposedWeight
from .parametrization import composed_weights, parametrized_in
from .patterns import factorized_modules, known_as, named_modules
from .protocol import is_contracted
from .usage import check_model


@dataclasses.dataclass(frozen=True)
class Row:
    """A layer, factorized or dense."""

    name: str
    factorized: bool
    matrix: tuple[int, ...]
    """The shape of the product; of a dense layer that of its weight."""
    rank: Any
    """The rank, or the ranks of a tensor; None for a dense layer."""
    parameters: int
    dense_parameters: int
    """The number of parameters of the layer if it were dense."""
    multiply_adds: int | None
    """The multiply-adds of the example; None if they are not known."""
    dense_multiply_adds: int | None
    path: str
    """The execution path of a factorized layer."""
    reason: str
    """The reason why the layer is dense; empty for a factorized one, and for one that nothing was done to."""
    error: float | None = None
    """What the start left out of a factorized weight, as a share of its norm (`Factors.start_error`)."""
    note: str = ""
    """What that start lacked, in words (`Factors.start_note`)."""


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a model with their costs. `str` is a table; `as_dict` is for programs."""

    rows: tuple[Row, ...]
    """The layers in module order."""
    parameters: int
    """The number of parameters of the model."""
    dense_parameters: int
    """The number of parameters of the model with its factorized layers dense."""
    multiply_adds: int | None
    """The multiply-adds of the layers, for the example; None without one."""
    dense_multiply_adds: int | None

    @property
    def reached(self) -> float:
        """The share of the dense model's parameters that the factorized rows stand for."""
        return sum(row.dense_parameters for row in self.rows if row.factorized) / max(self.dense_parameters, 1)

    @property
    def factorized_layers(self) -> int:
        """Number of rows that are factorized."""
        return sum(row.factorized for row in self.rows)

    @property
    def closing_line(self) -> str:
        """What was gained, in one line."""
        parameters, dense = self.parameters, self.dense_parameters
        parts = [f"{parameters:,} of {dense:,} parameters, {parameters / max(dense, 1):.1%}".replace("%", " %")]
        if self.multiply_adds is not None and self.dense_multiply_adds:
            parts.append(f"{100 * self.multiply_adds / self.dense_multiply_adds:.0f} % of the multiply-adds")
        reached = f"{self.reached:.1%}".replace("%", " %")
        parts.append(f"{self.factorized_layers} of {len(self.rows)} layers, with {reached} of the dense parameters")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return plain values that `json` can write: a list `layers` of the rows, and what holds for the model."""
        values = dataclasses.asdict(self)
        return {
            "layers": [{key: value for key, value in row.items() if value != ""} for row in values.pop("rows")],
            **values,
            "ratio": self.parameters / max(self.dense_parameters, 1),
            "factorized_layers": self.factorized_layers,
            "reached": self.reached,
        }

    def __str__(self) -> str:
        known = self.multiply_adds is not None
        started = any(row.error is not None for row in self.rows)
        head = ["layer", "matrix", "rank", *(["error"] if started else []), "parameters", "dense", "share"]
        lines = [[*head, *(["multiply-adds", "share"] if known else []), "path"]]
        for row in self.rows:
            rank = "" if row.rank is None else str(row.rank)
            error = "" if row.error is None else f"{100 * row.error:.1f} %"
            cells = [row.name or "(root)", "x".join(map(str, row.matrix)), rank, *([error] if started else [])]
            cells += [f"{row.parameters:,}", f"{row.dense_parameters:,}", _share(row.parameters, self.parameters)]
            if known:
                adds = row.multiply_adds
                cells += ["", ""] if adds is None else [f"{adds:,}", _share(adds, self.multiply_adds)]
            dense = f"dense: {row.reason}" if row.reason else "dense"
            how = "; ".join(filter(None, (row.path, row.note)))
            lines.append([*cells, how if row.factorized else dense])
        return "\n".join([*aligned(lines, left=(0, 1, len(lines[0]) - 1)), self.closing_line])


def aligned(lines: Sequence[Sequence[str]], left: Container[int]) -> list[str]:
    """Return lines of cells as text, columns of one width each; those of `left` to the left and others to the right."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.ljust(widths[column]) if column in left else cell.rjust(widths[column])
            for column, cell in enumerate(line)
        ).rstrip()
        for line in lines
    ]


def _share(part: int, whole: int | None) -> str:
    return f"{100 * part / whole:.1f} %" if whole else ""


def report(model: nn.Module, example_input: Any = None) -> str:
    """Return the text of `summary(model, example_input)`."""
    return str(summary(model, example_input))


@torch.no_grad()
def summary(model: nn.Module, example_input: Any = None) -> Summary:
    """Return a line per layer: matrix, rank, parameters, those of the dense layer, shares, multiply-adds, path.

    After a spectral start also the error of the factors against the dense weight, a share of its norm, in the sense of
    the data if it was given statistics: for what was not trained since, that of the layer's outputs.

    There is a line for every factorized module, the query-key and output-value products of attention among them, and
    for every weight that is dense, with the reason if there is one. Composed weights have the path `composed`, with the
    multiply-adds of each composition, which are part of the layer's. The last line says what share of the dense model's
    parameters is in factorized layers.

    Args:
        example_input: passed through the model once, in evaluation mode, to find the size of each layer's input: a
            tensor, a tuple of positional arguments or a mapping of keyword arguments. Without it multiply-adds and the
            choice of `auto` are unknown. Multiply-adds are those of products with weights.

    Raises:
        TypeError: for what is no model.
        ValueError: for a layer without a weight yet (`nn.LazyLinear` before the first batch).
    """
    check_model(model)
    layers, dense = factorized_modules(model), weights(model)
    owners = composed_weights(model)
    readers = {module for places in owners.values() for module, _ in places}
    modules = {*layers.values(), *(weight.module for weight in dense.values()), *readers}
    calls = calls_of(model, modules, example_input) if example_input is not None else {}
    rows = {name: _factorized_row(name, layer, calls.get(layer, [])) for name, layer in layers.items()}
    for name, layer in layers.items():
        if isinstance(layer, ComposedWeight):
            places = [(module, own, calls.get(module, [])) for module, own in owners[layer]]
            rows[name] = _composed_row(name, layer, places)
    rows |= {name: _dense_row(name, weight, calls.get(weight.module, [])) for name, weight in dense.items()}
    known = [row for row in rows.values() if row.multiply_adds is not None]
    parameters = parameter_count(model)
    return Summary(
        rows=tuple(rows[name] for name in _in_module_order(model, rows)),
        parameters=parameters,
        dense_parameters=parameters + sum(row.dense_parameters - row.parameters for row in rows.values()),
        multiply_adds=sum(row.multiply_adds or 0 for row in known) if example_input is not None else None,
        dense_multiply_adds=sum(row.dense_multiply_adds or 0 for row in known) if example_input is not None else None,
    )


def _factorized_row(name: str, layer: Any, calls: list[Call]) -> Row:
    if is_contracted(layer):
        matrix = tuple(layer.contract().shape)
    else:
        left, right = layer.factors()[0], layer.factors()[-1]
        matrix = (*left.shape[:-1], right.shape[-1])  # of attention, the number of heads comes first
    parameters = parameter_count(layer)
    dense = parameters
    weight = _dense_shape(layer)
    if weight is not None:
        bias = getattr(layer, "bias", None)
        dense = math.prod(weight) + (bias.numel() if bias is not None else 0)
    path = getattr(layer, "path", "")
    adds = dense_adds = None
    if calls and weight is not None and hasattr(layer, "multiply_adds"):
        shapes = [tuple(inputs[0].shape) for inputs, _ in calls]
        adds = sum(layer.multiply_adds(shape) for shape in shapes)
        looked_up = hasattr(layer, "num_embeddings")
        dense_adds = 0 if looked_up else sum(output.numel() * math.prod(weight[1:]) for _, output in calls)
        if path == "auto":
            path = f"auto: {cheaper_path(**layer.costs(shapes[-1]))}"
    rank, error, note = (getattr(layer, key, None) for key in ("rank", "start_error", "start_note"))
    return Row(name, True, matrix, rank, parameters, dense, adds, dense_adds, path, "", error, note or "")


def _composed_row(name: str, weight: ComposedWeight, places: Iterable[tuple[nn.Module, str, list[Call]]]) -> Row:
    left, right = weight.factors()[0], weight.factors()[-1]
    matrix, parameters, dense = (*left.shape[:-1], right.shape[-1]), parameter_count(weight), math.prod(weight.shape)
    counts = [_dense_adds(m, own, weight.shape, *call) for m, own, calls in places for call in calls]
    known = [count for count in counts if count is not None]
    dense_adds = sum(known) if counts and len(known) == len(counts) else None
    adds = None if dense_adds is None else dense_adds + len(counts) * weight.compose_cost()
    path = f"composed, {weight.compose_cost():,} multiply-adds each time"
    started = weight.start_error, weight.start_note
    return Row(name, True, matrix, weight.rank, parameters, dense, adds, dense_adds, path, "", *started)


def _dense_shape(layer: Any) -> tuple[int, ...] | None:
    """Return the shape of the weight that a factorized layer stands for; None for what stands for no layer."""
    if not hasattr(layer, "to_dense"):
        return None
    if hasattr(layer, "kernel_size"):
        return (layer.out_channels, layer.in_channels // getattr(layer, "groups", 1), *layer.kernel_size)
    return (layer.U.shape[0], layer.VT.shape[1])


def _dense_row(name: str, weight: Weight, calls: list[Call]) -> Row:
    module: Any
    module, tensor, obstacle, parameter, _ = weight
    shown = tensor if tensor is not None else getattr(module, "weight", None)  # None if it is computed
    matrix = tuple(shown.shape) if isinstance(shown, Tensor) else ()
    parameters = parameter_count(module) if tensor is None else tensor.numel()
    if tensor is not None and tensor is module._parameters.get("weight") and module._parameters.get("bias") is not None:
        parameters += module.bias.numel()
    counts = [_dense_adds(module, parameter, matrix, *call) for call in calls]
    adds = sum(count for count in counts if count is not None) if counts and None not in counts else None
    reason = vars(module).get(DENSE_REASON, {}).get(parameter, "") or obstacle or ""
    return Row(name, False, matrix, None, parameters, parameters, adds, adds, "", reason)


def _dense_adds(
    module: Any, parameter: str, shape: tuple[int, ...], inputs: tuple[Tensor, ...], output: Any
) -> int | None:
    """Return the multiply-adds of a call of a module with one of its dense weights; None where they are not known."""
    if isinstance(module, nn.MultiheadAttention):
        parts = {"q_proj_weight": inputs[:1], "k_proj_weight": inputs[1:2], "v_proj_weight": inputs[2:3]}
        parts["in_proj_weight"] = inputs
        return sum(part.numel() for part in parts[parameter]) * module.embed_dim if parameter in parts else None
    if isinstance(module, nn.RNNBase) and inputs and parameter.startswith("weight"):
        return inputs[0].shape[:-1].numel() * math.prod(shape)
    if parameter != "weight":
        return None
    if isinstance(module, nn.Embedding):
        return 0
    if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)):
        return output.numel() * math.prod(shape[1:])
    if isinstance(module, Conv1D):
        return output.numel() * shape[0]
    if isinstance(module, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return inputs[0].numel() * math.prod(shape[1:])
    return None


def _in_module_order(model: nn.Module, names: Mapping[str, Any]) -> list[str]:
    order: dict[str, int] = {}
    for name, module in named_modules(model):
        order.setdefault(name, len(order))
        order.setdefault(known_as(name), len(order))
        for parameter in (*module._parameters, *parametrized_in(module)):
            order.setdefault(f"{name}.{parameter}" if name else parameter, len(order))
    return sorted(names, key=lambda name: order[name])
