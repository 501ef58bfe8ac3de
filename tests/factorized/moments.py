"""Vectors of which few directions matter, their moments, and the least error that a product can have on them."""

import torch
from torch import Tensor


def moment(vectors: Tensor) -> Tensor:
    vectors = vectors.reshape(-1, vectors.shape[-1]).double()
    return (vectors.mT @ vectors / len(vectors)).float()


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def correlated(*shape: int, seed: int = 0) -> Tensor:
    """Return vectors of which few directions are much larger than others."""
    generator = torch.Generator().manual_seed(seed)
    size = shape[-1]
    spread = torch.linalg.qr(torch.randn(size, size, generator=generator)).Q * torch.logspace(0.7, -1.5, size)
    return torch.randn(*shape, generator=generator) @ spread.mT


def least_error(x: Tensor, matrix: Tensor, rank: int) -> float:
    """Return the least squared error at outputs `x matrix^T` of a product: what their best approximation leaves out."""
    outputs = x.reshape(-1, x.shape[-1]).double() @ matrix.detach().double().mT
    return float(torch.linalg.svdvals(outputs)[rank:].square().sum())


def error(x: Tensor, matrix: Tensor, other: Tensor) -> float:
    return float((x.reshape(-1, x.shape[-1]).double() @ (matrix - other).detach().double().mT).square().sum())
