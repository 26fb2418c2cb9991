"""Arguments of [`GramTrainer`]."""

from dataclasses import dataclass, field
from typing import get_args

from transformers import TrainingArguments

from .loss import Gather
from .volume import MEASURES


@dataclass
class GramTrainingArguments(TrainingArguments):
    """
    [`TrainingArguments`] with the settings of the contrastive loss, and defaults that a contrastive loss needs.

    Gradient accumulation does not enlarge the pool of negatives: every forward pass is contrasted by itself.
    """

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "encoder_learning_rates"]

    measure: str = field(
        default="volume", metadata={"help": "What the loss compares: volume (joint) or cosine (the mean of pairs)."}
    )
    warmup_measure: str = field(
        default="cosine", metadata={"help": "The measure of the first steps, see warmup_measure_ratio."}
    )
    warmup_measure_ratio: float | None = field(
        default=None,
        metadata={
            "help": "Share of the steps trained with warmup_measure. The volume alone cannot tell a from -a, and "
            "starts badly from encoders that are not aligned. Default: 0 for a model that was loaded with "
            "GramModel.from_pretrained, else 0.5."
        },
    )
    gather: str = field(
        default="full",
        metadata={
            "help": "How processes share embeddings: full (with gradient), detach (without, as the paper's reference "
            "does) or none (local negatives only)."
        },
    )
    encoder_learning_rates: dict | str | None = field(
        default=None,
        metadata={"help": 'Learning rates of single encoders, as JSON: {"vision": 5e-7}. Others use learning_rate.'},
    )
    label_smoothing_factor: float = field(
        default=0.1, metadata={"help": "Label smoothing of both cross-entropies (0.1 in the paper)."}
    )
    remove_unused_columns: bool = field(
        default=False, metadata={"help": "The collator reads the raw columns, which the model does not name."}
    )
    dataloader_drop_last: bool = field(
        default=True, metadata={"help": "Drop the last, smaller training batch: it would have fewer negatives."}
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("measure", "warmup_measure"):
            if getattr(self, name) not in MEASURES:
                raise ValueError(f"`{name}` must be one of {sorted(MEASURES)}; got {getattr(self, name)!r}.")
        if self.gather not in get_args(Gather):
            raise ValueError(f"`gather` must be one of {get_args(Gather)}; got {self.gather!r}.")
        if self.warmup_measure_ratio is not None and not 0 <= self.warmup_measure_ratio <= 1:
            raise ValueError(f"`warmup_measure_ratio` must lie in [0, 1]; got {self.warmup_measure_ratio}.")
