"""The model card that [`GramTrainer`] writes."""

from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .retrieval import RECALL_AT


if TYPE_CHECKING:
    from .trainer import GramTrainer

PICTURES = {
    "training_curves.png": "Loss and recall over the training",
    "volume_matrix.png": "Volume of every anchor with every clip, first rows of the evaluation set",
    "embeddings.png": "t-SNE of the embeddings",
}

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

RESULTS = """On the {num_clips} clips {which}, recall in percent:

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


def results_table(metrics: dict[str, float], anchor: str, prefix: str = "eval") -> str:
    """Markdown table of recall and median rank by every score, in both directions, from `trainer.evaluate()`."""
    start = f"{prefix}_cosine_of_{anchor}_and_"
    others = [key.removeprefix(start) for key in metrics if key.startswith(start)]
    labels = {"volume": f"volume({anchor}; {', '.join(others)})"}
    if len(others) > 1:
        labels |= {f"cosine_{name}": f"cosine({anchor}, {name})" for name in others}
    labels["cosine"] = "mean cosine" if len(others) > 1 else f"cosine({anchor}, {others[0]})"
    names = [*(f"R@{k}" for k in RECALL_AT), "median rank"]
    lines = [f"| scored by | direction | {' | '.join(names)} |", "|---|---" + "|---:" * len(names) + "|"]
    for score, label in labels.items():
        for direction, arrow in ((f"{anchor}_to_clip", f"{anchor} → clip"), (f"clip_to_{anchor}", f"clip → {anchor}")):
            key = f"{prefix}_{score}_{direction}"
            cells = [f"{metrics[f'{key}_R@{k}']:.1f}" for k in RECALL_AT] + [f"{metrics[f'{key}_median_rank']:g}"]
            lines.append(f"| {label} | {arrow} | {' | '.join(cells)} |")
    return "\n".join(lines)


def evaluation_prefixes(metrics: dict[str, float] | None) -> list[str]:
    """`["eval"]`, or `["eval_one", "eval_two"]` of a trainer with several evaluation sets."""
    return [key.removesuffix("_num_clips") for key in metrics or {} if key.endswith("_num_clips")]


def _eval_results(trainer: "GramTrainer", dataset: str) -> list[EvalResult]:
    anchor = trainer.model.config.anchor
    return [
        EvalResult(
            task_type="retrieval",
            dataset_type=dataset,
            dataset_name=dataset,
            dataset_config=prefix.removeprefix("eval").removeprefix("_") or None,
            metric_type=f"R@{k}",
            metric_name=f"R@{k}, {direction.replace('_', ' ')}",
            metric_value=round(trainer.last_metrics[f"{prefix}_volume_{direction}_R@{k}"], 2),
        )
        for prefix in evaluation_prefixes(trainer.last_metrics)
        for direction in (f"{anchor}_to_clip", f"clip_to_{anchor}")
        for k in RECALL_AT
    ]


def _results(trainer: "GramTrainer") -> str:
    metrics = trainer.last_metrics
    sections = []
    for prefix in evaluation_prefixes(metrics):
        start = f"{prefix}_cosine_of_"
        cosines = {key.removeprefix(start): value for key, value in metrics.items() if key.startswith(start)}
        sections.append(
            RESULTS.format(
                num_clips=metrics[f"{prefix}_num_clips"],
                which="it was trained on"
                if trainer.evaluated_on_training_rows
                else " ".join(["for evaluation", *prefix.split("_")[1:]]),
                table=results_table(metrics, trainer.model.config.anchor, prefix),
                alignment=metrics[f"{prefix}_alignment"],
                cosines=", ".join(f"{pair.replace('_', ' ')} {value:.2f}" for pair, value in cosines.items()),
                degenerate=100 * metrics[f"{prefix}_degenerate_rate"],
            )
        )
    return "\n".join(sections) or "Not evaluated yet.\n"


def _training_table(trainer: "GramTrainer") -> str:
    args, state, warmup = trainer.args, trainer.state, trainer.warmup_measure_steps
    rows = {
        "measure": f"{args.measure}, after {warmup} steps with {args.warmup_measure}" if warmup else args.measure,
        "label smoothing": args.label_smoothing_factor,
        "steps": state.global_step,
        "epochs": f"{state.epoch or 0:g}",
        "training rows": len(trainer.train_dataset) if trainer.train_dataset is not None else 0,
        "batch size": args.train_batch_size * args.world_size * args.gradient_accumulation_steps,
        "learning rate": f"{args.learning_rate:g}, {args.lr_scheduler_type.value} schedule",
        "seed": args.seed,
    }
    return "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def build_model_card(
    trainer: "GramTrainer", model_name: str | None = None, dataset: str | None = None, **metadata
) -> ModelCard:
    """
    The card of a trainer's model: results of its last `evaluate()`, and the pictures in its output folder.

    `metadata` (`language`, `license`, `tags`) goes into the card's header. Results on the training set do not: they
    would be listed as results of the model.
    """
    config, folder = trainer.model.config, Path(trainer.args.output_dir)
    title, dataset = model_name or folder.resolve().name, dataset or "unknown data"
    results = None if trainer.evaluated_on_training_rows else _eval_results(trainer, dataset) or None
    header = ModelCardData(
        library_name="transformers_gram",
        pipeline_tag="feature-extraction",
        model_name=title,
        eval_results=results,
        **{**metadata, "tags": ["gram", "multimodal", "retrieval", *config.modalities, *(metadata.get("tags") or [])]},
    )
    pictures = [f"![{caption}]({file})\n" for file, caption in PICTURES.items() if (folder / file).is_file()]
    names = list(config.modalities)
    return ModelCard(
        CARD.format(
            metadata=header.to_yaml(),
            title=title,
            modalities=f"{', '.join(names[:-1])} and {names[-1]}",
            projection_dim=config.projection_dim,
            anchor=config.anchor,
            dataset=dataset,
            parameters=trainer.model.num_parameters() / 1e6,
            results=_results(trainer),
            pictures="".join(f"\n{picture}" for picture in pictures),
            path=getattr(trainer, "hub_model_id", None) or trainer.args.hub_model_id or trainer.args.output_dir,
            example=", ".join(EXAMPLE_INPUTS[name] for name in names if name in EXAMPLE_INPUTS),
            arguments=_training_table(trainer),
        )
    )
