"""Trainer for GRAM: the contrastive loss over volumes, and retrieval as evaluation."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset
from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, EvalLoopOutput
from transformers.utils import logging

from .data_collator import GramDataCollator, SeededRows, row_name
from .loss import MIN_TEMPERATURE, contrastive_loss
from .model_card import build_model_card
from .modeling_gram import GramModel
from .processing_gram import GramProcessor
from .retrieval import alignment_metrics, retrieval_metrics
from .training_args import GramTrainingArguments
from .volume import matched_volume


logger = logging.get_logger(__name__)

UNALIGNED_WARMUP_RATIO = 0.5


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """
    The newest `checkpoint-N` of a folder that was written to its end; None if there is none.

    A killed run may leave half a checkpoint, which [`~transformers.trainer_utils.get_last_checkpoint`] would return.
    The trainer's state is the last file that the main process writes.
    """
    names = [
        path.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-") for path in Path(folder).glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    ]
    for step in sorted((int(name) for name in names if name.isdigit()), reverse=True):
        checkpoint = Path(folder) / f"{PREFIX_CHECKPOINT_DIR}-{step}"
        try:
            json.loads((checkpoint / TRAINER_STATE_NAME).read_text())
        except (OSError, json.JSONDecodeError):
            continue
        return str(checkpoint)
    return None


class _ShortProgress(ProgressCallback):
    """Prints of an evaluation what fits on a line; everything is in `trainer.state.log_history`."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        shown = ("loss", "R@1", "alignment", "runtime")
        logs = {key: value for key, value in logs.items() if not key.startswith("eval_") or key.endswith(shown)}
        logs = {key: value for key, value in logs.items() if not key.startswith("eval_cosine")}
        super().on_log(args, state, control, logs=logs, **kwargs)


class _TrainingCallback(TrainerCallback):
    """Tells the rows their epoch (not every data loader does so), and keeps the temperature positive."""

    def __init__(self, rows: SeededRows, temperature: torch.nn.Parameter):
        self.rows, self.temperature = rows, temperature

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.rows.set_epoch(int(state.epoch))

    def on_optimizer_step(self, args, state, control, **kwargs):
        self.temperature.data.clamp_(min=MIN_TEMPERATURE)


class _Columns(Dataset):
    """Rows without some of their columns."""

    def __init__(self, rows: Any, without: set[str]):
        self.rows, self.without = rows, without

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {key: value for key, value in self.rows[index].items() if key not in self.without}


class GramTrainer(Trainer):
    """
    Trains a [`GramModel`] with the contrastive loss over volumes (arXiv 2412.11959) and evaluates it by retrieval.

    Args:
        model ([`GramModel`]), args ([`GramTrainingArguments`]).
        data_collator (*optional*): [`GramDataCollator`] by default.
        train_dataset, eval_dataset: map-style data sets of rows as [`GramDataCollator`] takes them, e.g. of
            [`load_annotations`] or [`load_sample_clips`]; the latter, or a dict of them.
        processing_class ([`GramProcessor`]): reads the rows, and is saved with the model.
        kwargs: as for [`~transformers.Trainer`], without `model_init` and `compute_metrics`.

    `evaluate()` embeds every clip and every caption once, and reports recall in both directions by volume and by
    cosine, and how well matched tuples agree; see [`retrieval_metrics`] and [`alignment_metrics`].
    """

    loss_is_scaled_for_ga = False

    def __init__(
        self,
        model: GramModel,
        args: GramTrainingArguments,
        data_collator: Any = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: GramProcessor | None = None,
        **kwargs,
    ):
        if not isinstance(args, GramTrainingArguments):
            raise TypeError(f"`args` must be GramTrainingArguments; got {type(args).__name__}.")
        if processing_class is None:
            raise TypeError("`processing_class` is needed: the GramProcessor that reads the rows.")
        if unsupported := {"model_init", "compute_metrics"} & {key for key, value in kwargs.items() if value}:
            raise TypeError(f"GramTrainer takes no {sorted(unsupported)}: it needs the model, and ranks by itself.")
        self._warn_of_missing_columns(model, train_dataset)
        if train_dataset is not None:
            train_dataset = SeededRows(train_dataset, args.data_seed if args.data_seed is not None else args.seed)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or GramDataCollator(processing_class, model.config),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            **kwargs,
        )
        if train_dataset is not None:
            self.add_callback(_TrainingCallback(train_dataset, model.temperature))
        if self.pop_callback(ProgressCallback):
            self.add_callback(_ShortProgress)
        self.last_metrics: dict[str, float] | None = None
        self.evaluated_on_training_rows = False
        self._logged_sums: dict[str, torch.Tensor | int] = defaultdict(int)

    @staticmethod
    def _warn_of_missing_columns(model, rows):
        if not rows or not hasattr(rows, "__len__"):
            return
        columns = set(rows[0])
        modalities = model.config.modalities
        missing = [name for name in modalities if not columns & {name, *modalities[name]["inputs"]}]
        if missing:
            logger.warning(f"The training rows have no columns for {missing}: these modalities will not be trained.")

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs):
        """
        As [`~transformers.Trainer.train`]. `resume_from_checkpoint=True` (or "True", as from a command line) resumes
        from the last complete checkpoint of the output folder, and raises a `ValueError` if there is none.
        """
        if str(resume_from_checkpoint).lower() == "true":
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(f"There is no complete checkpoint to resume from in {self.args.output_dir}.")
        return super().train(resume_from_checkpoint, *args, **kwargs)

    @property
    def warmup_measure_steps(self) -> int:
        """Number of optimizer steps that train with `args.warmup_measure`."""
        ratio = self.args.warmup_measure_ratio
        if ratio is None:
            ratio = 0.0 if getattr(self.model, "is_aligned", False) else UNALIGNED_WARMUP_RATIO
        return round(ratio * self.state.max_steps)

    @property
    def current_measure(self) -> str:
        """The measure that the next step trains with."""
        warming_up = self.state.global_step < self.warmup_measure_steps
        return self.args.warmup_measure if warming_up else self.args.measure

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        anchor, others = self._split(outputs.embeds)
        loss = contrastive_loss(
            anchor,
            others,
            outputs.temperature,
            measure=self.current_measure,
            label_smoothing=self.args.label_smoothing_factor,
            gather=self.args.gather,
        )
        if model.training:
            with torch.no_grad():
                self._logged_sums["alignment"] += 1 - matched_volume(anchor, *others).mean()
                self._logged_sums["temperature"] += outputs.temperature.detach()
            self._logged_sums["steps"] += 1
        return (loss, outputs) if return_outputs else loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and (steps := self._logged_sums.pop("steps", 0)):
            logs |= {key: (total / steps).item() for key, total in self._logged_sums.items()}
            self._logged_sums.clear()
        super().log(logs, start_time)

    def _split(self, embeds: dict[str, torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        anchor = self.model.config.anchor
        others = [vectors for name, vectors in embeds.items() if name != anchor]
        if anchor not in embeds or not others:
            raise ValueError(
                f"The loss compares the anchor {anchor!r} with other modalities; the batch holds {list(embeds)}. "
                "Check the columns of the data set."
            )
        return embeds[anchor], others

    def get_train_dataloader(self):
        batch = self.args.train_batch_size * self.args.world_size
        if (self.args.train_batch_size if self.args.gather == "none" else batch) < 2:
            raise ValueError("A contrastive loss needs batches of two rows at least; raise the batch size.")
        if self.args.dataloader_drop_last and self.train_dataset is not None and len(self.train_dataset) < batch:
            raise ValueError(
                f"The training set has {len(self.train_dataset)} rows, fewer than one batch of {batch}; lower "
                "`per_device_train_batch_size`."
            )
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        # Trainer would drop the last batch of an evaluation too, and with persistent workers give the loader of the
        # first rows for all others.
        training = {
            name: getattr(self.args, name) for name in ("dataloader_drop_last", "dataloader_persistent_workers")
        }
        try:
            self.args.dataloader_drop_last = self.args.dataloader_persistent_workers = False
            return super().get_eval_dataloader(eval_dataset)
        finally:
            for name, value in training.items():
                setattr(self.args, name, value)

    def get_decay_parameter_names(self, model) -> list[str]:
        """Matrices are decayed; the temperature, biases and norms are not."""
        matrices = {name for name, parameter in model.named_parameters() if parameter.ndim > 1}
        return [name for name in super().get_decay_parameter_names(model) if name in matrices]

    def create_optimizer(self, model=None):
        rates = self.args.encoder_learning_rates
        if self.optimizer is not None or not rates:
            return super().create_optimizer(model)
        optimizer = super().create_optimizer(model)
        model = self.model if model is None else model
        if unknown := rates.keys() - model.encoders.keys():
            raise ValueError(
                f"`encoder_learning_rates` names {sorted(unknown)}; encoders are {sorted(model.encoders)}."
            )
        for encoder, rate in rates.items():
            members = set(model.encoders[encoder].parameters())
            for group in list(optimizer.param_groups):
                moved = [parameter for parameter in group["params"] if parameter in members]
                if moved:
                    group["params"] = [parameter for parameter in group["params"] if parameter not in members]
                    optimizer.add_param_group({**group, "params": moved, "lr": float(rate)})
        return optimizer

    @torch.no_grad()
    def embed(self, rows: Any) -> dict[str, torch.Tensor]:
        """
        Embeddings `[len(rows), d]` of every modality for which the rows have a column, in order, on the CPU and in
        float32 at least.
        """
        model = self.model_wrapped.eval()
        if not self.is_in_train and (self.args.fp16_full_eval or self.args.bf16_full_eval):
            model = model.to(torch.float16 if self.args.fp16_full_eval else torch.bfloat16)
        loader = self.get_eval_dataloader(rows)
        parts = defaultdict(list)
        for batch in tqdm(loader, desc="Embedding", leave=False, disable=self.args.disable_tqdm):
            with self.compute_loss_context_manager():
                embeds = model(**self._prepare_inputs(batch)).embeds
            for name, vectors in self.accelerator.gather_for_metrics(embeds).items():
                parts[name].append(vectors.to(torch.promote_types(vectors.dtype, torch.float32)).cpu())
        return {name: torch.cat(vectors) for name, vectors in parts.items()}

    def embed_for_retrieval(self, rows: Any) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """
        Embeddings of a data set's clips and anchors, each once: a clip with five captions is decoded once.

        Returns:
            The embeddings by modality, the anchor's `[N, d]` (a row per caption), all others `[len(rows), d]`; and for
            each anchor the index `[N]` of its row.
        """
        anchor = self.model.config.anchor
        inputs = set(self.model.config.modalities[anchor]["inputs"])
        candidates = self.embed(_Columns(rows, without={anchor, *inputs}))
        if anchor == "text":
            texts = rows.select_columns(["text"]) if "text" in getattr(rows, "column_names", ()) else rows
            captions = [row.get("text") for row in texts]
            if None in captions:
                raise ValueError(f"{row_name(rows[captions.index(None)])} has no `text`; evaluation ranks captions.")
            captions = [[text] if isinstance(text, str) else text for text in captions]
            anchor_rows = [{"text": caption} for group in captions for caption in group]
            owners = [index for index, group in enumerate(captions) for _ in group]
        else:
            specs = self.model.config.modalities
            others = {column for name in specs for column in (name, *specs[name]["inputs"])} - {anchor, *inputs}
            anchor_rows, owners = _Columns(rows, without=others), list(range(len(rows)))
        return {**self.embed(anchor_rows), **candidates}, torch.tensor(owners)

    def embed_matched(self, rows: Any) -> dict[str, torch.Tensor]:
        """Embeddings `[len(rows), d]` by modality, row i of all belonging together; of several captions the first."""
        embeds, owners = self.embed_for_retrieval(rows)
        return self._match(embeds, owners, len(rows))

    def _match(self, embeds, owners, num_rows):
        anchor = self.model.config.anchor
        return {**embeds, anchor: embeds[anchor][torch.searchsorted(owners, torch.arange(num_rows))]}

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        rows = dataloader.dataset
        if not hasattr(rows, "__len__"):
            raise TypeError(f"The evaluation set must be map-style, with a length; got a {type(rows).__name__}.")
        anchor = self.model.config.anchor
        embeds, owners = self.embed_for_retrieval(rows)
        matched = self._match(embeds, owners, len(rows))
        metrics = {
            "loss": self._evaluation_loss(matched),
            "num_clips": len(rows),
            **retrieval_metrics(embeds, anchor, owners, torch.arange(len(rows))),
            **alignment_metrics(matched, anchor),
        }
        metrics = {f"{metric_key_prefix}_{key}": value for key, value in metrics.items()}
        return EvalLoopOutput(predictions=embeds, label_ids=owners, metrics=metrics, num_samples=len(rows))

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        if metric_key_prefix == "eval":
            self.last_metrics = metrics
            rows = self.eval_dataset if eval_dataset is None else eval_dataset
            sets = rows.values() if isinstance(rows, dict) else [rows]
            training_rows = getattr(self.train_dataset, "rows", None)
            self.evaluated_on_training_rows = any(rows is training_rows for rows in sets)
        return metrics

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        dataset: str | None = None,
        **kwargs,
    ) -> None:
        """
        Write `README.md` into the output folder: the results of the last `evaluate()`, pictures that lie there, how to
        use the model, and how it was trained. `dataset` says on what. What else
        [`~transformers.Trainer.create_model_card`] takes is not used.
        """
        if self.is_world_process_zero():
            tags = [tags] if isinstance(tags, str) else tags
            card = build_model_card(self, model_name, dataset, language=language, license=license, tags=tags)
            card.save(Path(self.args.output_dir) / "README.md")

    def _evaluation_loss(self, matched: dict[str, torch.Tensor]) -> float:
        """Mean loss of batches of the evaluation's size, always by `args.measure`, so that it compares over time."""
        losses, weights = [], []
        temperature = self.model.temperature.detach().float().cpu()
        batches = [vectors.split(self.args.eval_batch_size) for vectors in matched.values()]
        for batch in zip(*batches, strict=True):
            anchor, others = self._split(dict(zip(matched, batch, strict=True)))
            smoothing = self.args.label_smoothing_factor
            losses.append(contrastive_loss(anchor, others, temperature, self.args.measure, smoothing, gather="none"))
            weights.append(len(anchor))
        weights = torch.tensor(weights, dtype=torch.float32)
        return ((torch.stack(losses) * weights).sum() / weights.sum()).item()
