"""Which layers of a model get which rank, from the arguments of `factorize`, before anything is built."""

import operator
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from .allocation import allocate, options
from .budget import RULES, ProductSize, Size, check_ratio, larger, parameter_count, search, size_of, stays_dense
from .calls import calls_of
from .eligible import Choice, choose, nothing_to_do
from .forms import Forms, form_of, forms_for
from .layers.base import FactorizedLayer
from .layers.factors import Factors
from .layers.product import checked_scale
from .patterns import select
from .start import Stats, check_stats, check_values, spectra
from .table import summary
from .usage import check_choice, check_number, checked_rank, listed

COSTS = ("parameters", "multiply-adds")
ALLOCATIONS = ("uniform", "error")


class Budget(NamedTuple):
    """The arguments of `factorize` of these names."""

    ratio: float | None
    cost: str
    allocate: str
    round_to: int
    example_input: Any
    stats: Stats | None


class Plan(NamedTuple):
    """What `factorize` is to do."""

    choice: Choice
    forms: dict[str, Any]
    """The factorized class of each of `choice.layers`."""
    sizes: dict[str, Size]
    ranks: dict[str, float]
    """The rank of each layer that is factorized; a scale for a tensor layer."""
    grown: dict[str, str]
    """The layers that a scale below 1 enlarges without being told to, in words."""

    @property
    def products(self) -> list[str]:
        """The layers that become products of matrices, for which all arguments of `from_dense` have a meaning."""
        return [name for name in self.ranks if issubclass(self.forms[name], Factors)]


def planned(
    model: nn.Module,
    *,
    rank_scale: float | None,
    ranks: Mapping[str, int] | None,
    budget: Budget,
    include: Iterable[str] | None,
    exclude: Iterable[str] | None,
    embeddings: bool,
    square: bool,
    rule: str | None,
    strict: bool,
    layer: type[FactorizedLayer] | Forms | None,
    split: str,
    others: bool,
) -> Plan:
    """Return what `factorize` is to do, from arguments of the same names; its ranks are empty if that is nothing."""
    ratio = budget.ratio
    if rank_scale is not None and ratio is not None:
        raise ValueError("give rank_scale or ratio, not both")
    if rank_scale is None and ratio is None and ranks is None:
        raise ValueError("give rank_scale, ratio or ranks")
    if ratio is not None and ranks is not None:
        raise ValueError("give ratio or ranks, not both")
    if rank_scale is not None:
        _check_scale(rank_scale)
    chosen = rule or ("paper" if ratio is None else "compact")
    check_choice("rule", chosen, RULES)
    _check_budget(budget, chosen)
    asked = {} if ranks is None else _checked(ranks)
    by_class = forms_for(layer, split)
    others = others and not isinstance(layer, type) and budget.cost == "parameters"  # composing saves no multiply-adds
    choice = choose(
        model, include, exclude, embeddings, by_class, small_heads=chosen == "paper", named=asked, others=others
    )
    forms = {name: form_of(dense, by_class) for name, dense in choice.layers.items()}
    sizes = {name: size_of(dense, forms[name], square, budget.round_to) for name, dense in choice.layers.items()}
    given: dict[str, int] = _by_name(asked, choice, forms)
    if ratio is not None and sizes:
        total = parameter_count(model)
        if budget.cost == "multiply-adds":
            sizes, total = _counting_multiply_adds(model, choice, forms, sizes, budget.example_input)
        if budget.allocate == "error":
            given = _allocated(choice, forms, sizes, total, budget)
            choice.dense.update(dict.fromkeys(sizes.keys() - given, "worth more than factors would save"))
            return Plan(choice, forms, sizes, dict(given), {})
        scale = search(total, sizes.values(), ratio, chosen, strict, stacklevel=4, cost=budget.cost)
        rank_scale = scale.rank_scale
    found: dict[str, float] = {}
    for name, size in sizes.items():
        if name in given:
            found[name] = given[name]
        elif rank_scale is None:
            choice.dense[name] = "not named in ranks"
        elif stays_dense(size, chosen, rank := size.rank(chosen, rank_scale)):
            choice.dense[name] = (
                f"factors of {'rank' if isinstance(rank, int) else 'scale'} {rank} would not be smaller"
            )
        else:
            found[name] = rank
    by_default = rule is None and rank_scale is not None and rank_scale < 1
    return Plan(choice, forms, sizes, found, larger(found, sizes, given) if by_default else {})


def _check_budget(budget: Budget, rule: str) -> None:
    """Raise an error for arguments that contradict each other, or have no effect."""
    ratio, cost, how, round_to, example_input, stats = budget
    check_choice("cost", cost, COSTS)
    check_choice("allocate", how, ALLOCATIONS)
    if ratio is None and (cost, how) != (COSTS[0], ALLOCATIONS[0]):
        raise ValueError(f"cost={cost!r} and allocate={how!r} say how a ratio is reached: give ratio, as in ratio=0.5")
    if cost == "multiply-adds" and example_input is None:
        raise ValueError(
            "multiply-adds depend on the size of the input: give an example_input, such as torch.zeros(1, 3, 224, 224)"
        )
    if how == "error" and rule != "compact":
        raise ValueError(f"allocate='error' gives every layer its own rank, and rule={rule!r} one scale to all")
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise ValueError(f"round_to is the number that ranks are multiples of, as in round_to=8, not {round_to!r}")


def _counting_multiply_adds(
    model: nn.Module, choice: Choice, forms: Mapping[str, Any], sizes: Mapping[str, Size], example_input: Any
) -> tuple[dict[str, Size], int]:
    """Return the sizes with multiply-adds for what costs, and the multiply-adds of the model, for an example.

    Factors are counted one after the other; a layer that the example does not come by is left out, with the reason.
    """
    calls = calls_of(model, set(choice.layers.values()), example_input)
    counted: dict[str, Size] = {}
    for name, size in sizes.items():
        if not isinstance(size, ProductSize):
            raise ValueError(f"{forms[name].__name__} composes its weight and saves no multiply-adds: leave cost out")
        shapes = [tuple(inputs[0].shape) for inputs, _ in calls.get(choice.layers[name], ())]
        if not shapes:
            choice.dense[name] = "the example does not call it, and its multiply-adds are not known"
            continue
        one = forms[name]._like(choice.layers[name], rank=1, device="meta")
        costs = [one.costs(shape) for shape in shapes]
        adds = sum(cost["steps"] for cost in costs), sum(cost["dense"] for cost in costs)
        counted[name] = size._replace(adds=adds)
    return counted, summary(model, example_input).multiply_adds or 0


def _allocated(
    choice: Choice, forms: Mapping[str, Any], sizes: Mapping[str, Size], total: int, budget: Budget
) -> dict[str, int]:
    """Return the rank of each layer that is to be factorized, those that leave out the least at the cost.

    Raises:
        ValueError: for a ratio out of range, or below what the least ranks cost.
    """
    assert budget.ratio is not None
    check_ratio(budget.ratio, "compact")
    if tensors := [name for name, size in sizes.items() if not isinstance(size, ProductSize)]:
        raise ValueError(f"allocate='error' gives ranks, and {forms[tensors[0]].__name__} takes a scale: leave it out")
    layers = {name: choice.layers[name] for name in sizes}
    check_values(layers)
    if budget.stats is not None:
        check_stats(budget.stats, layers, forms)
    fixed = total - sum(size.dense_cost for size in sizes.values())
    values = spectra(layers, forms, budget.stats or {})
    possible = [
        options(values[name], size.ranks(), [size.cost(rank) for rank in size.ranks()], size.dense_cost)
        for name, size in sizes.items()
        if isinstance(size, ProductSize)
    ]
    found = allocate(possible, budget.ratio * total - fixed)
    if found is None:
        least = (fixed + sum(layer.costs[0] for layer in possible)) / total
        raise ValueError(
            f"ratio {budget.ratio} is unreachable: the least ranks give {least:.6f}, as {fixed / total:.0%} of the "
            f"{budget.cost} are not in layers to factorize"
        )
    return {name: rank for name, rank in zip(sizes, found) if rank}


def warn_or_refuse(model: nn.Module, choice: Choice, strict: bool, stacklevel: int) -> None:
    """Say that nothing is factorized: an error if `strict`, unless the weights are empty anyway.

    Args:
        stacklevel: of the warning, as seen from the caller.
    """
    message = nothing_to_do(model, choice)
    tensors = [weight.tensor for weight in choice.weights.values()]
    if tensors and all(tensor is not None and tensor.numel() == 0 for tensor in tensors):
        warnings.warn(message, stacklevel=stacklevel + 1)
    elif strict:
        raise ValueError(f"{message}; strict=False leaves such a model as it is")


def warn(plan: Plan, stacklevel: int) -> None:
    """Warn of layers that become larger, and if most of what was to be factorized cannot be.

    Args:
        stacklevel: of the warnings, as seen from the caller.
    """
    done = sum(plan.sizes[name].dense for name in plan.ranks)
    left: dict[str, dict[str, int]] = {}  # by obstacle, the sizes of the weights
    weights = plan.choice.weights
    tables = {id(weight.tensor) for weight in weights.values() if isinstance(weight.module, nn.Embedding)}
    for name in plan.choice.sought:
        tensor, obstacle = weights[name].tensor, weights[name].obstacle
        if obstacle is not None and tensor is not None and id(tensor) not in tables:
            left.setdefault(obstacle, {})[name] = tensor.numel()
    remaining = sum(sum(sizes.values()) for sizes in left.values())
    if remaining > done:
        largest = sorted(left, key=lambda obstacle: -sum(left[obstacle].values()))
        why = "; ".join(f"{listed(left[obstacle])}: {obstacle}" for obstacle in largest[:3])
        why += f"; and {len(left) - 3} other reasons" if len(left) > 3 else ""
        layers = len(plan.ranks) + sum(map(len, left.values()))
        warnings.warn(
            f"only {len(plan.ranks)} of {layers} layers are factorized, of {done / (done + remaining):.0%} of their "
            f"parameters ({why})", stacklevel=stacklevel + 1,
        )  # fmt: skip
    if plan.grown:
        warnings.warn(
            f"layers become larger: {listed(plan.grown.values())}; rule='compact' never enlarges one, and "
            "rule='paper' says that it is meant", stacklevel=stacklevel + 1,
        )  # fmt: skip


def _check_scale(rank_scale: float) -> None:
    check_number("rank_scale", rank_scale)
    try:
        checked_scale(rank_scale)
    except TypeError:
        raise TypeError(
            f"rank_scale is a fraction of a dimension, and {rank_scale} is an integer above 1: for a rank of "
            f"{rank_scale} give ranks={{'**': {rank_scale}}}, for a scale {float(rank_scale)}"
        ) from None


def _checked(ranks: Mapping[str, int]) -> dict[str, int]:
    """Return `ranks` with plain integers; raise if it is not patterns with ranks of at least 1."""
    if not isinstance(ranks, Mapping):
        example = f"ranks={{'**': {ranks}}}" if isinstance(ranks, int) else "ranks={'layer1': 8, 'fc': 4}"
        raise TypeError(f"ranks must say by module pattern which rank, as in {example}, not {ranks!r}")
    if not ranks:
        raise ValueError("ranks is empty: it must name a layer, as in ranks={'layer1': 8}")
    checked = {}
    for pattern, rank in ranks.items():
        try:
            checked[pattern] = operator.index(checked_rank(rank))
        except (TypeError, ValueError) as error:
            raise type(error)(f"ranks of {pattern!r}: {error}") from None
    return checked


def _by_name(ranks: Mapping[str, int], choice: Choice, forms: Mapping[str, Any]) -> dict[str, int]:
    """Return the rank of each layer that a pattern of `ranks` matches; raise for one that matches none to factorize."""
    given = {}
    for pattern, rank in ranks.items():
        matched = select(choice.weights, [pattern])
        eligible = [name for name in matched if name in choice.layers]
        if not eligible:
            raise ValueError(f"ranks: {matched[0] or '(root)'} stays dense: {choice.dense[matched[0]]}")
        for name in eligible:
            if not issubclass(forms[name], Factors):
                raise ValueError(f"ranks: {name or '(root)'} becomes a {forms[name].__name__} and takes a scale")
        given.update(dict.fromkeys(eligible, rank))
    return given
