"""The model card that [`GramTrainer`] writes."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .plots import PICTURES
from .retrieval import RECALL_AT


if TYPE_CHECKING:
    from .trainer import GramTrainer

CARD = """---
{metadata}
---

# {title}

A [GRAM](https://arxiv.org/abs/2412.11959) model: it embeds {modalities} into one space of {projection_dim} dimensions
and compares the {anchor} with all the others at once, by the volume that their vectors span. It has {parameters:.1f}
million parameters and was trained with `transformers_gram` on {dataset}.

## Results

{results}{pictures}
## Use

```python
from transformers_gram import GramModel, GramProcessor

model = GramModel.from_pretrained("{path}")
processor = GramProcessor.from_pretrained("{path}")
batch = processor({example})
volumes = model(**batch).volumes  # [captions, clips], smaller is closer
```

## Training

| argument | value |
|---|---|
{arguments}

## Citation

```bibtex
@inproceedings{{cicchetti2025gramian,
  title = {{Gramian Multimodal Representation Learning and Alignment}},
  author = {{Cicchetti, Giordano and Grassucci, Eleonora and Sigillo, Luigi and Comminiello, Danilo}},
  booktitle = {{International Conference on Learning Representations}},
  year = {{2025}}
}}
```
"""

RESULTS = """On {num_clips} clips that were kept for evaluation, recall in percent:

{table}

Alignment (1 - mean volume of matched tuples): {alignment:.3f}. Mean cosines of matched pairs: {cosines}. Degenerate
candidates (whose own vectors span nothing): {degenerate:.1f} %.
"""

EXAMPLE_INPUTS = {
    "text": 'text=["a dog is barking"]',
    "video": 'videos=["dog.mp4"]',
    "audio": 'audio=["dog.mp4"]',
    "subtitle": 'subtitle=["good boy"]',
    "depth": 'depth=["dog_depth.mp4"]',
}


def scores_and_labels(anchor: str, others: list[str]) -> dict[str, str]:
    """The scores of [`retrieval_metrics`] with the words that tables use for them."""
    pairs = {f"cosine_{name}": f"cosine({anchor}, {name})" for name in others} if len(others) > 1 else {}
    mean = "mean cosine" if len(others) > 1 else f"cosine({anchor}, {others[0]})"
    return {"volume": f"volume({anchor}; {', '.join(others)})", **pairs, "cosine": mean}


def results_table(metrics: dict[str, float], anchor: str, others: list[str], prefix: str = "eval") -> str:
    """Markdown table of recall and median rank by every score, in both directions, from `trainer.evaluate()`."""
    names = [*(f"R@{k}" for k in RECALL_AT), "median rank"]
    lines = [f"| scored by | direction | {' | '.join(names)} |", "|---|---" + "|---:" * len(names) + "|"]
    for score, label in scores_and_labels(anchor, others).items():
        for direction, arrow in ((f"{anchor}_to_clip", f"{anchor} → clip"), (f"clip_to_{anchor}", f"clip → {anchor}")):
            key = f"{prefix}_{score}_{direction}"
            cells = [f"{metrics[f'{key}_R@{k}']:.1f}" for k in RECALL_AT] + [f"{metrics[f'{key}_median_rank']:g}"]
            lines.append(f"| {label} | {arrow} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _eval_results(trainer: "GramTrainer", dataset: str) -> list[EvalResult]:
    anchor = trainer.model.config.anchor
    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=dataset,
            dataset_name=dataset,
            metric_type=f"R@{k}",
            metric_name=f"R@{k}, {direction.replace('_', ' ')}",
            metric_value=round(trainer.last_metrics[f"eval_volume_{direction}_R@{k}"], 2),
        )
        for direction in (f"{anchor}_to_clip", f"clip_to_{anchor}")
        for k in RECALL_AT
    ]


def _results(trainer: "GramTrainer") -> str:
    metrics = trainer.last_metrics
    if metrics is None:
        return "Not evaluated yet.\n"
    anchor, *others = trainer.model.config.modalities
    cosines = {key.removeprefix("eval_cosine_of_"): value for key, value in metrics.items() if "_cosine_of_" in key}
    return RESULTS.format(
        num_clips=metrics["eval_num_clips"],
        table=results_table(metrics, anchor, others),
        alignment=metrics["eval_alignment"],
        cosines=", ".join(f"{pair.replace('_', ' ')} {value:.2f}" for pair, value in cosines.items()),
        degenerate=100 * metrics["eval_degenerate_rate"],
    )


def _training_table(trainer: "GramTrainer") -> str:
    args, state = trainer.args, trainer.state
    rows = {
        "measure": f"{args.measure}, after {trainer.warmup_measure_steps} steps with {args.warmup_measure}",
        "label smoothing": args.label_smoothing_factor,
        "steps": state.global_step,
        "epochs": f"{state.epoch or 0:g}",
        "training rows": len(trainer.train_dataset) if trainer.train_dataset is not None else 0,
        "batch size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value} schedule",
        "seed": args.seed,
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def build_model_card(trainer: "GramTrainer", model_name: str | None = None, dataset: str | None = None) -> ModelCard:
    """The card of a trainer's model: results of its last `evaluate()`, and the pictures in its output folder."""
    config, folder = trainer.model.config, Path(trainer.args.output_dir)
    title, dataset = model_name or folder.resolve().name, dataset or "unknown data"
    metadata = ModelCardData(
        library_name="transformers_gram",
        pipeline_tag="feature-extraction",
        tags=["gram", "multimodal", "retrieval", *config.modalities],
        model_name=title,
        eval_results=_eval_results(trainer, dataset) if trainer.last_metrics else None,
    )
    pictures = [f"![{caption}]({file})\n" for file, caption in PICTURES.items() if (folder / file).is_file()]
    names = list(config.modalities)
    return ModelCard(
        CARD.format(
            metadata=metadata.to_yaml(),
            title=title,
            modalities=f"{', '.join(names[:-1])} and {names[-1]}",
            projection_dim=config.projection_dim,
            anchor=config.anchor,
            dataset=dataset,
            parameters=trainer.model.num_parameters() / 1e6,
            results=_results(trainer),
            pictures="".join(f"\n{picture}" for picture in pictures),
            path=trainer.args.hub_model_id or trainer.args.output_dir,
            example=", ".join(EXAMPLE_INPUTS[name] for name in names if name in EXAMPLE_INPUTS),
            arguments=_training_table(trainer),
        )
    )
