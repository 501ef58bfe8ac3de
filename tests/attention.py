"""The size of the attention that several files test (the fixture `attention`), and inputs of it."""

import torch

D, HEADS, B, T, S = 12, 3, 2, 5, 7


def states(*shape: int, grad: bool = False) -> torch.Tensor:
    """Return random vectors of width D in double precision."""
    return torch.randn(*shape, D, dtype=torch.float64, requires_grad=grad)
