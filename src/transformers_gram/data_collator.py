"""Rows of a data set to batches: media are decoded here, in the DataLoader's workers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import BatchFeature

from .configuration_gram import GramConfig
from .media import MediaError
from .processing_gram import GramProcessor, sampling_rng


SEED_COLUMN = "sampling_seed"


def row_name(row: dict[str, Any]) -> str:
    return f"row {row['id']!r}" if "id" in row else "a row without `id`"


class SeededRows(Dataset):
    """
    The rows of a training set with a column `sampling_seed`: a function of the run's seed, the epoch and the index.

    Captions, frames and sound windows are drawn from it. So they do not depend on the workers, and a resumed run draws
    what an undisturbed one would have. The epoch lives in shared memory, to reach workers that outlive an epoch.
    """

    def __init__(self, rows: Any, seed: int):
        if not hasattr(rows, "__len__"):
            raise TypeError(f"The training set must be map-style, with a length; got a {type(rows).__name__}.")
        self.rows, self.seed = rows, seed
        self.epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int):
        self.epoch.fill_(epoch)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        sequence = np.random.SeedSequence([self.seed, int(self.epoch), index])
        return {**self.rows[index], SEED_COLUMN: int(sequence.generate_state(1, np.uint32)[0])}


@dataclass
class GramDataCollator:
    """
    Rows to the batch that [`GramModel`] takes.

    A row holds, per modality of the model, a column of that name: `text` (a caption, or a list of captions that belong
    to the clip), `subtitle`, `video`, `depth`, `audio` (paths, bytes, arrays; see [`GramProcessor`]). For any other
    modality it holds the encoder's inputs as arrays or tensors of one shape, under the batch names that the
    configuration gives them. Modalities for which the rows have no column are not in the batch.

    With a column `sampling_seed` (training, see [`SeededRows`]) a caption, the frames and the sound window are drawn
    from it; without, they are the first caption, the middle frames and the middle window.

    Raises:
        ValueError (`MediaError` for media): naming the row's `id`, if a value is missing, empty or unreadable.
    """

    processor: GramProcessor
    config: GramConfig

    def __call__(self, rows: list[dict[str, Any]]) -> BatchFeature:
        columns = {key for row in rows for key in row}
        loaders = {"text": self._text, "subtitle": self._text, "video": self._video, "depth": self._video}
        loaders["audio"] = self._audio
        raw, tensors = {}, {}
        for name, spec in self.config.modalities.items():
            if name in loaders:
                if name in columns:
                    raw[name] = [self._load(loaders[name], row, name) for row in rows]
            else:
                for key in columns.intersection(spec["inputs"]):
                    tensors[key] = self._stack([self._load(self._tensor, row, key) for row in rows], key)
        if "video" in raw:
            raw["videos"] = raw.pop("video")
        if not raw and not tensors:
            raise ValueError(
                f"The columns {sorted(columns)} hold none of the modalities {list(self.config.modalities)}."
            )
        return BatchFeature({**(self.processor(**raw) if raw else {}), **tensors})

    @staticmethod
    def _load(loader, row, column):
        value = row.get(column)
        if value is None:
            raise ValueError(f"{row_name(row)} has no `{column}`; remove the row, or the column from all rows.")
        rng = sampling_rng(row[SEED_COLUMN], column) if SEED_COLUMN in row else None
        try:
            return loader(value, rng)
        except (ValueError, TypeError, KeyError, OSError) as error:
            kind = MediaError if isinstance(error, (MediaError, OSError)) else ValueError
            raise kind(f"{row_name(row)}, `{column}`: {error}") from error

    @staticmethod
    def _text(value, rng):
        captions = [value] if isinstance(value, str) else list(value)
        if not captions or not all(isinstance(caption, str) and caption.strip() for caption in captions):
            raise ValueError(f"needs a text that is not empty; got {value!r}.")
        return captions[0 if rng is None else int(rng.integers(len(captions)))]

    def _video(self, value, rng):
        return self.processor.video_processor.load(value, rng)

    def _audio(self, value, rng):
        return self.processor.load_audio(value, rng)

    @staticmethod
    def _tensor(value, rng):
        return torch.as_tensor(value)

    @staticmethod
    def _stack(tensors, key):
        if len(shapes := {tuple(tensor.shape) for tensor in tensors}) > 1:
            raise ValueError(f"The rows' `{key}` differ in shape: {sorted(shapes)}; bring them to one shape first.")
        return torch.stack(tensors)
