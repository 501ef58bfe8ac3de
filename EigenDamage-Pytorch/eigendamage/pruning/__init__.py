"""Pruning by second-order information (Wang et al. 2019, https://arxiv.org/abs/1905.05934), and its controls."""
