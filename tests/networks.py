"""Every network of every study, with every kind of convolution, as small as its definition lets it be."""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from unittest import mock

import torch
from deficient import darts, substituted
from deficient.convs import split
from deficient.networks import RECIPES, Config
from deficient.networks import build as build_structured
from eigendamage import networks as compression
from fairseq.config import TransformerConfig
from fairseq.transformer import build_model as build_transformer
from resnet import BLOCK_CONVS, ResNet
from torch import Tensor, nn

from lab import flags
from tests.harness import asked

FORMS = {"dense": {}, "low-rank": {"rank_scale": 0.1}, "spectral": {"rank_scale": 0.1, "spectral": True}}

CONVS = {
    "Conv": "Conv", "Sep": "Sep", "TensorTrain": "TensorTrain_0.2", "Tucker": "Tucker_0.2", "CP": "CP_0.05",
    "Generic": "Generic_0.2", "LR": "LR_0.2", "Shuffle": "Shuffle_2", "Hashed": "Hashed_0.2",
    "SepHashed": "SepHashed_0.2", "HashedDecimate": "HashedDecimate", "SepHashedDecimate": "SepHashedDecimate",
    "ACDC": "ACDC_2", "OriginalACDC": "OriginalACDC",
}  # fmt: skip
# What cannot be built whatever the size, and eleven products of 2048 x 2048 matrices a layer.
IMPOSSIBLE = {("WRN_50_2", "LR"), ("DARTS", "LR"), ("MobileNetV2", "LR"), ("WRN_50_2", "OriginalACDC")}
IMPOSSIBLE |= {(network, conv) for network in ("MobileNetV2", "DARTS") for conv in ("ACDC", "OriginalACDC")}

CLASSES = tuple("abcde")


def _resnet(form: str, square: bool = False) -> nn.Module:
    model, _ = flags.apply(ResNet(1, len(CLASSES)), asked(**FORMS[form]), include=BLOCK_CONVS, square=square)
    return model


def _compression(network: str, depth: int, form: str, kaiming: bool) -> nn.Module:
    model, _ = compression.factorize(
        compression.build(network, depth, len(CLASSES), kaiming), asked(**FORMS[form], kaiming=kaiming)
    )
    return model


@contextlib.contextmanager
def _small() -> Iterator[None]:
    with (
        mock.patch.multiple(darts, CHANNELS=12, CELLS=3, REDUCTIONS=(1, 2)),
        mock.patch.multiple(substituted, BLOCKS=(1, 1, 1, 1), WIDTH=16),
    ):
        yield


def _structured(config: Config, spectral: bool) -> nn.Module:
    with _small():
        return build_structured(config, spectral=spectral)


def _structured_networks() -> dict[str, Callable[[], nn.Module]]:
    found = {}
    for network in RECIPES:
        for kind, conv in CONVS.items():
            if (network, kind) not in IMPOSSIBLE:
                for spectral in (False, True)[: 1 + split(conv)[0].spectral]:
                    config = Config(network, CLASSES, conv, depth=10, width=1)
                    found[f"{network} {conv}{' spectral' * spectral}"] = partial(_structured, config, spectral)
    for form in ("low-rank", "spectral"):
        config = Config("WideResNet", CLASSES, depth=10, width=1, rank_scale=0.2)
        found[f"WideResNet {form}"] = partial(_structured, config, form == "spectral")
    return found


def _transformer(**options) -> nn.Module:
    return build_transformer(TransformerConfig(16, 32, 1, 2, dropout=0, relu_dropout=0, **options), 12, 12)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{f"ResNet {form}": partial(_resnet, form) for form in FORMS},
    **{f"ResNet square {form}": partial(_resnet, form, square=True) for form in list(FORMS)[1:]},
    **{
        f"{network} {form}{' kaiming' * kaiming}": partial(_compression, network, depth, form, kaiming)
        for network, depth in (("vgg", 11), ("resnet", 8), ("presnet", 11))
        for form, kaiming in (
            ("dense", False),
            ("dense", True),
            ("low-rank", False),
            ("low-rank", True),
            ("spectral", False),
        )
    },
    **_structured_networks(),
    "Transformer dense": _transformer,
    "Transformer low-rank": partial(_transformer, rank_scale=0.5),
    "Transformer spectral": partial(
        _transformer, rank_scale=0.5, spectral=True, spectral_quekey=True, spectral_outval=True
    ),
    "Transformer tied": partial(_transformer, rank_scale=0.5, share_all_embeddings=True, share_input_output_embed=True),
    **{f"Transformer {position}": partial(_transformer, position=position) for position in ("timing", "nopos")},
}


def outputs(name: str, model: nn.Module) -> list[Tensor]:
    """Return all that a network of `NETWORKS` computes for two inputs of its own kind, always the same."""
    generator = torch.Generator().manual_seed(3)
    if name.startswith("Transformer"):
        source, target = torch.randint(4, 12, (2, 2, 5), generator=generator)
        return [model(source, target)]
    images = torch.randn(2, 3, 32, 32, generator=generator)
    if name.split()[0] not in RECIPES:
        return [model(images)]
    with _small():
        found = model(images, full=True)
    return [found.logits] if found.auxiliary is None else [found.logits, found.auxiliary]
