"""GRAM for transformers: 2 to n modalities aligned by the volume of their embeddings (arXiv 2412.11959)."""

import importlib

from transformers import AutoConfig, AutoModel, AutoProcessor
from transformers.models.auto.video_processing_auto import AutoVideoProcessor

from .configuration_gram import GramConfig, paper_modalities
from .loss import contrastive_loss
from .media import MediaError, read_audio, read_video
from .modeling_gram import GramModel, GramOutput, GramPreTrainedModel
from .processing_gram import GramProcessor
from .video_processing_gram import GramVideoProcessor
from .volume import MEASURES, cosine, factorize, matched_volume, volume


__version__ = "0.1.0.dev0"

# Imported on first use: what only training and data need.
_LAZY = {
    "AnnotationError": "annotations",
    "load_annotations": "annotations",
    "GramDataCollator": "data_collator",
    "SeededRows": "data_collator",
    "alignment_metrics": "retrieval",
    "retrieval_metrics": "retrieval",
    "retrieval_ranks": "retrieval",
    "load_sample_clips": "sample_clips",
    "small_config": "small_model",
    "small_processor": "small_model",
    "GramTrainer": "trainer",
    "GramTrainingArguments": "training_args",
}

__all__ = [
    "MEASURES",
    "GramConfig",
    "GramModel",
    "GramOutput",
    "GramPreTrainedModel",
    "GramProcessor",
    "GramVideoProcessor",
    "MediaError",
    "contrastive_loss",
    "cosine",
    "factorize",
    "matched_volume",
    "paper_modalities",
    "read_audio",
    "read_video",
    "volume",
    *_LAZY,
]

AutoConfig.register(GramConfig.model_type, GramConfig)
AutoModel.register(GramConfig, GramModel)
AutoProcessor.register(GramConfig, GramProcessor)
# transformers looks for the "torchvision" class even where torchvision is not installed.
AutoVideoProcessor.register(
    GramConfig, video_processor_classes={"torchvision": GramVideoProcessor, "pil": GramVideoProcessor}
)


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_LAZY])
