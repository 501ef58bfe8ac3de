"""Decompositions of matrices and tensors, fast enough to start whole networks with."""
