"""Code that reads `layer.weight` instead of calling the layer computes the same, and trains the factors."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from factorized import (
    FactorizedEmbedding,
    FrobeniusDecay,
    factorize,
    factorized_modules,
    frobgrad,
    merge,
    parameter_groups,
)


class Casting(nn.Module):
    """Casts its input to the type of the weight of its last layer, as T5 does, and then calls that."""

    def __init__(self):
        super().__init__()
        self.wi, self.wo = nn.Linear(8, 16), nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.wi(x))
        if isinstance(self.wo.weight, Tensor) and hidden.dtype != self.wo.weight.dtype:
            hidden = hidden.to(self.wo.weight.dtype)
        return self.wo(hidden)


class Slicing(nn.Module):
    """Multiplies by slices of a weight, one after the other, as Bloom does under tensor parallelism."""

    def __init__(self):
        super().__init__()
        self.dense = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        parts = [F.linear(x[..., i : i + 4], self.dense.weight[:, i : i + 4]) for i in (0, 4)]
        return sum(parts) + self.dense.bias


class Stacking(nn.Module):
    """Multiplies by three weights at once."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(8, 8, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = F.linear(x, torch.cat([self.q.weight, self.k.weight, self.v.weight])).chunk(3, -1)
        return F.scaled_dot_product_attention(q, k, v)


class Patches(nn.Module):
    """Casts images to the type of the patch embedding's weight, as vision transformers do."""

    def __init__(self):
        super().__init__()
        self.projection = nn.Conv2d(3, 8, 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.projection(x.to(dtype=self.projection.weight.dtype)).flatten(2).mT


class Mine(nn.TransformerEncoderLayer):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


READERS = {
    "casting": (Casting, (2, 5, 8)),
    "slicing": (Slicing, (2, 5, 8)),
    "stacking": (Stacking, (2, 5, 8)),
    "patches": (Patches, (2, 3, 4, 4)),
    "encoder": (lambda: nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
    "encoder subclass": (lambda: Mine(8, 2, 16, dropout=0.0, batch_first=True), (2, 5, 8)),
}
pytestmark = pytest.mark.filterwarnings("ignore:spectral initialization pads", "ignore:The PyTorch API of nested")
each_reader = pytest.mark.parametrize("name", READERS)


def model_and_input(name: str) -> tuple[nn.Module, Tensor]:
    build, shape = READERS[name]
    torch.manual_seed(0)
    return factorize(build(), rank_scale=0.5).double(), torch.randn(shape, dtype=torch.float64)


@each_reader
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("grad", [True, False])
def test_outputs_are_those_of_the_merged_model(name, training, grad):
    model, x = model_and_input(name)
    assert factorized_modules(model)
    model.train(training)
    merged = merge(copy.deepcopy(model))
    assert not factorized_modules(merged)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(model(x), merged(x), rtol=1e-9, atol=1e-9)


@each_reader
@pytest.mark.parametrize("in_backward", [False, True])
@pytest.mark.filterwarnings("ignore:the weight of dense was used more than once")
def test_decay_counts_every_layer_once(name, in_backward):
    """A weight that is only asked for its type has no part in it; the decay in a backward pass acts at every use."""
    model, x = model_and_input(name)
    layers, lr, coefficient = factorized_modules(model), 0.1, 0.3
    uses = 2 if in_backward and name == "slicing" else 1
    model(x).square().sum().backward()
    expected = {parameter: parameter - lr * parameter.grad for parameter in model.parameters()}
    for layer in layers.values():
        for factor, gradient in zip(layer.factors(), frobgrad(layer.factors())):
            expected[factor] = expected[factor] - lr * uses * coefficient * gradient
        layer.path = "composed"
    expected = [wanted.detach().clone() for wanted in expected.values()]
    optimizer = torch.optim.SGD(parameter_groups(model, 0.0), lr=lr)
    FrobeniusDecay(model, coefficient).attach(optimizer, in_backward=in_backward)
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()
    for parameter, wanted in zip(model.parameters(), expected):
        torch.testing.assert_close(parameter.detach(), wanted, rtol=1e-9, atol=1e-9)


def test_an_embedding_is_resized_by_its_weight():
    """A new table takes the old rows, as language models do when words are added."""
    old = FactorizedEmbedding.from_dense(nn.Embedding(7, 4, dtype=torch.float64), 0.5)
    new = nn.Embedding(9, old.weight.shape[1], device=old.weight.device, dtype=old.weight.dtype)
    new.weight.data[: old.num_embeddings] = old.weight.data
    torch.testing.assert_close(new(torch.arange(7)), old(torch.arange(7)))
