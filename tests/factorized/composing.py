"""A model of what has no factorized layer: attention, experts, recurrence, unusual convolutions, ties."""

import torch
from torch import nn


class Scaled(nn.Linear):
    """A linear layer that uses its weight in its own way."""

    def forward(self, x):
        return super().forward(x) * 2


class Experts(nn.Module):
    """Experts whose weights are one parameter, behind a table of positions."""

    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(4, 32, 16) / 4)
        self.positions = nn.Parameter(torch.randn(1, 9, 16))
        self.router = nn.Linear(16, 4)

    def forward(self, x):
        outputs = torch.einsum("bti,eoi->bteo", x + self.positions, self.gate_up_proj)
        return (outputs * self.router(x).softmax(-1)[..., None]).sum(2)


class Everything(nn.Module):
    """Maps tokens (B, 9) to scores (B, 9, 50); the output layer shares its weight with the embedding."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.experts = Experts()
        self.recurrent = nn.LSTM(32, 24, batch_first=True)
        self.scaled = Scaled(24, 16)
        self.transposed = nn.ConvTranspose1d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv1d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2, padding_mode="circular")
        self.norm = nn.LayerNorm((9, 16))
        self.output = nn.Linear(16, 50, bias=False)
        self.output.weight = self.embedding.weight

    def forward(self, tokens):
        x = self.embedding(tokens)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.scaled(self.recurrent(self.experts(x))[0])
        x = self.depthwise(self.transposed(x.mT))
        return self.output(self.norm(self.grouped(x[..., None])[..., 0].mT))


COMPOSED = {
    "embedding": (50, 16), "attention.out_proj": (16, 16), "attention.in_proj_weight": (3, 16, 16),
    "experts.gate_up_proj": (4, 32, 16), "experts.positions": (9, 16), "recurrent.weight_ih_l0": (4, 24, 32),
    "recurrent.weight_hh_l0": (4, 24, 24), "scaled": (16, 24), "transposed": (16, 48), "grouped": (2, 24, 24),
}  # fmt: skip
"""What is composed if embeddings are, with the matrices of each."""


def tokens() -> torch.Tensor:
    return torch.randint(50, (3, 9))
