"""Factorizing a whole model, and merging it back to dense layers."""

import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from .calls import run
from .cost import PATHS
from .eligible import Choice
from .forms import FORMS, Forms, dense_class, form_of
from .handover import DENSE_CLASS, DENSE_REASON, hand_over
from .layers.base import FactorizedLayer
from .layers.factors import INITS, Fill, SquareFill
from .layers.product import warn_of_padding
from .layers.weight import Place
from .parametrization import composed_weights, install, uninstall
from .patterns import factorized_modules
from .plan import Budget, Plan, planned, warn, warn_or_refuse
from .start import Stats, check_stats, check_values, spectral_start, warn_of_missing
from .table import report
from .usage import check_choice, check_model, explained


@explained
def factorize(
    model: nn.Module,
    *,
    rank_scale: float | None = None,
    ratio: float | None = None,
    ranks: Mapping[str, int] | None = None,
    cost: str = "parameters",
    allocate: str = "uniform",
    round_to: int = 1,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    init: str | Fill = "spectral",
    stats: Stats | None = None,
    square: bool = False,
    square_init: SquareFill | None = None,
    path: str = "auto",
    rule: str | None = None,
    strict: bool = True,
    layer: type[FactorizedLayer] | Forms | None = None,
    split: str = "spatial",
    embeddings: bool = False,
    others: bool = True,
    verbose: bool = False,
    example_input: Any = None,
    spectral: bool | None = None,
) -> nn.Module:
    """Factorize the weights of `model`, in place, and return it.

    Linear and convolution layers are replaced by factorized ones; the root itself is when it is such a layer, so use
    the returned model. All other matrices become `ComposedWeight`s of the modules that they are in, which go on to
    compute what they did: those of `nn.MultiheadAttention`, LSTM and GRU, transposed convolutions, stacked experts,
    subclasses with a `forward` of their own, and weights shared by several modules. What stays dense has its reason in
    `factorized.report`. Hooks and attributes of the replaced layers are moved to the new ones. If anything is wrong,
    nothing is replaced.

    Args:
        rank_scale: rank of each layer as a fraction of one of its dimensions. May be above 1, for over-parameterized
            training.
        ratio: or, the parameters of the result as a fraction of those of `model`; see `find_rank_scale`.
        cost: what `ratio` is a share of: `parameters`, or `multiply-adds` for an input like `example_input`, with the
            factors applied one after the other, which `path="auto"` then means.
        allocate: `uniform`, one scale for all layers, or `error`: the ranks that leave out the least of the layers'
            weights, in the sense of the data if there are `stats`, at most at this cost; layers that need their
            directions keep more of them, or stay dense.
        round_to: ranks by scale or ratio are multiples of this number.
        ranks: rank by module pattern; wins over the two above and over `rule`, and the last pattern that matches wins.
            Alone, it leaves all other layers dense.
        include, exclude: patterns of module names (`factorized.patterns`): only layers that match one of `include`
            and none of `exclude` are factorized.
        init: how the factors start: `spectral` (the best product for each layer's weight), `kaiming`, `fan_in`,
            `fan_out`, or a function that fills a tensor in place, as for `from_dense` of the layers.
        stats: what `factorized.collect(model, batches)` returned: the spectral start is then the best product for what
            each layer or composed weight sees of these data (`factorized.linalg.weighted`), instead of for the weight
            alone. Of weights without statistics a warning and the report say so.
        square, square_init, path: as for `from_dense` of the layers.
        rule: which ranks a scale gives. `compact`, the default with `ratio`: the scale is a fraction of the largest
            useful rank min(m, n); a layer whose factors would not be smaller stays dense, and so does a small head (a
            linear layer of at most 32 outputs and fewer outputs than inputs) unless `include` or `ranks` names it.
            `paper`, the default with `rank_scale`: the scale is a fraction of `scaled_dimension` of the layer's class,
            and every layer is factorized (Khodak et al. 2021).
        strict: raise if no layer is replaced, or if `ratio` cannot be reached; otherwise warn of the latter.
        layer: the factorized class to use instead of the low-rank one, for all layers or by dense class, as in
            `layer={nn.Conv2d: TensorTrainConv2d}`. Tensor layers start from the weights and take a scale or a ratio
            only.
        split: how the kernel of an `nn.Conv2d` becomes a matrix: `spatial` (the paper's: a row for every output channel
            and vertical position, `FactorizedConv2d`) or `channel` (a row for every output channel, `ChannelConv2d`).
        embeddings: factorize embeddings, too. Only for those that the model looks rows up in and does nothing else
            with: a weight that it reads elsewhere than in the `forward` of the module around it is not noticed.
        others: let composed weights stand for what has no factorized layer. It saves parameters, their gradients and
            the optimizer's state, and costs a composition at every reading, which the report counts. Patterns name
            parameters there (`**.experts.gate_up_proj`), and `weight` as its module. False leaves them dense, and so
            does one class for all as `layer`.
        verbose: print the report (`factorized.report`), with multiply-adds for inputs like `example_input` if given.
        spectral: deprecated; False is `init="kaiming"`.

    Raises:
        TypeError: for arguments of another type than these.
        ValueError: unless exactly one of `rank_scale` and `ratio`, or `ranks`, is given; for values out of range; for
            a pattern that matches no layer; if no layer is replaced and `strict`; for weights that are not finite or on
            the meta device under a spectral start; for layers without a weight yet, and for a wrapped model.
    """
    if spectral is not None:
        init = _start_of(spectral, init)
    if example_input is not None and not verbose and cost == "parameters":
        raise ValueError(
            "example_input has no effect without verbose=True or cost='multiply-adds'; "
            "factorized.summary takes one, too"
        )
    if cost == "multiply-adds":
        path = _path_of_steps(path)
    if stats is not None and init != "spectral":
        raise ValueError(f"stats weigh the spectral start and have no effect on init={init!r}")
    todo = planned(
        model, rank_scale=rank_scale, ranks=ranks, budget=Budget(ratio, cost, allocate, round_to, example_input, stats),
        include=include, exclude=exclude,
        embeddings=embeddings, square=square, rule=rule, strict=strict, layer=layer,
        split=split, others=others,
    )  # fmt: skip
    if not todo.ranks:
        warn_or_refuse(model, todo.choice, strict, stacklevel=3)
    new = _build(todo, init, square, square_init, path, stats)
    if example_input is not None:
        run(model, example_input)  # if it fails, it does before anything is replaced
    warn(todo, stacklevel=3)
    if stats is not None:
        warn_of_missing(stats, todo.products, stacklevel=3)
    if init == "spectral":
        padded: dict[str, Any] = {name: new[name] for name in todo.products if name not in todo.grown}
        warn_of_padding([name or "(root)" for name in padded], *padded.values(), stacklevel=4)
    _leave_notes(todo.choice)
    model = replace(model, {name: (todo.choice.layers[name], made) for name, made in new.items()}, stacklevel=3)
    if verbose:
        print(report(model, example_input))
    return model


def merge(model: nn.Module) -> nn.Module:
    """Replace every factorized layer by its `to_dense()`, in place, and return the model; its outputs stay the same.

    Where a composed weight is, the parameter of its module is one again. Hooks and attributes of the factorized layers
    are moved to the dense ones. Factorized modules that stand for no layer, such as the products of attention heads,
    stay as they are.

    Raises:
        ValueError: if another parametrization was registered on top of a composed weight; then nothing has changed.
    """
    check_model(model)
    layers: dict[str, Any] = {
        name: layer for name, layer in factorized_modules(model).items() if hasattr(layer, "to_dense")
    }
    dense = {name: (layer, layer.to_dense()) for name, layer in layers.items()}
    uninstall(composed_weights(model))
    return replace(model, dense, stacklevel=2)


def _start_of(spectral: bool, init: str | Fill) -> str | Fill:
    if spectral and init != "spectral":
        raise ValueError(f"spectral=True and init={init!r} contradict each other; give init alone")
    instead = "kaiming" if init == "spectral" and not spectral else init
    warnings.warn(f"spectral={spectral} is deprecated: say init={instead!r}", DeprecationWarning, stacklevel=4)
    return instead


def _path_of_steps(path: str) -> str:
    if path == "composed":
        raise ValueError("path='composed' saves no multiply-adds: leave path or cost out")
    return "two_step"


def _build(
    todo: Plan, init: str | Fill, square: bool, square_init: SquareFill | None, path: str, stats: Stats | None
) -> dict[str, Any]:
    """Return the new layers and composed weights by name, started."""
    if square_init is not None and not square:
        raise ValueError("square_init has no effect without square=True")
    if not isinstance(init, str) and (not callable(init) or isinstance(init, type)):
        raise TypeError(f"init must be a word such as 'spectral' or a function that fills a tensor, not {init!r}")
    check_choice("path", path, PATHS)
    if isinstance(init, str):
        check_choice("init", init, INITS)
    if todo.ranks and not todo.products and (square or path != "auto" or init != "spectral"):
        raise ValueError("square, path and init have no effect on tensor layers, which start from the weights")
    products = todo.products
    check_values({name: todo.choice.layers[name] for name in todo.ranks if init == "spectral" or name not in products})
    if stats is not None:
        check_stats(stats, {name: todo.choice.layers[name] for name in products}, todo.forms)
    new: dict[str, Any] = {}
    for name, rank in todo.ranks.items():
        form, dense = todo.forms[name], todo.choice.layers[name]
        if name in products:
            start = None if init == "spectral" else init  # the spectral start is one for all layers, below
            options = {"square": square, "square_init": square_init, "path": path}
            new[name] = form.from_dense(dense, rank=rank, init=start, **options)
        else:
            new[name] = form.from_dense(dense, rank)
    if init == "spectral":
        spectral_start(todo.choice.layers, {name: new[name] for name in products}, stats or {})
    return new


def replace(model: nn.Module, replaced: Mapping[str, tuple[Any, Any]], stacklevel: int) -> nn.Module:
    """Put every new layer wherever the old one stands (a module may be reached by several names); return the model.

    Where the old one is the `Place` of a composed weight, that is installed there.
    """
    layers = {name: pair for name, pair in replaced.items() if not isinstance(pair[0], Place)}
    replacements: dict[Any, Any] = dict(layers.values())
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # unlike named_children, every name of a module used twice
            if child in replacements:
                setattr(parent, name, replacements[child])
    for old, new in layers.values():
        _keep_class(old, new)
    hand_over(replaced, stacklevel + 1)
    for place, weight in replaced.values():
        if isinstance(place, Place):
            install(place, weight)
    model = replacements.get(model, model)
    _guard_saving(model)
    return model


def _keep_class(old: nn.Module, new: nn.Module) -> None:
    """Let a factorized layer remember a subclass that only renames its dense class, and a merged one be of it."""
    if (kind := vars(old).get(DENSE_CLASS)) is not None:
        new.__class__ = kind
    elif type(old) is not dense_class(old) and dense_class(old) is not None:
        setattr(new, DENSE_CLASS, type(old))


def _leave_notes(choice: Choice) -> None:
    """Note on every module with a weight that is left dense why that is, for the report."""
    for name, reason in choice.dense.items():
        weight = choice.weights[name]
        vars(weight.module).setdefault(DENSE_REASON, {})[weight.parameter] = reason


def _guard_saving(model: nn.Module) -> None:
    """Let modules with a `save_pretrained` refuse it while they hold factorized layers."""
    for module in model.modules():
        if callable(getattr(type(module), "save_pretrained", None)):
            if factorized_modules(module):
                setattr(module, "save_pretrained", refuse_save_pretrained)  # noqa: B010 (mypy knows no such attribute)
            elif vars(module).get("save_pretrained") is refuse_save_pretrained:
                del module.save_pretrained


def refuse_save_pretrained(*args: object, **kwargs: object) -> None:
    """Stand in for a factorized model's `save_pretrained`, whose folder would load with random weights.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "save_pretrained of a factorized model would make a folder that loads with random weights: "
        "use factorized.save(model, folder) and factorized.load(dense_model, folder), make it dense by "
        "factorized.merge(model) first, or save its state_dict() and load it after the same factorize"
    )


def matrix_of(layer: nn.Module) -> Tensor:
    """Return a dense layer's weight as the matrix that its factorized form would be a product for.

    Raises:
        ValueError: if `layer` is not a linear layer, a convolution or an embedding.
    """
    if dense_class(layer) is None:
        raise ValueError(f"{type(layer).__name__} is neither a linear layer, a convolution nor an embedding")
    return form_of(layer, FORMS).matrix_of(layer)
