"""GRAM model configuration."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


DEFAULT_ENCODERS = {"text": "bert", "vision": "vit", "audio": "audio-spectrogram-transformer"}

POOLINGS = ("first", "mean", "pooler")


def _text(prefix: str = "") -> dict[str, Any]:
    inputs = {f"{prefix}{name}": name for name in ("input_ids", "attention_mask")}
    return {"encoder": "text", "pooling": "first", "inputs": inputs}


def _video(prefix: str = "") -> dict[str, Any]:
    inputs = {f"{prefix}pixel_values_videos": "pixel_values"}
    return {"encoder": "vision", "pooling": "first", "frames": True, "inputs": inputs}


def paper_modalities(*names: str) -> dict[str, dict[str, Any]]:
    """
    The declarations of the paper's modalities: any of "text", "video", "audio", "subtitle", "depth".

    Subtitles share the text encoder, depth maps the vision encoder.
    """
    known = {
        "text": _text(),
        "video": _video(),
        "audio": {"encoder": "audio", "pooling": "mean", "inputs": {"input_features": "input_values"}},
        "subtitle": _text("subtitle_"),
        "depth": _video("depth_"),
    }
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"Unknown modalities {unknown}; the paper has {list(known)}. Declare others by hand.")
    return {name: spec for name, spec in known.items() if name in names}


@strict
class GramConfig(PreTrainedConfig):
    r"""
    Configuration of a [`GramModel`]: encoders, and the modalities that are embedded with them.

    Modalities are data: thermal images, EEG or IMU need an entry in `modalities` and the configuration of their
    encoder, no code. An encoder is any architecture that `AutoModel` can build, configured under `<encoder>_config`;
    several modalities may share one.

    Args:
        text_config, vision_config, audio_config (`PreTrainedConfig` or `dict`, *optional*):
            The encoders. BERT, ViT and AST where a modality asks for them and nothing is given.
        modalities (`dict[str, dict]`, *optional*):
            For every modality: `encoder`, the name before `_config`; `inputs`, from the names of the batch to the
            argument names of the encoder; `pooling`, how an item's hidden states become one vector: "first" token,
            "mean" over the tokens (those of the `attention_mask` if the encoder gets one) or "pooler" (the encoder's
            own `pooler_output`); and `frames`, true if the inputs have a further axis after the batch axis
            (`[batch, frames, ...]`) whose items are encoded one by one and averaged. Kept in one order: the anchor
            first, then by name. Default: text, video and audio.
        anchor (`str`): the modality that is compared with all the others together.
        projection_dim (`int`): size of the common space.
        temperature_init_value (`float`): start of the learned temperature.
        initializer_range (`float`): standard deviation of the projections' initial weights.
        kwargs: `<encoder>_config` of further encoders.

    Example:

    ```python
    >>> from transformers_gram import GramConfig, paper_modalities

    >>> config = GramConfig(modalities=paper_modalities("text", "video", "audio", "subtitle"))
    >>> config.anchor, list(config.modalities), sorted(config.sub_configs)
    ('text', ['text', 'audio', 'subtitle', 'video'], ['audio_config', 'text_config', 'vision_config'])
    ```
    """

    model_type = "gram"

    text_config: PreTrainedConfig | dict | None = None
    vision_config: PreTrainedConfig | dict | None = None
    audio_config: PreTrainedConfig | dict | None = None
    modalities: dict[str, dict[str, Any]] | None = None
    anchor: str = "text"
    projection_dim: int = 512
    temperature_init_value: float = 0.07
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        if self.modalities is None:
            self.modalities = paper_modalities("text", "video", "audio")
        self._check_modalities()
        if self.temperature_init_value <= 0:
            raise ValueError(f"`temperature_init_value` must be positive; got {self.temperature_init_value}.")
        # A config file sorts its keys: one fixed order, so that a reloaded model stacks its vectors in the same one.
        self.modalities = dict(sorted(self.modalities.items(), key=lambda item: (item[0] != self.anchor, item[0])))
        self._build_encoder_configs(kwargs)
        super().__post_init__(**kwargs)

    @property
    def sub_configs(self) -> dict[str, type]:
        """The encoders' configs by attribute name; transformers walks them, e.g. to choose the attention."""
        return {f"{name}_config": AutoConfig for name in self.encoder_names}

    @property
    def encoder_names(self) -> list[str]:
        return list(dict.fromkeys(spec["encoder"] for spec in self.modalities.values()))

    def encoder_config(self, name: str) -> PreTrainedConfig:
        return getattr(self, f"{name}_config")

    def present_modalities(self, batch: Any) -> list[str]:
        """The modalities of which a batch (any mapping) holds an input, in the order of `modalities`."""
        return [
            name for name, spec in self.modalities.items() if any(batch.get(key) is not None for key in spec["inputs"])
        ]

    def _check_modalities(self):
        if len(self.modalities) < 2:
            raise ValueError(f"At least two modalities are needed to align; got {list(self.modalities)}.")
        if self.anchor not in self.modalities:
            raise ValueError(f"The anchor {self.anchor!r} is not among the modalities {list(self.modalities)}.")
        owners = {}
        for name, spec in self.modalities.items():
            if unknown := spec.keys() - {"encoder", "pooling", "frames", "inputs"}:
                raise ValueError(f"Modality {name!r} has unknown keys {sorted(unknown)}.")
            if not name.isidentifier() or not str(spec.get("encoder")).isidentifier():
                raise ValueError(f"Modality {name!r} and its 'encoder' need names like 'eeg_left'; got {spec}.")
            if not isinstance(spec.get("inputs"), dict) or not spec["inputs"]:
                raise ValueError(f"Modality {name!r} needs 'inputs', a dict that is not empty; got {spec}.")
            if spec.get("pooling") not in POOLINGS:
                raise ValueError(
                    f"Modality {name!r}: 'pooling' must be one of {POOLINGS}; got {spec.get('pooling')!r}."
                )
            for key in spec["inputs"]:
                if key in owners:
                    raise ValueError(f"The input {key!r} belongs to both {owners[key]!r} and {name!r}.")
                owners[key] = name

    def _build_encoder_configs(self, kwargs: dict[str, Any]):
        for name in self.encoder_names:
            key = f"{name}_config"
            given = kwargs.pop(key, None) or getattr(self, key, None)
            model_type = given.get("model_type") if isinstance(given, dict) else None
            model_type = model_type or DEFAULT_ENCODERS.get(name)
            if model_type is None and not isinstance(given, PreTrainedConfig):
                raise ValueError(f"The encoder {name!r} needs `{key}`, with a `model_type` that AutoConfig knows.")
            if not isinstance(given, PreTrainedConfig):
                given, _ = SubConfigSpec(AutoConfig, model_type=model_type).create_subconfig(key, given)
            if given.is_encoder_decoder:
                raise ValueError(
                    f"`{key}` is the encoder-decoder {given.model_type!r}; register its encoder as a model."
                )
            setattr(self, key, given)
        declared = [f"{name}_config" for name in DEFAULT_ENCODERS]
        unused = [key for key in declared if key not in self.sub_configs]
        if unused := [key for key in unused if getattr(self, key) is not None]:
            raise ValueError(f"No modality uses {unused}: name the encoder in `modalities` or leave the config out.")


__all__ = ["GramConfig", "paper_modalities"]
