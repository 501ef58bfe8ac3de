"""Models that were not written for this library: factorize, train, save, compile and merge each of them."""

import copy
import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision import models

from factorized import FrobeniusDecay, factorize, factorized_modules, merge, parameter_groups
from factorized.eligible import obstacles
from tests.factorized.networks import relative_error

CLASSES = 7


def vision_transformer() -> nn.Module:
    model = models.VisionTransformer(32, 8, 2, 2, 64, 128, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # its head starts at zero, which would make every comparison trivial
    return model


def swin() -> nn.Module:
    """Its attention reads the weights of its linear layers instead of calling them."""
    return models.SwinTransformer([4, 4], 16, [1, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES)


def encoder() -> nn.Module:
    """In evaluation a fused kernel reads the weights of `linear1` and `linear2`."""
    layer = nn.TransformerEncoderLayer(32, 2, 64, batch_first=True)
    return nn.Sequential(nn.TransformerEncoder(layer, 2), nn.Flatten(), nn.Linear(9 * 32, CLASSES))


def vgg() -> nn.Module:
    """The published network has a classifier of 100 million weights; this one ends after its convolutions."""
    model = models.vgg11_bn(init_weights=False)
    model.classifier = nn.Linear(512 * 49, CLASSES)
    return model


# Name: builder and layers to factorize (the wide ones only where a full decomposition of them takes long).
MODELS = {
    "resnet18": (lambda: models.resnet18(num_classes=CLASSES), ["conv1", "layer1", "layer2", "fc"]),
    "vgg11_bn": (vgg, ["features.0", "features.4", "features.8"]),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=CLASSES), None),
    "vision_transformer": (vision_transformer, None),
    "swin": (swin, None),
}
each_model = pytest.mark.parametrize("name", MODELS)
pytestmark = pytest.mark.filterwarnings("ignore:spectral initialization pads", "ignore:The PyTorch API of nested")


@functools.cache
def _built(name: str, rank_scale: float | None) -> nn.Module:
    build, include = MODELS[name]
    if rank_scale is None:
        return build().eval()
    return factorize(copy.deepcopy(_built(name, None)), rank_scale=rank_scale, include=include)


def model_and_input(name: str, rank_scale: float | None = 0.2) -> tuple[nn.Module, torch.Tensor]:
    """Return a copy of a model in evaluation mode, factorized unless the scale is None, and a batch of two for it."""
    return copy.deepcopy(_built(name, rank_scale)), torch.randn(2, 3, 32, 32)


def train(model: nn.Module, x: torch.Tensor, steps: int = 2) -> None:
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-3), lr=0.01, momentum=0.9)
    FrobeniusDecay(model, 1e-3).attach(optimizer)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.tensor([0, 3])).backward()
        optimizer.step()
    model.eval()


def module_types(model: nn.Module) -> list[tuple[str, type]]:
    return [(name, type(module)) for name, module in model.named_modules()]


@each_model
def test_full_rank_keeps_the_outputs(name):
    dense, x = model_and_input(name, None)
    model, _ = model_and_input(name, 1.0)
    assert len(factorized_modules(model)) >= 3
    with torch.no_grad():
        assert relative_error(model(x), dense(x)) < 1e-4


@each_model
def test_merging_after_training_keeps_the_outputs(name):
    model, x = model_and_input(name)
    before = model(x).detach()
    train(model, x)
    with torch.no_grad():
        trained = model(x)
        merged = merge(model)(x)
    assert relative_error(trained, before) > 1e-3
    assert relative_error(merged, trained) < 1e-4
    assert module_types(model) == module_types(_built(name, None))


@each_model
def test_every_parameter_gets_a_gradient(name):
    model, x = model_and_input(name)
    F.cross_entropy(model.train()(x), torch.tensor([0, 3])).backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
    for layer_name, layer in factorized_modules(model).items():
        assert all(factor.grad.count_nonzero() for factor in layer.factors()), layer_name


@each_model
def test_state_dict_round_trip(name, tmp_path):
    model, x = model_and_input(name)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = factorize(model_and_input(name, None)[0], rank_scale=0.2, include=MODELS[name][1], init="kaiming")
    with torch.no_grad():
        expected = model(x)
        assert relative_error(other(x), expected) > 1e-2
        other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
        assert torch.equal(other(x), expected)


@each_model
def test_deep_copies_are_independent(name):
    model, x = model_and_input(name)
    before = model(x).detach()
    other = copy.deepcopy(model)
    train(other, x)
    assert torch.equal(model(x), before) and not torch.equal(other(x), before)


@each_model
def test_bfloat16_autocast(name):
    model, x = model_and_input(name)
    model.eval()
    single = model(x)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
        F.cross_entropy(half.float(), torch.tensor([0, 3])).backward()
    assert half.dtype == torch.bfloat16 and relative_error(half.float(), single) < 0.1
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "vision_transformer"])
def test_capture_without_graph_breaks(name):
    model, x = model_and_input(name)
    torch.compiler.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(x), model(x))
    merge(model)
    torch.testing.assert_close(compiled(x), model(x))


class Encoder(nn.TransformerEncoderLayer):
    """A class of a user's own around one of PyTorch's."""

    def forward(self, *inputs, **options):
        return super().forward(*inputs, **options)


@pytest.mark.parametrize("build", [encoder, lambda: Encoder(32, 4, 64, batch_first=True)])
def test_encoder_layers_hand_weights_to_a_fused_kernel(build):
    """Without gradients only, and in evaluation mode."""
    model, x = factorize(build().eval(), rank_scale=0.2), torch.randn(2, 9, 32)
    assert {name.split(".")[-1] for name in factorized_modules(model)} >= {"linear1", "linear2"}
    expected = model(x)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_attention_that_reads_the_weights_of_its_projections_trains_their_factors():
    model, x = model_and_input("swin", 0.3)
    names = [name for name in factorized_modules(model) if name.endswith(("attn.qkv", "attn.proj"))]
    assert names
    model(x).sum().backward()
    for name in names:
        assert all(factor.grad.norm() > 0 for factor in model.get_submodule(name).factors())


def test_attention_projections_have_no_layer():
    """`nn.MultiheadAttention` reads the weight of its output projection, a subclass of `nn.Linear`."""
    reasons = {name: r for name, r in obstacles(encoder(), others=False).items() if name.endswith("self_attn.out_proj")}
    assert reasons and set(reasons.values()) == {"output projection of nn.MultiheadAttention"}


def test_depthwise_convolutions_stay_dense():
    model, _ = model_and_input("mobilenet_v3_small")
    grouped = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert grouped and set(obstacles(model).values()) == {"a depthwise one: a grouped convolution of one channel each"}


class LanguageModel(nn.Module):
    """Its output layer shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.normed = weight_norm(nn.Linear(8, 8))
        self.output = nn.Linear(8, 11, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        return self.output(self.normed(torch.tanh(self.body(self.embedding(tokens)))))


def test_tied_and_computed_weights_stay_as_they_are():
    """Embeddings are left alone, and so is an output layer that shares its weight with one."""
    model = LanguageModel()
    tokens = torch.randint(11, (3, 4))
    before = model(tokens)
    factorize(model, rank_scale=1.0)
    assert list(factorized_modules(model)) == ["body"]
    torch.testing.assert_close(model(tokens), before, rtol=1e-4, atol=1e-5)
    model(tokens).sum().backward()
    assert model.output.weight is model.embedding.weight and model.output.weight.grad is not None
    assert model.normed.parametrizations.weight.original1.grad is not None
