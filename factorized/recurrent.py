"""What the weights of LSTM, GRU and RNN are multiplied by: inputs of each layer, and its previous hidden states."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Used = Iterator[tuple[Tensor, Tensor]]

# Functions of a single step, and of all layers over all steps.
CELLS = (torch.lstm_cell, torch.gru_cell, torch.rnn_tanh_cell, torch.rnn_relu_cell)
LAYERS = (torch.lstm, torch.gru, torch.rnn_tanh, torch.rnn_relu)


def used_by_cell(x: Tensor, hidden: Any, input_weight: Tensor, hidden_weight: Tensor, *biases: Any) -> Used:
    """Yield the two weights of a single step, each with the vectors (..., n) that it is multiplied by."""
    yield input_weight, x
    yield hidden_weight, _state(hidden)


def used_by_layers(func: Callable, output: Any, *args: Any) -> Used:
    """Yield the weights of all layers, each with the vectors (..., n) that it is multiplied by.

    The outputs of the layers below the last are computed once more, without dropout. What a projection
    (`proj_size`) is multiplied by stays inside of PyTorch's function.

    Args:
        func: one of `LAYERS`.
        output: what it returned for `args`, which are those of `torch.nn.RNNBase`.
    """
    is_packed = not isinstance(args[3], bool)
    if is_packed:
        x, sizes, hidden, weights, has_biases, layers, _, _, both, *last = args
    else:
        x, hidden, weights, has_biases, layers, _, _, both, *last = args
        sizes = None
    batch_first = bool(last and last[0])
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    for layer in range(layers):
        states = slice(layer * directions, (layer + 1) * directions)
        own = _sliced(hidden, states)
        parts = weights[layer * directions * each : (layer + 1) * directions * each]
        if layer == layers - 1:
            y = output[0]
        else:
            given = (x, own) if sizes is None else (x, sizes, own)
            with warnings.catch_warnings():  # cuDNN would have the weights of all layers in one piece
                warnings.simplefilter("ignore")
                rest = () if sizes is not None else (batch_first,)
                y = func(*given, parts, has_biases, 1, 0.0, False, both, *rest)[0]
        initial = _state(own)
        for direction, outputs in enumerate(y.chunk(directions, dim=-1)):
            input_weight, hidden_weight = parts[direction * each : direction * each + 2]
            yield input_weight, x
            steps = outputs.transpose(0, 1) if batch_first else outputs
            before = _before(steps, initial[direction], backward=direction == 1, sizes=sizes)
            yield hidden_weight, before
        x = y


def _state(hidden: Any) -> Tensor:
    """Return the hidden state, which an LSTM has beside that of its cells."""
    return hidden if isinstance(hidden, Tensor) else hidden[0]


def _sliced(hidden: Any, part: slice) -> Any:
    return hidden[part] if isinstance(hidden, Tensor) else [state[part] for state in hidden]


def _before(outputs: Tensor, initial: Tensor, backward: bool, sizes: Tensor | None) -> Tensor:
    """Return the hidden states that a direction comes from, from those that it has reached.

    Args:
        outputs: (steps, batch, hidden), or (positions, hidden) of packed sequences.
        initial: (batch, hidden).
        sizes: of packed sequences, the number of them that have each step.
    """
    if sizes is None:
        steps: Sequence[Tensor] = outputs.unbind()
        counts = [len(initial)] * len(steps)
    else:
        counts = sizes.tolist()
        steps = outputs.split(counts)
    found = []
    for step, count in enumerate(counts):
        source = step + 1 if backward else step - 1
        reached = steps[source][:count] if 0 <= source < len(steps) else initial[:0]
        found.append(torch.cat([reached, initial[len(reached) : count]]))
    return torch.cat(found)
