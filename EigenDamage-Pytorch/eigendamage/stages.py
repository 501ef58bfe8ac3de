"""What the two kinds of residual network share: stages of blocks, and shortcuts that are projections."""

from torch import nn

from .flow import Layer, Step


def stage(block: type[nn.Module], blocks: int, in_planes: int, planes: int, stride: int) -> nn.Sequential:
    """Return `blocks` blocks, of which the first changes width and size."""
    return nn.Sequential(block(in_planes, planes, stride), *(block(planes, planes, 1) for _ in range(blocks - 1)))


def projection(in_planes: int, planes: int, stride: int) -> nn.Sequential | None:
    """Return the shortcut of a block, a sequence of one 1 x 1 convolution, or None where the shape stays the same."""
    if stride == 1 and in_planes == planes:
        return None
    return nn.Sequential(nn.Conv2d(in_planes, planes, 1, stride, bias=False))


def unwrap_projections(model: nn.Module) -> None:
    """Put factorized shortcuts in place of the sequences around them: `downsample.U`, not `downsample.0.U`."""
    for module in model.modules():
        shortcut = getattr(module, "downsample", None)
        if isinstance(shortcut, nn.Sequential) and hasattr(shortcut[0], "factors"):
            module.downsample = shortcut[0]


def blocks_of(model: nn.Module, reads: str) -> tuple[list[Step], str]:
    """Return the steps of a network's three stages on the map that the stem writes, and the map that they write."""
    steps: list[Step] = []
    for layer in ("layer1", "layer2", "layer3"):
        for index, block in enumerate(model.get_submodule(layer)):
            inner, reads = block.flow(f"{layer}.{index}", reads)
            steps += inner
    return steps, reads


def shortcut_of(block: nn.Module, name: str, reads: str) -> tuple[str, list[Step]]:
    """Return the map that a block's shortcut brings to the sum, and the step that writes it if there is one."""
    if block.downsample is None:
        return reads, []
    layer = f"{name}.downsample.0"
    return layer, [Layer(layer, reads, layer)]
