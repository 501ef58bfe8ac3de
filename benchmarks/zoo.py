"""Models that nobody here wrote, small and with random weights, each with an input: for coverage.py and the tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import timm
import torch
import torchvision
import transformers
from torch import Tensor, nn
from torchvision.models import convnext, detection, segmentation, video

CLASSES = 7
SIZE = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}


class Entry(NamedTuple):
    """A model and what it is called with."""

    build: Callable[[], nn.Module]
    example: Callable[[], Any]
    """Returns a tensor, a tuple of arguments or a mapping of them."""


def images(size: int = 32) -> Callable[[], Tensor]:
    return lambda: torch.randn(2, 3, size, size)


def tokens(**more: Callable[[], Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"input_ids": torch.randint(3, 90, (2, 9)), **{name: make() for name, make in more.items()}}


def _vision_transformer() -> nn.Module:
    model = torchvision.models.VisionTransformer(32, 8, 2, 4, 64, 128, num_classes=CLASSES)
    nn.init.normal_(model.heads.head.weight)  # a head of zeros would make every comparison trivial
    return model


def _mixer() -> nn.Module:
    model = timm.models.MlpMixer(CLASSES, 32, patch_size=8, num_blocks=2, embed_dim=64)
    nn.init.normal_(model.head.weight)
    return model


def _swin() -> nn.Module:
    return torchvision.models.SwinTransformer(
        [4, 4], 32, [1, 2], [2, 2], [4, 4], stochastic_depth_prob=0.0, num_classes=CLASSES
    )


def _convnext() -> nn.Module:
    blocks = [convnext.CNBlockConfig(32, 64, 1), convnext.CNBlockConfig(64, None, 1)]
    return torchvision.models.ConvNeXt(blocks, stochastic_depth_prob=0.0, layer_scale=1.0, num_classes=CLASSES)


def _small_backbone() -> nn.Module:
    layers = (nn.Conv2d(3, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU())
    backbone: Any = nn.Sequential(*layers)
    backbone.out_channels = 64
    return backbone


def _faster_rcnn() -> nn.Module:
    anchors = detection.anchor_utils.AnchorGenerator(((16, 32),), ((1.0,),))
    pooling = torchvision.ops.MultiScaleRoIAlign(["0"], 3, 2)
    return detection.FasterRCNN(
        _small_backbone(), rpn_anchor_generator=anchors, box_roi_pool=pooling, min_size=64, max_size=64,
        box_head=detection.faster_rcnn.TwoMLPHead(64 * 9, 96),
        box_predictor=detection.faster_rcnn.FastRCNNPredictor(96, CLASSES),
    )  # fmt: skip


def _deeplab() -> nn.Module:
    head = segmentation.deeplabv3.DeepLabHead(64, CLASSES, (2, 4))
    backbone = torchvision.models._utils.IntermediateLayerGetter(_small_backbone(), {"3": "out"})
    return segmentation.DeepLabV3(backbone, head)


def _r3d() -> nn.Module:
    blocks = [video.resnet.Conv3DSimple] * 4
    return video.resnet.VideoResNet(
        video.resnet.BasicBlock, blocks, [1, 1, 1, 1], video.resnet.BasicStem, num_classes=CLASSES
    )


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False, num_classes=CLASSES, **options)


def _wav2vec2() -> nn.Module:
    config = transformers.Wav2Vec2Config(
        **SIZE, conv_dim=(32, 32), conv_stride=(5, 4), conv_kernel=(10, 8), num_feat_extract_layers=2,
        num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4, mask_time_prob=0.0, layerdrop=0.0,
    )  # fmt: skip
    return transformers.Wav2Vec2Model(config)


def _of(model: str, config: str, **options: Any) -> Callable[[], nn.Module]:
    """Return what builds a model of transformers, without the caches that it cannot be exported with."""
    return lambda: getattr(transformers, model)(getattr(transformers, config)(**options, use_cache=False))


_TEXT = {**SIZE, "vocab_size": 96, "max_position_embeddings": 16}
_PLAIN = {"attention_probs_dropout_prob": 0.0, "hidden_dropout_prob": 0.0}

ZOO: dict[str, Entry] = {
    "torchvision resnet": Entry(
        lambda: torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], CLASSES), images()
    ),
    "torchvision mobilenet_v3_small": Entry(
        lambda: torchvision.models.mobilenet_v3_small(num_classes=CLASSES, dropout=0.0), images()
    ),
    "torchvision convnext": Entry(_convnext, images()),
    "torchvision vit": Entry(_vision_transformer, images()),
    "torchvision swin": Entry(_swin, images()),
    "torchvision fasterrcnn": Entry(_faster_rcnn, lambda: ([torch.rand(3, 64, 64)],)),
    "torchvision deeplabv3": Entry(_deeplab, images()),
    "torchvision r3d": Entry(_r3d, lambda: torch.randn(2, 3, 4, 16, 16)),
    "timm vit": Entry(_timm("test_vit", img_size=32), images()),
    "timm convnext": Entry(_timm("test_convnext"), images()),
    "timm mixer": Entry(_mixer, images()),
    "timm efficientnet": Entry(_timm("test_efficientnet"), images()),
    "timm nfnet": Entry(_timm("test_nfnet"), images()),
    "transformers BERT": Entry(_of("BertModel", "BertConfig", **_TEXT, **_PLAIN), tokens()),
    "transformers GPT-2": Entry(
        _of("GPT2LMHeadModel", "GPT2Config", vocab_size=96, n_positions=16, n_embd=64, n_layer=2, n_head=4,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0), tokens(),
    ),
    "transformers Llama": Entry(_of("LlamaForCausalLM", "LlamaConfig", **_TEXT, num_key_value_heads=2), tokens()),
    "transformers Mixtral": Entry(
        _of("MixtralForCausalLM", "MixtralConfig", **_TEXT, num_key_value_heads=2, num_local_experts=4), tokens()
    ),
    "transformers Falcon": Entry(
        _of("FalconForCausalLM", "FalconConfig", vocab_size=96, hidden_size=64, num_hidden_layers=2,
            num_attention_heads=4), tokens(),
    ),
    "transformers Mamba": Entry(
        _of("MambaForCausalLM", "MambaConfig", vocab_size=96, hidden_size=64, num_hidden_layers=2), tokens()
    ),
    "transformers T5": Entry(
        _of("T5ForConditionalGeneration", "T5Config", vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=2,
            num_heads=4, dropout_rate=0.0), tokens(decoder_input_ids=lambda: torch.randint(3, 90, (2, 5))),
    ),
    "transformers ViT": Entry(
        _of("ViTModel", "ViTConfig", **SIZE, **_PLAIN, image_size=32, patch_size=8),
        lambda: {"pixel_values": torch.randn(2, 3, 32, 32)},
    ),
    "transformers wav2vec2": Entry(_wav2vec2, lambda: {"input_values": torch.randn(2, 800)}),
}  # fmt: skip


def build(name: str) -> tuple[nn.Module, Any]:
    """Return a model in evaluation mode, and an example input, both from seed 0."""
    torch.manual_seed(0)
    return ZOO[name].build().eval(), ZOO[name].example()


def outputs(model: nn.Module, example: Any) -> Tensor:
    """Return all floating-point numbers that a model puts out for an input, one after the other."""
    found: list[Tensor] = []

    def gather(value: Any) -> None:
        if isinstance(value, Tensor) and value.is_floating_point():
            found.append(value.flatten())
        elif isinstance(value, dict):
            gather(tuple(value.values()))
        elif isinstance(value, (tuple, list)):
            for part in value:
                gather(part)

    if isinstance(example, dict):
        gather(model(**example))
    else:
        gather(model(*example) if isinstance(example, tuple) else model(example))
    return torch.cat(found)
