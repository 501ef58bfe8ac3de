"""Which rank a scale gives each layer, how many parameters that makes, and the scale for a target.

There are two rules. `paper` is that of Khodak et al. (2021): every layer is factorized, with a rank that is the scale
times `scaled_dimension` of the layer's class and may be above what is useful, as over-parameterized training wants it.
`compact` is for compression: the scale is a fraction of the largest useful rank min(m, n), and a layer whose factors
would not be smaller than its weight stays dense, as do small heads (`eligible.is_small_head`) unless asked for.
"""

import warnings
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from torch import nn

from .eligible import choose, nothing_to_do
from .forms import Forms, form_of, forms_for
from .layers.base import FactorizedLayer
from .layers.factors import Factors
from .layers.product import scaled_rank
from .usage import check_choice, check_model, check_number, explained

RULES = ("paper", "compact")


class RankScale(NamedTuple):
    """A rank scale found for a target, and what it leads to."""

    rank_scale: float
    parameters: int
    """The number of parameters of the factorized model."""
    ratio: float
    """`parameters` over those of the dense model."""


class ProductSize(NamedTuple):
    """What the cost of a product of factors depends on."""

    m: int
    n: int
    scaled_dimension: int
    """The dimension that the scale of the paper's rule is a fraction of."""
    square: bool
    adds: tuple[int, int] | None = None
    """The multiply-adds of one rank, and of the dense layer, if these are what counts and not parameters."""
    round_to: int = 1
    """The number that ranks are multiples of, where there are that many."""
    products: int = 1
    """The number of products of these sizes in a batch."""

    @property
    def dense(self) -> int:
        """Elements of the dense weight."""
        return self.products * self.m * self.n

    @property
    def dense_cost(self) -> int:
        """What counts of the dense layer."""
        return self.dense if self.adds is None else self.adds[1]

    def rank(self, rule: str, rank_scale: float) -> int:
        """Return the rank that a scale gives the layer under `rule`."""
        if rule == "paper":
            return self._rounded(scaled_rank(rank_scale, self.scaled_dimension))
        useful = min(self.m, self.n)
        return min(self._rounded(scaled_rank(rank_scale, useful)), useful // self.round_to * self.round_to or useful)

    def _rounded(self, rank: int) -> int:
        return max(1, round(rank / self.round_to)) * self.round_to

    def ranks(self) -> range:
        """Return the ranks whose factors may be smaller than the dense weight."""
        useful = min(self.m, self.n)
        return range(self.round_to, useful + 1, self.round_to) or range(useful, useful + 1)

    def cost(self, rank: float) -> int:
        """Return what counts of factors of an integer rank."""
        return self.parameters(rank) if self.adds is None else int(rank) * self.adds[0]

    def parameters(self, rank: float) -> int:
        """Return the parameters of factors of an integer rank."""
        return self.products * int(rank) * (self.m + self.n + (int(rank) if self.square else 0))


class TensorSize(NamedTuple):
    """What the parameters of a convolution of a tensor's factors depend on. What it has for a rank is the scale."""

    form: Any
    """The factorized class."""
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]

    @property
    def dense(self) -> int:
        """Elements of the dense kernel."""
        return self.out_channels * self.in_channels * self.kernel_size[0] * self.kernel_size[1]

    @property
    def dense_cost(self) -> int:
        """What counts of the dense layer: its parameters."""
        return self.dense

    def cost(self, rank: float) -> int:
        """Return the parameters of the factors at a scale."""
        return self.parameters(rank)

    def rank(self, rule: str, rank_scale: float) -> float:
        """Return the scale: the class takes it as a fraction of the tensor's dimensions and keeps ranks useful."""
        return rank_scale

    def parameters(self, rank: float) -> int:
        """Return the parameters of the factors at a scale."""
        sizes = self.in_channels, self.out_channels, self.kernel_size
        return parameter_count(self.form(*sizes, rank, bias=False, device="meta"))


Size = ProductSize | TensorSize


def stays_dense(size: Size, rule: str, rank: float) -> bool:
    """Tell whether the rule leaves a layer dense because factors of this rank would not be smaller."""
    return rule == "compact" and size.cost(rank) >= size.dense_cost


def parameter_count(model: nn.Module) -> int:
    """Return the number of scalars in all parameters of `model`, shared ones once, buffers excluded."""
    check_model(model)
    return sum(parameter.numel() for parameter in model.parameters())


@explained
def find_rank_scale(
    model: nn.Module,
    ratio: float,
    *,
    include: Iterable[str] | None = None,
    exclude: Iterable[str] | None = None,
    square: bool = False,
    strict: bool = False,
    embeddings: bool = False,
    rule: str = "paper",
    layer: type[FactorizedLayer] | Forms | None = None,
    others: bool = True,
) -> RankScale:
    """Return the rank scale in (0, 1] at which `factorize` brings the model closest to `ratio` of its parameters.

    Bisection on the count alone: nothing is built or copied and no random number is drawn. Ranks are integers, so the
    achieved ratio is one of the two steps around the target.

    Args:
        ratio: target, parameters after over parameters before; all parameters count.
        include, exclude, square, embeddings, layer, others: as for `factorize`.
        strict: raise instead of warn if no scale in (0, 1] reaches the target.
        rule: by which the scale will be used; pass the same one to `factorize`.

    Raises:
        TypeError, ValueError: for what is no number or out of range, if no layer can be factorized, and if `ratio` is
            unreachable and `strict`.
    """
    check_choice("rule", rule, RULES)
    forms = forms_for(layer)
    others = others and not isinstance(layer, type)
    choice = choose(model, include, exclude, embeddings, forms, small_heads=rule == "paper", others=others)
    if not choice.layers:
        raise ValueError(nothing_to_do(model, choice))
    sizes = [size_of(layer, form_of(layer, forms), square) for layer in choice.layers.values()]
    return search(parameter_count(model), sizes, ratio, rule, strict, stacklevel=3)


def size_of(layer: Any, form: Any, square: bool = False, round_to: int = 1) -> Size:
    """Return the size that a dense layer has in a factorized class."""
    if not issubclass(form, Factors):
        return TensorSize(form, layer.in_channels, layer.out_channels, layer.kernel_size)
    m, n = form.matrix_shape(layer)
    scaled, products = form.scaled_dimension(layer), form.product_count(layer)
    return ProductSize(m, n, scaled, square, round_to=round_to, products=products)


def search(
    total: int, sizes: Iterable[Size], ratio: float, rule: str, strict: bool, stacklevel: int, cost: str = "parameters"
) -> RankScale:
    """Return the scale in (0, 1] that brings a model, with factors of these sizes, closest to `ratio`.

    Args:
        total: cost of the whole model while it is dense.
        cost: what counts, in words.
        stacklevel: of the warning of an unreachable ratio, as seen from the caller.

    Raises:
        ValueError: if `ratio` is out of range, or unreachable and `strict`.
    """
    check_ratio(ratio, rule)
    times = Counter(sizes)  # layers of equal size are counted together
    fixed = total - sum(number * size.dense_cost for size, number in times.items())

    def count(rank_scale: float) -> tuple[int, bool]:
        """Return the parameters at a scale, and whether any layer is factorized."""
        parameters, changed = fixed, False
        for size, number in times.items():
            rank = size.rank(rule, rank_scale)
            dense = stays_dense(size, rule, rank)
            parameters += number * (size.dense_cost if dense else size.cost(rank))
            changed = changed or not dense
        return parameters, changed

    lower, upper = 0.0, 1.0
    best = None
    while True:
        middle = (lower + upper) / 2
        parameters, changed = count(middle)
        found = RankScale(middle, parameters, parameters / total)
        if changed and (best is None or abs(found.ratio - ratio) < abs(best.ratio - ratio)):
            best = found
        if upper - lower < 1e-6 or (changed and abs(found.ratio - ratio) < 1e-6):
            break
        lower, upper = (middle, upper) if changed and found.ratio < ratio else (lower, middle)
    least, most = count(1e-9)[0] / total, count(1.0)[0] / total
    if best is None:
        raise ValueError(f"ratio {ratio} is unreachable: no layer's factors would be smaller than its weight")
    if not least <= ratio <= most:
        reach = f"rank scales up to 1 give {least:.6f} to {most:.6f}"
        if ratio < least:
            reach += f", as {fixed / total:.0%} of the {cost} are not in layers to factorize"
        message = f"ratio {ratio} is unreachable: {reach}"
        if strict:
            raise ValueError(message)
        warnings.warn(f"{message}; using {best.ratio:.6f}", stacklevel=stacklevel + 1)
    return best


def check_ratio(ratio: float, rule: str) -> None:
    """Raise TypeError or ValueError for a ratio that is no number, or out of range."""
    check_number("ratio", ratio)
    if rule == "compact" and ratio >= 1:
        percent = f" (for {ratio:g} percent give ratio={ratio / 100:g})" if 1 < ratio <= 100 else ""
        raise ValueError(
            f"ratio is a fraction of the model's parameters below 1, not {ratio:g}{percent}; "
            "rule='paper' also makes models larger"
        )


def larger(ranks: Mapping[str, float], sizes: Mapping[str, Size], meant: Iterable[str]) -> dict[str, str]:
    """Return which layers, except those of `meant`, these ranks make larger than they are, each in words."""
    found = {}
    for name, rank in ranks.items():
        size = sizes[name]
        if size.parameters(rank) > size.dense and name not in meant:
            useful = min(size.m, size.n) if isinstance(size, ProductSize) else rank
            words = f"rank {rank}, at most {useful} useful" if rank > useful else f"rank {rank}"
            grown = f"{size.dense:,} parameters become {size.parameters(rank):,}"
            found[name] = f"{name or '(root)'} ({words}: {grown})"
    return found
