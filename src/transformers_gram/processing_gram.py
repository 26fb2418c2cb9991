"""Processor for GRAM: raw text, video, sound, subtitles and depth to a batch."""

import inspect
from typing import Any

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    AutoFeatureExtractor,
    AutoImageProcessor,
    AutoTokenizer,
    BatchFeature,
    ProcessorMixin,
)
from transformers.video_processing_utils import VideoProcessorMixin

from .media import read_audio
from .video_processing_gram import GramVideoProcessor


def sampling_rng(seed: int, modality: str) -> np.random.Generator:
    """A generator per modality, or caption, frames and sound window would be one draw. Depth goes with the video."""
    streams = {"text": 0, "subtitle": 1, "video": 2, "depth": 2, "audio": 3}
    return np.random.default_rng([seed, streams.get(modality, 4)])


class GramProcessor(ProcessorMixin):
    """
    Tokenizer, video processor and audio feature extractor in one.

    Batch names are those of [`paper_modalities`]: `input_ids` and `attention_mask`, `pixel_values_videos`,
    `input_features` (whatever the feature extractor calls them), `subtitle_input_ids` and `subtitle_attention_mask`,
    `depth_pixel_values_videos`.

    Args:
        tokenizer: any tokenizer; captions and subtitles are cut at its `model_max_length`.
        video_processor ([`GramVideoProcessor`], *optional*): for videos and depth videos.
        feature_extractor (*optional*): any audio feature extractor. Default: [`ASTFeatureExtractor`].
        audio_seconds (`float`, *optional*): longer sounds are cut to a window of this length: the middle one, or a
            random one in training. Without it the feature extractor sees the whole sound (and may cut it itself).

    Example:

    ```python
    processor = GramProcessor.from_pretrained("ispamm/gram")
    batch = processor(text=["a dog is barking"], videos=["dog.mp4"], audio=["dog.mp4"])
    ```
    """

    def __init__(self, tokenizer, video_processor=None, feature_extractor=None, audio_seconds=None):
        if audio_seconds is not None and audio_seconds <= 0:
            raise ValueError(f"`audio_seconds` must be positive; got {audio_seconds}.")
        self.audio_seconds = audio_seconds
        super().__init__(
            tokenizer, video_processor or GramVideoProcessor(), feature_extractor or ASTFeatureExtractor()
        )

    @classmethod
    def from_encoders(
        cls, text: str, vision: str | None = None, audio: str | None = None, num_frames: int = 8, audio_seconds=None
    ) -> "GramProcessor":
        """
        The processor for [`GramModel.from_encoders`]: the tokenizer, the image size and normalisation, and the feature
        extractor that the pretrained encoders (Hub ids or folders) come with.

        Args:
            text, vision, audio (`str`): as for the model; leave out what it has not.
            num_frames (`int`): frames per video. audio_seconds (`float`, *optional*): see [`GramProcessor`].
        """
        video_processor = None
        if vision is not None:
            images = AutoImageProcessor.from_pretrained(vision).to_dict()
            size, crop_size = images["size"], images.get("crop_size") or images["size"]
            if "shortest_edge" in crop_size:
                crop_size = dict.fromkeys(("height", "width"), crop_size["shortest_edge"])
            if "height" not in crop_size:
                raise ValueError(f"{vision} gives images of no fixed size ({crop_size}); build a GramVideoProcessor.")
            keys = ("image_mean", "image_std", "rescale_factor", "do_rescale", "do_normalize")
            kept = {key: images[key] for key in keys if images.get(key) is not None}
            shortest = size.get("shortest_edge") or min(size["height"], size["width"])
            video_processor = GramVideoProcessor(
                num_frames=num_frames, size={"shortest_edge": shortest}, crop_size=crop_size, antialias=True, **kept
            )
        return cls(
            AutoTokenizer.from_pretrained(text),
            video_processor,
            None if audio is None else AutoFeatureExtractor.from_pretrained(audio),
            audio_seconds,
        )

    def check_argument_for_proper_class(self, argument_name, argument):
        # transformers exports a placeholder for the video base class where torchvision is not installed.
        if argument_name != "video_processor":
            return super().check_argument_for_proper_class(argument_name, argument)
        if not isinstance(argument, VideoProcessorMixin):
            raise TypeError(f"`video_processor` must be a video processor; got {type(argument).__name__}.")
        return VideoProcessorMixin

    def load_audio(self, audio: Any, rng: np.random.Generator | None = None) -> np.ndarray:
        """
        One sound as mono float32 `[samples]` at the feature extractor's rate, cut to `audio_seconds`.

        `audio` is a path (of a sound or of a video with sound), bytes, a file object, an array or tensor `[samples]`
        that already has the feature extractor's rate, a dict of `array` and `sampling_rate`, or what `datasets` gives
        for an undecoded one. Signed integers are scaled by their largest value.
        """
        rate = self.feature_extractor.sampling_rate
        if isinstance(audio, dict) and "array" in audio:
            self._check_sampling_rate(audio["sampling_rate"])
            audio = audio["array"]
        if not isinstance(audio, (np.ndarray, torch.Tensor)):
            audio = read_audio(audio, rate)
        samples = audio.detach().cpu().numpy() if isinstance(audio, torch.Tensor) else audio
        if samples.ndim != 1 or len(samples) == 0 or not np.isfinite(samples).all():
            raise ValueError(
                f"A sound must be a mono array [samples], not empty, of finite numbers; got {list(samples.shape)} "
                f"{samples.dtype}. Several sounds go into a list."
            )
        if samples.dtype.kind not in "if":
            raise ValueError(f"A sound must hold floats or signed integers; got {samples.dtype}.")
        scale = np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1
        samples = (samples / scale).astype(np.float32)
        spare = 0 if self.audio_seconds is None else len(samples) - round(self.audio_seconds * rate)
        if spare > 0:
            start = spare // 2 if rng is None else int(rng.integers(spare + 1))
            samples = samples[start : start + len(samples) - spare]
        return samples

    def __call__(
        self,
        text: str | list[str] | None = None,
        videos: Any | None = None,
        audio: Any | None = None,
        subtitle: str | list[str] | None = None,
        depth: Any | None = None,
        sampling_seeds: list[int] | None = None,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        truncation: bool | str = True,
        max_length: int | None = None,
        return_tensors: str = "pt",
        text_kwargs: dict | None = None,
        videos_kwargs: dict | None = None,
        audio_kwargs: dict | None = None,
    ) -> BatchFeature:
        """
        Args:
            text, subtitle (`str` or `list[str]`, *optional*): captions and subtitles, not empty.
            videos, depth (*optional*): a video or a list of them, see [`GramVideoProcessor`].
            audio (*optional*): a sound or a list of them, see `load_audio`.
            sampling_seeds (`list[int]`, *optional*): one per item, to draw random frames and sound windows
                (training). Without it the middle ones are taken.
            sampling_rate (`int`, *optional*): the rate of sounds given as arrays, to be checked.
            padding, truncation, max_length: for the tokenizer.
            return_tensors (`str`): "pt"; a batch for a [`GramModel`] consists of tensors.
            text_kwargs, videos_kwargs, audio_kwargs (`dict`, *optional*): passed to the parts.

        Returns:
            [`BatchFeature`] of tensors for the modalities that were given.

        Raises:
            ValueError: for an empty caption or malformed arrays.
            MediaError, FileNotFoundError: for files that cannot be read.
        """
        counts = {len(given) for given in (videos, depth, audio) if isinstance(given, list)} or {1}
        if sampling_seeds is not None and counts != {len(sampling_seeds)}:
            raise ValueError(f"`sampling_seeds` has {len(sampling_seeds)} entries for {sorted(counts)} items.")
        if return_tensors != "pt":
            raise ValueError(f"`return_tensors` must be 'pt'; got {return_tensors!r}.")
        if sampling_rate is not None:
            self._check_sampling_rate(sampling_rate)
        text_kwargs = {"padding": padding, "truncation": truncation, "max_length": max_length, **(text_kwargs or {})}
        data = {}
        if text is not None:
            data.update(self._tokenize("text", text, text_kwargs))
        if subtitle is not None:
            tokens = self._tokenize("subtitle", subtitle, text_kwargs)
            data.update({f"subtitle_{key}": value for key, value in tokens.items()})
        for prefix, given in (("", videos), ("depth_", depth)):
            if given is not None:
                rngs = None if sampling_seeds is None else [sampling_rng(seed, "video") for seed in sampling_seeds]
                pixels = self.video_processor(given, rngs=rngs, **(videos_kwargs or {}))
                data.update({f"{prefix}{key}": value for key, value in pixels.items()})
        if audio is not None:
            data.update(self._extract_features(audio, sampling_seeds, audio_kwargs))
        if not data:
            raise ValueError("Give at least one of `text`, `videos`, `audio`, `subtitle` and `depth`.")
        return BatchFeature(data)

    def _tokenize(self, name, texts, kwargs):
        texts = [texts] if isinstance(texts, str) else list(texts)
        for index, text in enumerate(texts):
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"`{name}[{index}]` must be a text that is not empty; got {text!r}.")
        return self.tokenizer(texts, **{"return_token_type_ids": False, **kwargs, "return_tensors": "pt"})

    def _check_sampling_rate(self, sampling_rate):
        wanted = self.feature_extractor.sampling_rate
        if sampling_rate != wanted:
            raise ValueError(f"A sound has {sampling_rate} Hz; resample it to {wanted} Hz or give its file.")

    def _extract_features(self, sounds, seeds, kwargs):
        sounds = list(sounds) if isinstance(sounds, (list, tuple)) else [sounds]
        if not sounds:
            raise ValueError("Give at least one sound.")
        rngs = [None] * len(sounds) if seeds is None else [sampling_rng(seed, "audio") for seed in seeds]
        waveforms = [self.load_audio(sound, rng) for sound, rng in zip(sounds, rngs, strict=True)]
        settings = {**(kwargs or {}), "sampling_rate": self.feature_extractor.sampling_rate, "return_tensors": "pt"}
        if len({len(waveform) for waveform in waveforms}) > 1 and "padding" not in settings:
            # Extractors of raw waveforms (Wav2Vec2) pad on request only; spectrogram extractors have their own way.
            padding = inspect.signature(self.feature_extractor.__call__).parameters.get("padding")
            settings |= {"padding": True} if padding is not None and padding.default is False else {}
        features = self.feature_extractor(waveforms, **settings)
        main = self.feature_extractor.model_input_names[0]
        named = {"input_features" if key == main else f"audio_{key}": value for key, value in features.items()}
        return {key: value.float() if value.is_floating_point() else value for key, value in named.items()}

    @property
    def model_input_names(self):
        tokens = ["input_ids", "attention_mask"]
        return [
            *tokens,
            "pixel_values_videos",
            "input_features",
            *(f"subtitle_{name}" for name in tokens),
            "depth_pixel_values_videos",
        ]


__all__ = ["GramProcessor"]
