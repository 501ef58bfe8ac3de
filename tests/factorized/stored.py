"""A network with a layer of every kind, in which what is saved must come back, and inputs for it."""

import torch
from torch import nn

import factorized


class Net(nn.Module):
    """One layer of every kind, a shared layer, tied weights, buffers and attention."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8, padding_idx=0)
        self.conv = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(8, 8, (1, 3), groups=2, bias=False)
        self.separable = nn.Conv2d(8, 8, 3, padding=1)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.channels = nn.Conv2d(8, 8, 3, padding=1)
        self.line = nn.Conv1d(8, 6, 3)
        self.norm = nn.BatchNorm2d(8)
        self.twice = nn.Linear(8, 8)
        self.again = self.twice
        self.attention = factorized.FactorizedAttention(8, 2, rank_scale=0.5)
        self.head = nn.Linear(8, 11, bias=False)
        self.tied = nn.Linear(8, 11)
        self.tied.weight = self.head.weight

    def forward(self, images, tokens):
        x = self.channels(self.pointwise(self.separable(self.grouped(self.norm(self.conv(images))))))
        x = self.line(x.flatten(2)).mean() + self.again(self.twice(self.attention(self.embed(tokens))))
        return self.tied(x) + self.head(x)


def dense() -> Net:
    torch.manual_seed(5)
    return Net().eval()


def inputs():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, 3, 9, 9, generator=generator), torch.randint(11, (2, 4), generator=generator)


def small() -> Net:
    """A factorized network with trained numbers everywhere: not those of any start."""
    net = dense()
    net.grouped = factorized.FactorizedConv2d.from_dense(net.grouped, rank=2)
    net.separable = factorized.TensorTrainConv2d.from_dense(net.separable, 0.6)
    net.pointwise = factorized.CPConv2d.from_dense(net.pointwise, 0.4)
    net = factorized.factorize(net, ranks={"embed": 3, "line": 2}, embeddings=True)
    net = factorized.factorize(net, ranks={"channels": 3}, split="channel")
    net = factorized.factorize(net, ranks={"conv": 4}, square=True, path="two_step")
    net = factorized.factorize(net, ranks={"twice": 5}, path="composed")
    with torch.no_grad():
        for tensor in (*net.parameters(), net.norm.running_mean):
            tensor.add_(torch.rand_like(tensor) / 10)
    return net
