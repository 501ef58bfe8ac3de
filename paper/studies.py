"""The studies by the names of their folders, in the order of the paper's generator."""

from .compression import COMPRESSION
from .resnet import RESNET
from .tensors import TENSOR
from .translation import TRANSLATION

STUDIES = {study.folder: study for study in (COMPRESSION, TENSOR, TRANSLATION, RESNET)}
