"""Pictures of a training run. Importing this module needs `pip install transformers_gram[plots]`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .model_card import PICTURES
from .volume import volume


try:
    from matplotlib import colormaps
    from matplotlib.colors import is_color_like
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE
except ImportError as error:
    raise ImportError("Pictures need matplotlib and scikit-learn: pip install transformers_gram[plots]") from error

if TYPE_CHECKING:
    from .trainer import GramTrainer

MARKERS = "o^sDPX*v"
MATRIX_ROWS = 32
PROJECTION_ROWS = 500


def _figure(*size: float) -> Figure:
    return Figure(figsize=size, dpi=120, layout="constrained")


def plot_history(log_history: list[dict[str, Any]], anchor: str, path: str | Path, switch_step: int = 0) -> None:
    """
    Loss, and recall at 1 in both directions, over the steps of `trainer.state.log_history`.

    `switch_step` marks where the warm-up measure ended.
    """

    def draw(axes, key, *style, **settings):
        points = [(entry["step"], entry[key]) for entry in log_history if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), *style, **settings)

    figure = _figure(10, 3.8)
    left, right = figure.subplots(1, 2, sharex=True)
    draw(left, "loss", color="tab:blue")
    left.set(title="Training loss", xlabel="step", xlim=(0, None), ylim=(0, None))
    lines = {
        f"volume, {anchor} → clip": (f"eval_volume_{anchor}_to_clip_R@1", "tab:blue", "-"),
        f"volume, clip → {anchor}": (f"eval_volume_clip_to_{anchor}_R@1", "tab:blue", "--"),
        f"mean cosine, {anchor} → clip": (f"eval_cosine_{anchor}_to_clip_R@1", "tab:orange", "-"),
        f"mean cosine, clip → {anchor}": (f"eval_cosine_clip_to_{anchor}_R@1", "tab:orange", "--"),
    }
    for label, (key, color, style) in lines.items():
        draw(right, key, style, color=color, label=label, marker=".")
    right.set(title="Recall at 1 (%)", xlabel="step", ylim=(0, 101))
    if right.lines:
        right.legend(frameon=False, fontsize=9, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        if switch_step:
            axes.axvline(switch_step, color="gray", linewidth=0.8, linestyle=":")
    if switch_step:
        left.annotate(
            " warm-up ends",
            (switch_step, 0.97),
            xycoords=("data", "axes fraction"),
            color="gray",
            va="top",
            fontsize=9,
        )
    figure.savefig(path)


def plot_volume_matrix(volumes: torch.Tensor, names: list[str], anchor: str, path: str | Path) -> None:
    """Heatmap of an `[N, N]` volume matrix; a dark diagonal is what training is for. `names` label up to 40 rows."""
    figure = _figure(7.5, 6.5)
    axes = figure.subplots()
    image = axes.imshow(volumes.numpy(), cmap="viridis", vmin=0, vmax=max(1.0, volumes.max().item()))
    figure.colorbar(image, label="volume (0: perfect agreement)", shrink=0.8)
    axes.set(title=f"Volume of every {anchor} with every clip", xlabel="clip", ylabel=anchor)
    axes.spines[:].set_visible(False)
    if len(names) <= 40:
        size = 9 if len(names) <= 12 else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    if len(names) <= 12:
        for (row, column), value in np.ndenumerate(volumes.numpy()):
            axes.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.7 else "black")
    figure.savefig(path)


def plot_projection(embeds: dict[str, torch.Tensor], labels: list[str], path: str | Path) -> None:
    """
    t-SNE of matched embeddings (`[N, d]` each) in the plane: a colour per label, a marker per modality.

    Vectors are compared by their cosine; matched tuples that agree come out as small clusters. Labels that are names
    of colours are drawn in theirs.
    """
    vectors = torch.cat(list(embeds.values())).numpy()
    perplexity = min(30, max(1, (len(vectors) - 1) // 3))
    points = TSNE(perplexity=perplexity, metric="cosine", init="random", random_state=0).fit_transform(vectors)
    classes, size = sorted(set(labels)), 30 if len(labels) > 40 else 80
    palette = colormaps["tab10" if len(classes) <= 10 else "tab20"]
    color_of = {name: palette(index % palette.N) for index, name in enumerate(classes)}
    if all(is_color_like(name) for name in classes):
        color_of = {name: name for name in classes}

    figure = _figure(8.5, 6.5)
    axes = figure.subplots()
    edge = {"edgecolors": "gray", "linewidths": 0.4}
    for marker, (name, group) in zip(MARKERS, zip(embeds, np.split(points, len(embeds)), strict=True), strict=False):
        axes.scatter(*group.T, c=[color_of[label] for label in labels], marker=marker, s=size, alpha=0.8, **edge)
        axes.scatter([], [], c="black", marker=marker, label=name)
    modality_legend = axes.legend(title="modality", loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    if len(classes) <= 20:
        handles = [axes.scatter([], [], color=color_of[name], marker="s", label=name, **edge) for name in classes]
        axes.legend(handles=handles, title="class", loc="lower left", bbox_to_anchor=(1, 0), frameon=False)
        axes.add_artist(modality_legend)
    axes.set(title="Embeddings (t-SNE)", xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    figure.savefig(path)


def save_pictures(trainer: "GramTrainer", rows: Any) -> None:
    """
    The three pictures of a training run, into its output folder, where the model card finds them.

    `rows` is the evaluation set, embedded anew, by all processes together. The matrix shows its first 32 rows, the
    projection its first 500. A column `label` colours it; without, every clip of up to 20 has its own colour.
    """
    folder, anchor = Path(trainer.args.output_dir), trainer.model.config.anchor
    matched = trainer.embed_matched(rows)
    if not trainer.is_world_process_zero():
        return
    curves, matrix, projection = (folder / name for name in PICTURES)
    names = [str(row.get("id", index)) for index, row in enumerate(rows)]
    default = names if len(rows) <= 20 else ["all"] * len(rows)
    labels = [
        str(row["label"]) if row.get("label") is not None else other for row, other in zip(rows, default, strict=True)
    ]
    plot_history(trainer.state.log_history, anchor, curves, switch_step=trainer.warmup_measure_steps)
    some = {name: vectors[:MATRIX_ROWS] for name, vectors in matched.items()}
    plot_volume_matrix(volume(some.pop(anchor), *some.values()), names[:MATRIX_ROWS], anchor, matrix)
    some = {name: vectors[:PROJECTION_ROWS] for name, vectors in matched.items()}
    plot_projection(some, labels[:PROJECTION_ROWS], projection)
