"""Statistics of LSTM, GRU and RNN, against their cells stepped through every sequence."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from factorized import collect, factorize, summary
from tests.factorized.moments import close, correlated, error, least_error, moment

CELLS = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}


@torch.no_grad()
def stepped(module: nn.RNNBase, sequences: list[Tensor], hidden: Tensor) -> dict[str, Tensor]:
    """Return what each weight is multiplied by, sequence by sequence and step by step, by the cells of PyTorch.

    Args:
        sequences: each (length, input size).
        hidden: states at the beginning, (layers * directions, sequences, hidden size); those of cells are zero.
    """
    seen: dict[str, list[Tensor]] = {}
    directions = 2 if module.bidirectional else 1
    for number, x in enumerate(sequences):
        for layer in range(module.num_layers):
            outputs = []
            for direction in range(directions):
                end = f"_l{layer}" + ("_reverse" if direction else "")
                cell = CELLS[type(module)](x.shape[1], module.hidden_size)
                for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
                    getattr(cell, part).copy_(getattr(module, part + end))
                h = hidden[layer * directions + direction, number][None]
                c, states = torch.zeros_like(h), {}
                for step in reversed(range(len(x))) if direction else range(len(x)):
                    seen.setdefault("weight_ih" + end, []).append(x[step][None])
                    seen.setdefault("weight_hh" + end, []).append(h)
                    if isinstance(module, nn.LSTM):
                        h, c = cell(x[step][None], (h, c))
                    else:
                        h = cell(x[step][None], h)
                    states[step] = h
                outputs.append(torch.cat([states[step] for step in range(len(x))]))
            x = torch.cat(outputs, dim=1)
    return {name: torch.cat(vectors) for name, vectors in seen.items()}


@pytest.mark.parametrize("kind", CELLS)
@pytest.mark.parametrize("form", ["steps", "batch", "packed", "single"])
def test_recurrent_weights_see_inputs_and_previous_states(kind, form):
    torch.manual_seed(0)
    module = kind(5, 4, 2, bidirectional=True, batch_first=form == "batch", dropout=0.5).eval()
    lengths, x, hidden = [6, 4, 4, 1], correlated(6, 4, 5), torch.randn(4, 4, 4) / 2
    given: tuple = (x, hidden)
    if form == "batch":
        given, lengths = (x.transpose(0, 1), hidden), [6] * 4
    elif form == "packed":
        order = [2, 0, 3, 1]  # PyTorch sorts by length, and the states with them
        given = pack_padded_sequence(x[:, order], torch.tensor(lengths)[order], enforce_sorted=False), hidden[:, order]
    elif form == "single":
        given, lengths = (x[:, 0], hidden[:, 0]), [6]
    else:
        lengths = [6] * 4
    if kind is nn.LSTM:
        given = given[0], (given[1], torch.zeros_like(given[1]))
    stats = collect(module, lambda: module(*given))
    expected = stepped(module, [x[:length, number] for number, length in enumerate(lengths)], hidden)
    assert stats.keys() == expected.keys() and len(expected) == 8
    for name, vectors in expected.items():
        inputs, positions = stats[name].inputs, stats[name].positions
        for gate in [inputs] if kind is nn.RNN else inputs:
            close(gate, moment(vectors))
        assert {positions} == {sum(lengths)} if kind is nn.RNN else {*positions.tolist()} == {sum(lengths)}


def test_weights_that_lie_in_one_piece_of_memory():
    """As cuDNN has them."""
    module, x = nn.GRU(5, 4), correlated(7, 2, 5)
    expected = collect(module, [x])
    piece = torch.cat([parameter.detach().flatten() for parameter in module.parameters()])
    for parameter, part in zip(
        [*module.parameters()], piece.split([parameter.numel() for parameter in module.parameters()]), strict=True
    ):
        parameter.data = part.view_as(parameter)
    found = collect(module, [x])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].inputs, expected[name].inputs) for name in found)


def test_projected_states_are_seen_and_what_is_projected_is_not():
    module, x = nn.LSTM(5, 6, proj_size=3).eval(), correlated(7, 2, 5)
    stats = collect(module, [x])
    y = module(x)[0].detach()
    close(stats["weight_hh_l0"].inputs[0], moment(torch.cat([torch.zeros(1, 2, 3), y[:-1]])))
    assert stats.keys() == {"weight_ih_l0", "weight_hh_l0"}
    with pytest.warns(UserWarning, match="no statistics of weight_hr_l0, which start from their weights alone"):
        model = factorize(module, ranks={"**": 2}, stats=stats)
    [note] = [row.note for row in summary(model).rows if row.name == "weight_hr_l0"]
    assert note == "started from its weight alone, as no inputs of it are known" and note in str(summary(model))


@pytest.mark.parametrize("cell", [nn.LSTMCell(5, 4), nn.GRUCell(5, 4), nn.RNNCell(5, 4, nonlinearity="relu")])
def test_cells(cell):
    x, h = correlated(9, 5), torch.randn(9, 4)
    stats = collect(cell, [(x, (h, h) if isinstance(cell, nn.LSTMCell) else h)])
    for found in stats["weight_ih"].inputs if stats["weight_ih"].inputs.dim() == 3 else [stats["weight_ih"].inputs]:
        close(found, moment(x))
    hidden = stats["weight_hh"].inputs
    close(hidden[0] if hidden.dim() == 3 else hidden, moment(h))


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_recurrent_layers_start_best_for_their_data(kind):
    torch.manual_seed(0)
    dense, x = kind(16, 12, 2).eval(), correlated(11, 30, 16)
    stats = collect(dense, [x])
    weighted, plain = (
        factorize(copy.deepcopy(dense), ranks={"**": 3}, **options) for options in ({"stats": stats}, {})
    )
    expected = stepped(dense, list(x.unbind(1)), torch.zeros(2, 30, 12))
    for name, vectors in expected.items():
        gates = getattr(dense, name).split(12)
        best = sum(least_error(vectors, W, 3) for W in gates)
        found = sum(error(vectors, *pair) for pair in zip(gates, getattr(weighted, name).split(12)))
        assert found == pytest.approx(best, rel=1e-2), name
    errors = [(model(x)[0] - dense(x)[0]).square().sum().item() for model in (weighted, plain)]
    assert errors[0] < 0.5 * errors[1], errors
