"""What a factorized layer costs along each execution path, and which path is cheaper.

*Composed* multiplies the factors into the dense weight once per call and runs one ordinary operation.
*Two-step* applies the factors one after the other and never forms the weight. Costs are in multiply-adds of a dense
operation, for the whole input of one call, and are integers so that `torch.compile` can reason about symbolic sizes.
"""

# Writing and reading back one element of the intermediate result costs as much as this many multiply-adds, and a pair
# of small operations runs at 4/5 of the efficiency of one large one. Both chosen from timings of the layers of a
# ResNet20, and checked by benchmarks/paths.py.
_INTERMEDIATE_ELEMENT = 64
_EFFICIENCY = (5, 4)

PATHS = ("auto", "composed", "two_step")


def cheaper_path(*, compose: int, dense: int, steps: int, intermediate: int) -> str:
    """Return `"composed"` or `"two_step"`.

    Args:
        compose: multiply-adds to form the weight.
        dense: multiply-adds of the ordinary operation with it.
        steps: multiply-adds of the two operations together.
        intermediate: elements of the result between them.
    """
    numerator, denominator = _EFFICIENCY
    two_step = numerator * (steps + _INTERMEDIATE_ELEMENT * intermediate)
    return "two_step" if two_step < denominator * (dense + 3 * compose) else "composed"


def compose_cost(rows: int, columns: int, rank: int, square: bool) -> int:
    """Return the multiply-adds of `U VT`, or of `U (M VT)`."""
    return rows * rank * columns + (rank * rank * columns if square else 0)
