"""Statistics equal their definitions, computed one example at a time by automatic differentiation."""

import pytest
import torch
import torch.nn.functional as F
from eigendamage.pruning import statistics
from eigendamage.pruning.statistics import KINDS, collect

from tests.eigendamage.pruning.small import Tiny, tiny_batches

LAYERS = ("first", "second")


def expected(model, batches, labels=None):
    """Return the moments by the definitions, and the labels that they are of."""
    found = {name: {kind: 0.0 for kind in KINDS} for name in LAYERS}
    count = 0
    for number, (images, given) in enumerate(batches):
        for index in range(len(images)):
            x, outputs = images[index : index + 1], {}
            inputs = {"first": x}
            outputs["first"] = model.first(x)
            inputs["second"] = torch.tanh(outputs["first"])
            outputs["second"] = model.second(inputs["second"])
            logits = model.classifier(F.relu(outputs["second"]).mean((2, 3)))
            label = given[index] if labels is None else labels[number][index]
            loss = F.cross_entropy(logits, label[None])
            weights = [model.first.weight, model.second.weight]
            gradients = torch.autograd.grad(loss, [*outputs.values(), *weights])
            for layer, g, of_weight in zip(LAYERS, gradients[:2], gradients[2:]):
                module, moments = getattr(model, layer), found[layer]
                patches = F.unfold(inputs[layer], 3, padding=module.padding, stride=module.stride)[0]
                positions = patches.shape[1]
                for t in range(positions):
                    a, y, gt = patches[:, t], outputs[layer].flatten(2)[0, :, t], g.flatten(2)[0, :, t]
                    moments["A"] += torch.outer(a, a) / positions
                    taps = a.view(-1, 9)
                    for tap in range(9):
                        moments["channels"] += torch.outer(taps[:, tap], taps[:, tap]) / positions / 9
                    moments["G"] += torch.outer(gt, gt)
                    moments["power"] += y.square() / positions
                moments["diagonal"] += of_weight.flatten(1).square()
            count += 1
    for moments in found.values():
        for kind in KINDS:
            moments[kind] = moments[kind] / count
        moments["row_sums"] = moments["A"].sum(1)
    return found


@pytest.mark.parametrize("geometry", [(2, 1), (1, 0), (3, 2)])
def test_moments_equal_their_definitions(geometry):
    model, batches = Tiny(*geometry), tiny_batches()
    found = collect(model, LAYERS, batches, KINDS)
    for layer, moments in expected(model, batches).items():
        for kind, value in moments.items():
            torch.testing.assert_close(found[layer][kind].double(), value.detach(), rtol=1e-5, atol=1e-7, msg=kind)


def test_quadratic_form_of_a_filter_is_the_power_of_its_output():
    model = Tiny()
    moments = collect(model, LAYERS, tiny_batches(), ("A", "power"))
    for layer in LAYERS:
        weight = getattr(model, layer).weight.detach().flatten(1)
        quadratic = torch.stack([w @ moments[layer]["A"].double() @ w for w in weight])
        torch.testing.assert_close(moments[layer]["power"], quadratic, rtol=1e-5, atol=1e-8)


def test_batches_weigh_by_their_examples():
    whole = [tuple(map(torch.cat, zip(*tiny_batches())))]
    one, other = (collect(Tiny(), LAYERS, batches, KINDS) for batches in (tiny_batches(), whole))
    for layer in LAYERS:
        for kind in KINDS:
            torch.testing.assert_close(one[layer][kind], other[layer][kind], rtol=1e-5, atol=1e-8)


def test_temporary_tensors_are_split_without_a_trace(monkeypatch):
    once = collect(Tiny(), LAYERS, tiny_batches(), KINDS)
    monkeypatch.setattr(statistics, "_CHUNK", 1)
    for layer, moments in collect(Tiny(), LAYERS, tiny_batches(), KINDS).items():
        for kind in KINDS:
            torch.testing.assert_close(once[layer][kind], moments[kind], rtol=1e-5, atol=1e-8)


def test_labels_are_drawn_from_the_predictions_by_the_seed_alone():
    model = Tiny()

    def draw(seed):
        generator = torch.Generator().manual_seed(seed)
        return collect(model, LAYERS, tiny_batches(), ("G",), generator=generator)["second"]["G"]

    torch.manual_seed(1)
    first = draw(7)
    torch.manual_seed(2)
    assert torch.equal(first, draw(7)) and not torch.equal(first, draw(8))
    generator = torch.Generator().manual_seed(7)
    labels = [torch.multinomial(model(x).softmax(1), 1, generator=generator)[:, 0] for x, _ in tiny_batches()]
    torch.testing.assert_close(
        first.double(), expected(model, tiny_batches(), labels)["second"]["G"], rtol=1e-5, atol=1e-8
    )


def test_the_fisher_information_is_the_mean_over_many_draws():
    """E over labels of g g^T, exactly, against the mean of sampled ones."""
    model, batches = Tiny(), tiny_batches((6,))
    images, _ = batches[0]
    chances = model(images).softmax(1).detach()
    exact = (
        sum(
            chances[b, label]
            * collect(model, ("first",), [(images[b : b + 1], torch.tensor([label]))], ("G",))["first"]["G"]
            for b in range(6)
            for label in range(3)
        )
        / 6
    )
    generator = torch.Generator().manual_seed(0)
    mean = sum(collect(model, ("first",), batches, ("G",), generator=generator)["first"]["G"] for _ in range(300)) / 300
    torch.testing.assert_close(mean, exact.float(), rtol=0, atol=0.1 * exact.abs().max().item())


def test_the_network_is_left_as_it_was():
    model = Tiny().train()
    model.first.weight.requires_grad_(False)
    collect(model, LAYERS, tiny_batches(), KINDS)
    assert model.training and model.second.training
    assert not model.first.weight.requires_grad and model.second.weight.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.second._forward_hooks


def test_no_gradients_where_none_are_asked_for():
    x = tiny_batches()[0][0].requires_grad_()
    collect(Tiny(), LAYERS, [(x, torch.zeros(4, dtype=torch.long))], ("power",))
    assert x.grad is None


@pytest.mark.parametrize(
    ("kinds", "batches", "message"), [(("Z",), (4,), "unknown statistics Z"), (("G",), (), "no images")]
)
def test_what_cannot_be_meant_is_refused(kinds, batches, message):
    with pytest.raises(ValueError, match=message):
        collect(Tiny(), LAYERS, tiny_batches(batches), kinds)
