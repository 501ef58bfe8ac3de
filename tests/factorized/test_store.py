"""Models saved to folders and loaded again, against the models themselves."""

import copy
import json
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

import factorized
from factorized import store_files
from tests.factorized.stored import Net, dense, inputs, small


def test_a_structure_is_plain_json_and_rebuilds_the_model():
    net = small()
    structure = json.loads(json.dumps(factorized.structure(net)))
    assert structure == factorized.structure(net)
    assert list(structure) == ["embed", "conv", "grouped", "separable", "pointwise", "channels", "line", "twice"]
    conv = structure["conv"]
    assert (conv["class"], conv["rank"], conv["square"], conv["path"]) == ("FactorizedConv2d", 4, True, "two_step")
    again = factorized.restructure(dense(), structure)
    assert factorized.structure(again) == structure
    assert again.again is again.twice and again.tied.weight is again.head.weight
    assert again.conv.U.isnan().all() and again.twice.U.isnan().all()  # no numbers that look like a start
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(*inputs()), net(*inputs()))


def test_nothing_is_decomposed_on_the_way(tmp_path, monkeypatch):
    net = small()
    factorized.save(net, tmp_path / "save")
    for name in ("svd", "eigh", "qr"):
        monkeypatch.setattr(torch.linalg, name, None)
    assert torch.equal(factorized.load(dense(), tmp_path / "save")(*inputs()), net(*inputs()))


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("meta", [False, True])
def test_round_trip_to_the_bit(tmp_path, kind, meta, device):
    net = small()
    factorized.save(net, tmp_path / "a" / "save")
    assert {path.name for path in (tmp_path / "a" / "save").iterdir()} == {"factorized.json", kind}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["save"]
    with torch.device("meta" if meta else "cpu"):
        fresh = Net().eval()
    again = factorized.load(fresh, tmp_path / "a" / "save", device=device)
    assert again is fresh and not any(tensor.is_meta for tensor in again.state_dict().values())
    assert torch.equal(again(*inputs()), net(*inputs()))
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in again.state_dict().items())
    assert again.again is again.twice and again.tied.weight is again.head.weight
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in again.parameters())
    again(*inputs()).sum().backward()


def test_round_trip_in_a_new_process(tmp_path, monkeypatch):
    net = small()
    factorized.save(net, tmp_path / "one")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    factorized.save(net, tmp_path / "other")
    torch.save(net(*inputs()), tmp_path / "outputs.pt")
    code = f"""
import torch, factorized
torch.set_num_threads({torch.get_num_threads()})
from tests.factorized.stored import Net, inputs
for name in ("one", "other"):
    net = factorized.load(Net().eval(), {str(tmp_path)!r} + "/" + name)
    assert torch.equal(net(*inputs()), torch.load({str(tmp_path)!r} + "/outputs.pt", weights_only=True))
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_shared_tensors_are_written_once(tmp_path, kind):
    factorized.save(small(), tmp_path)
    _, tensors = store_files.read(tmp_path)
    assert "head.weight" in tensors and "tied.weight" not in tensors
    assert "twice.U" in tensors and "again.U" not in tensors


def test_views_are_written_without_the_rest_of_their_storage(tmp_path, kind):
    net = factorized.factorize(nn.Sequential(nn.Linear(6, 6)), ranks={"0": 2})
    whole = torch.randn(1000, 2)
    net[0].U = nn.Parameter(whole[10:16])
    net[0].VT = nn.Parameter(whole[20:26].T)
    expected = net(torch.eye(6))
    factorized.save(net, tmp_path)
    assert (tmp_path / kind).stat().st_size < 4000
    torch.testing.assert_close(factorized.load(nn.Sequential(nn.Linear(6, 6)), tmp_path)(torch.eye(6)), expected)


def test_merged_or_in_another_precision_and_order(tmp_path):
    net = small().to(torch.bfloat16).to(memory_format=torch.channels_last)
    net.separable = factorized.merge(net.separable)  # a dense one in that order
    factorized.save(net, tmp_path)
    again = factorized.load(dense(), tmp_path)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.bfloat16}
    for name, parameter in net.named_parameters():
        assert again.get_parameter(name).stride() == parameter.stride()
    plain = factorized.load(dense(), tmp_path, merge=True)
    assert not factorized.structure(plain) and type(plain.conv) is nn.Conv2d
    images, tokens = inputs()
    expected = factorized.merge(copy.deepcopy(net))(images.bfloat16(), tokens)
    torch.testing.assert_close(plain(images.bfloat16(), tokens), expected, rtol=0, atol=0)


def test_a_factorized_root_and_layers_that_the_code_builds_factorized(tmp_path):
    root = factorized.factorize(nn.Linear(5, 4), ranks={"**": 2})
    factorized.save(root, tmp_path / "root")
    x = torch.randn(3, 5)
    assert torch.equal(factorized.load(nn.Linear(5, 4), tmp_path / "root")(x), root(x))
    built = nn.Sequential(factorized.FactorizedLinear(5, 4, 2))
    factorized.save(built, tmp_path / "built")
    other = factorized.load(nn.Sequential(factorized.FactorizedLinear(5, 4, 2)), tmp_path / "built")
    assert torch.equal(other(x), built(x))
    with pytest.raises(ValueError, match="rank is 3 here and 2 there"):
        factorized.load(nn.Sequential(factorized.FactorizedLinear(5, 4, 3)), tmp_path / "built")


def test_wrapped_models_are_saved_by_their_own_names(tmp_path):
    net = small()
    factorized.save(nn.DataParallel(net), tmp_path)
    assert torch.equal(factorized.load(dense(), tmp_path)(*inputs()), net(*inputs()))
    with pytest.raises(ValueError, match="wraps it"):
        factorized.load(nn.DataParallel(dense()), tmp_path)


def _other(**layers):
    net = dense()
    for name, layer in layers.items():
        setattr(net, name, layer)
    return net


@pytest.mark.parametrize(
    "model, message",
    [
        (lambda: nn.Sequential(nn.Linear(3, 3)), "the model has no embed, conv, grouped and 5 more"),
        (lambda: _other(twice=nn.Linear(8, 9)), r"twice \(Linear\) does not fit .* out_features is 9 here and 8 there"),
        (lambda: _other(conv=nn.Conv2d(3, 8, 3, padding=1)), r"stride is \[1, 1\] here and \[2, 2\] there"),
        (lambda: _other(line=nn.Linear(3, 3)), "line .* cannot become a FactorizedConv1d"),
        (lambda: _other(line=nn.Conv1d(8, 6, 3, bias=False)), "bias is False here and True there"),
        (lambda: _other(norm=nn.Identity()), "of another model: it has norm.bias, norm.num_batches_tracked, norm.run"),
        (lambda: _other(more=nn.Linear(2, 2)), "of another model: it lacks more.bias, more.weight"),
        (lambda: _other(norm=nn.BatchNorm2d(9)), r"norm.weight has the shape \(8,\) there and \(9,\) here"),
        (lambda: _other(attention=factorized.FactorizedAttention(8, 2)), "attention.query_key.query has the shape"),
    ],
)
def test_another_model_is_refused_and_left_as_it_is(tmp_path, model, message):
    factorized.save(small(), tmp_path)
    other = model()
    before = copy.deepcopy(other)
    with pytest.raises(ValueError, match=message) as error:
        factorized.load(other, tmp_path)
    assert "\n" not in str(error.value)
    assert repr(other) == repr(before)
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in other.state_dict().items())


def test_weights_that_differ_are_not_tied(tmp_path):
    net = small()
    net.tied.weight = nn.Parameter(net.tied.weight + 1)
    factorized.save(net, tmp_path)
    with pytest.raises(ValueError, match="head.weight and tied.weight are one tensor here and differ there"):
        factorized.load(dense(), tmp_path)
    untied = _other(tied=nn.Linear(8, 11))
    assert torch.equal(factorized.load(untied, tmp_path)(*inputs()), net(*inputs()))


def test_buffers_without_values_are_named(tmp_path):
    def build(device):
        layer = nn.Sequential(nn.Linear(3, 3))
        layer.register_buffer("angles", torch.ones(3), persistent=False)
        return layer.to(device)

    factorized.save(factorized.factorize(build("cpu"), ranks={"0": 1}), tmp_path)
    with pytest.raises(ValueError, match="angles is no part of a state dict"):
        factorized.load(build("meta"), tmp_path)
    assert torch.equal(factorized.load(build("cpu"), tmp_path).angles, torch.ones(3))


@pytest.mark.parametrize(
    "model, error, message",
    [
        (nn.Sequential(nn.Linear(3, 3)), ValueError, "no factorized layers"),
        ({"weight": torch.ones(2)}, TypeError, "a state dict"),
        (
            factorized.FactorizedLinear(3, 3, 1, device="meta"),
            ValueError,
            "U cannot be saved: it is on the meta device",
        ),
    ],
)
def test_what_is_no_factorized_model_is_not_saved(tmp_path, model, error, message):
    with pytest.raises(error, match=message):
        factorized.save(model, tmp_path / "save")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "change, message",
    [
        ({"class": "Evil"}, "'Evil' is not a class of layers"),
        ({"rank": 10**30}, "damaged"),
        ({"rank": "many"}, "damaged"),
        ({"rank": 0}, "damaged"),
        ({"path": "scenic"}, "damaged"),
        ({"stride": [5, 5]}, "stride"),
        ({"class": "FactorizedLinear"}, "cannot become a FactorizedLinear"),
    ],
)
def test_structures_that_fit_nothing(change, message):
    structure = factorized.structure(small())
    structure["conv"] |= change
    model = dense()
    with pytest.raises(ValueError, match=message):
        factorized.restructure(model, structure)
    assert not factorized.structure(model)
    for nothing in (None, [], "conv", {"conv": 4}):
        with pytest.raises(ValueError, match="a structure is a mapping"):
            factorized.restructure(model, nothing)
