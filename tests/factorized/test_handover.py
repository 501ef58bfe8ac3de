"""Hooks and attributes of replaced layers go on to work, or are named in a warning."""

import copy
import pickle
import warnings

import pytest
import torch
from torch import nn

from factorized import deploy, factorize, load, merge, save

X = torch.ones(2, 6)

REGISTER = {
    "register_forward_hook": lambda *args: None,
    "register_forward_pre_hook": lambda *args: None,
    "register_full_backward_hook": lambda *args: None,
    "register_full_backward_pre_hook": lambda *args: None,
    "register_state_dict_pre_hook": lambda *args: None,
    "register_state_dict_post_hook": lambda *args: None,
    "register_load_state_dict_pre_hook": lambda *args: None,
    "register_load_state_dict_post_hook": lambda *args: None,
}


def use(model: nn.Module) -> None:
    model(X.clone().requires_grad_()).sum().backward()
    model.load_state_dict(model.state_dict())


@pytest.mark.parametrize("register", REGISTER)
def test_hooks_are_called_by_the_new_layer_until_their_handle_removes_them(register):
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    called = []

    def hook(module, *args):
        called.append(type(module).__name__)

    handle = getattr(model[0], register)(hook)
    for change, kind in ((lambda: None, "Linear"), (lambda: factorize(model, rank_scale=0.4), "FactorizedLinear")):
        change()
        use(model)
        assert called == [kind]
        called.clear()
    merge(model)
    use(model)
    assert called == ["Linear"]
    handle.remove()
    use(model)
    assert called == ["Linear"]


def test_hooks_with_keywords_and_results():
    model = nn.Sequential(nn.Linear(6, 5))
    model[0].register_forward_hook(lambda module, args, kwargs, output: output + 1, with_kwargs=True)
    model[0].register_forward_pre_hook(lambda module, args, kwargs: ((2 * args[0],), kwargs), with_kwargs=True)
    expected = model(X)
    factorize(model, rank_scale=1.0, rule="paper")
    torch.testing.assert_close(model(X), expected)
    torch.testing.assert_close(merge(model)(X), expected)


def test_attributes_are_carried_there_and_back():
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv2d(2, 3, 3))
    for layer in model:
        layer.tag, layer.function = "mine", len
    factorize(model, rank_scale=0.4)
    assert [layer.tag for layer in model] == ["mine", "mine"]
    model[0].since = 7
    model = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    dense = merge(model)
    assert (dense[0].tag, dense[0].function, dense[0].since, dense[1].tag) == ("mine", len, 7, "mine")
    # What the classes give their layers stays theirs.
    assert vars(dense[1]).keys() == {*vars(nn.Conv2d(2, 3, 3)), "tag", "function"}


def test_what_cannot_be_carried_is_named():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 5))
    model[0].path = "data/x"
    model[0].again = model[0].forward
    model[1].weight.register_hook(lambda gradient: None)
    model[1].bias.register_post_accumulate_grad_hook(lambda parameter: None)
    with pytest.warns(UserWarning, match="not carried over") as caught:
        factorize(model, rank_scale=0.4)
    (message,) = (str(warning.message) for warning in caught)
    for words in ("0: attribute path", "0: attribute again", "1: gradient hooks of its weight", "its bias"):
        assert words in message
    assert caught[0].filename == __file__ and model[0].path == "auto"


def test_a_warning_is_of_the_line_that_calls(tmp_path):
    def built() -> nn.Module:
        model = nn.Sequential(nn.Linear(6, 5))
        model[0].weight.register_hook(lambda gradient: None)
        return model

    with pytest.warns(UserWarning, match="not carried over") as factorizing:
        model = factorize(built(), ranks={"0": 2})
    save(model, tmp_path / "saved")
    with pytest.warns(UserWarning, match="not carried over") as loading:
        load(built(), tmp_path / "saved")
    model[0].U.register_hook(lambda gradient: None)
    with pytest.warns(UserWarning, match="not carried over") as deploying:
        deploy(model, torch.ones(1, 6), measure=False)
    assert {warning.filename for caught in (factorizing, loading, deploying) for warning in caught} == {__file__}


def test_nothing_is_said_where_nothing_is_lost():
    model = nn.Sequential(nn.Linear(6, 5), nn.Conv2d(4, 4, 3), nn.Embedding(7, 6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merge(factorize(model, rank_scale=0.4, embeddings=True))


class Pretrained(nn.Module):
    """Saves itself as models of a hub do: by a folder that does not know of factors."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 5)

    def save_pretrained(self, folder):
        return f"saved in {folder}"


@pytest.mark.parametrize("change", [lambda m: m, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_save_pretrained_is_refused_until_the_model_is_dense_again(change):
    outer = nn.ModuleDict({"model": Pretrained()})
    outer = change(factorize(outer, rank_scale=0.4))
    with pytest.raises(RuntimeError, match=r"factorized.save\(model, folder\).*factorized.merge\(model\) first"):
        outer["model"].save_pretrained("here")
    assert merge(outer)["model"].save_pretrained("here") == "saved in here"
    assert "save_pretrained" not in vars(outer["model"])
