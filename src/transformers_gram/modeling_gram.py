"""GRAM model: 2 to n modalities in one space, compared by the volume that their embeddings span."""

import copy
import inspect
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput, can_return_tuple

from .configuration_gram import GramConfig, paper_modalities
from .loss import contrastive_loss
from .volume import volume


PASSED_TO_THE_ENCODER = ("output_attentions", "output_hidden_states")

POOLED_BY_THEMSELVES = {
    "clip_text_model",
    "clip_vision_model",
    "siglip_text_model",
    "siglip_vision_model",
    "siglip2_vision_model",
    "swin",
    "swinv2",
    "convnext",
    "convnextv2",
    "resnet",
}


@dataclass
class GramOutput(ModelOutput):
    """
    Output of [`GramModel`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*): contrastive loss of the batch, with `return_loss=True`.
        volumes (`torch.FloatTensor` of shape `(anchors, candidates)`, *optional*): volume of every anchor with every
            candidate, smaller is closer; when the anchor and at least one other modality are in the batch.
        embeds (`dict[str, torch.FloatTensor]`): unit vectors `(batch_size, projection_dim)` of the modalities in the
            batch.
        temperature (`torch.FloatTensor` of shape `()`): the learned temperature. An output, so that a loss outside of
            the model (see [`contrastive_loss`]) trains it under DistributedDataParallel too.
    """

    loss: torch.FloatTensor | None = None
    volumes: torch.FloatTensor | None = None
    embeds: dict[str, torch.FloatTensor] | None = None
    temperature: torch.FloatTensor | None = None


def build_encoder(config: GramConfig, name: str) -> PreTrainedModel:
    """Encoder `name` with random weights, without a pooling layer that no modality reads (it would never train)."""
    encoder_config = config.encoder_config(name)
    poolings = {spec["pooling"] for spec in config.modalities.values() if spec["encoder"] == name}
    encoder_class = AutoModel._model_mapping[type(encoder_config)]
    encoder_class = encoder_class[0] if isinstance(encoder_class, tuple) else encoder_class
    optional_pooler = "add_pooling_layer" in inspect.signature(encoder_class.__init__).parameters
    kwargs = {"add_pooling_layer": False} if optional_pooler and "pooler" not in poolings else {}
    return AutoModel.from_config(encoder_config, **kwargs)


def hidden_size(encoder_config) -> int:
    """Size of the vectors an encoder gives; convolutional ones list a size per stage, of which the last counts."""
    size = getattr(encoder_config, "hidden_size", None) or getattr(encoder_config, "hidden_sizes", [None])[-1]
    if size is None:
        raise ValueError(f"{type(encoder_config).__name__} has neither `hidden_size` nor `hidden_sizes`.")
    return size


def pool(outputs: ModelOutput, pooling: str, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """[B, L, H] hidden states (or the encoder's own pooled output) -> [B, H]."""
    if pooling == "pooler":
        return outputs.pooler_output.flatten(1)
    hidden_states = outputs.last_hidden_state
    if pooling == "first":
        return hidden_states[:, 0]
    if attention_mask is None:
        return hidden_states.mean(dim=1)
    if attention_mask.shape != hidden_states.shape[:2]:
        raise ValueError(
            f"The attention mask {list(attention_mask.shape)} does not fit the {list(hidden_states.shape[:2])} hidden "
            "states that the encoder made of it; use another pooling, or leave the mask out of `inputs`."
        )
    weights = attention_mask.unsqueeze(-1).to(hidden_states.dtype)
    return (hidden_states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)


class GramPreTrainedModel(PreTrainedModel):
    config_class = GramConfig
    base_model_prefix = "gram"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    is_aligned = False
    """Whether the weights came from a GRAM checkpoint, so that training them needs no warm-up measure."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        loaded = super().from_pretrained(*args, **kwargs)
        (loaded[0] if isinstance(loaded, tuple) else loaded).is_aligned = True
        return loaded

    @torch.no_grad()
    def _init_weights(self, module):
        super()._init_weights(module)
        if isinstance(module, GramModel):
            init.constant_(module.temperature, self.config.temperature_init_value)

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """
        As [`~transformers.PreTrainedModel.save_pretrained`], but under the names of this model's own parameters.

        By default transformers writes some encoders (ViT, AST) under the names of their oldest checkpoints, which
        `Trainer` does not find again when it resumes: it would go on with fresh weights.
        """
        super().save_pretrained(save_directory, *args, save_original_format=save_original_format, **kwargs)


class GramModel(GramPreTrainedModel):
    """
    Embeds every modality of a batch into one space and compares the anchor with all others at once (arXiv 2412.11959).

    Example:

    ```python
    >>> import torch
    >>> from transformers_gram import GramModel, small_config

    >>> model = GramModel(small_config(vocab_size=100))
    >>> outputs = model(input_ids=torch.tensor([[1, 5, 2]]), pixel_values_videos=torch.zeros(1, 2, 3, 64, 64))
    >>> list(outputs.embeds), outputs.volumes.shape
    (['text', 'video'], torch.Size([1, 1]))
    ```
    """

    def __init__(self, config: GramConfig):
        super().__init__(config)
        # Direct children: transformers asks only those for their tied weights, and for what must not be split.
        for name in config.encoder_names:
            setattr(self, f"{name}_encoder", build_encoder(config, name))
        for name, spec in config.modalities.items():
            size = hidden_size(config.encoder_config(spec["encoder"]))
            setattr(self, f"{name}_projection", nn.Linear(size, config.projection_dim, bias=False))
        self.temperature = nn.Parameter(torch.tensor(config.temperature_init_value))
        self.post_init()

    @property
    def encoders(self) -> dict[str, PreTrainedModel]:
        """The encoders by name: encoder "text" is the submodule `text_encoder`."""
        return {name: getattr(self, f"{name}_encoder") for name in self.config.encoder_names}

    @property
    def projections(self) -> dict[str, nn.Linear]:
        """The projections by modality: that of "video" is the submodule `video_projection`."""
        return {name: getattr(self, f"{name}_projection") for name in self.config.modalities}

    @classmethod
    def from_encoders(
        cls,
        modalities: dict[str, dict[str, Any]] | Iterable[str] | None = None,
        anchor: str = "text",
        projection_dim: int = 512,
        **encoders: str | PreTrainedModel,
    ) -> "GramModel":
        """
        A model that starts from pretrained encoders, with new projections.

        Args:
            modalities (`dict` or names, *optional*): see [`GramConfig`]. Names are those of [`paper_modalities`], each
                read through its encoder's main input, and pooled by the encoder itself where that is known to have no
                class token or a trained pooling head (CLIP, SigLIP, Swin, ConvNeXt, ResNet). Default: text, video and
                audio, those whose encoder is given.
            anchor (`str`), projection_dim (`int`): see [`GramConfig`].
            encoders: by name (`text=`, `vision=`, `audio=`, or what `modalities` calls them) a Hub id, a folder, or a
                model whose weights are copied.

        Raises:
            ValueError: if an encoder is missing or unused, or is a composite model without one hidden size (pass
                its part then, e.g. a `CLIPVisionModel`).

        Example:

        ```python
        model = GramModel.from_encoders(
            text="google-bert/bert-base-uncased",
            vision="google/vit-base-patch16-224-in21k",
            audio="MIT/ast-finetuned-audioset-10-10-0.4593",
        )
        ```
        """
        loaded = {
            name: encoder if isinstance(encoder, PreTrainedModel) else AutoModel.from_pretrained(encoder)
            for name, encoder in encoders.items()
        }
        if modalities is None:
            available = {"text": "text", "video": "vision", "audio": "audio"}
            modalities = [name for name, encoder in available.items() if encoder in loaded]
        if not isinstance(modalities, dict):
            modalities = paper_modalities(*modalities)
            for spec in modalities.values():
                if (encoder := loaded.get(spec["encoder"])) is not None:
                    spec["inputs"][next(iter(spec["inputs"]))] = encoder.main_input_name
                    if encoder.config.model_type in POOLED_BY_THEMSELVES:
                        spec["pooling"] = "pooler"
                    if hasattr(encoder, "_get_feature_vector_attention_mask"):
                        spec["inputs"]["audio_attention_mask"] = "attention_mask"
        if missing := {spec["encoder"] for spec in modalities.values()} ^ loaded.keys():
            raise ValueError(
                f"Encoders and `modalities` must name the same encoders; they differ in {sorted(missing)}."
            )
        configs = {f"{name}_config": copy.deepcopy(encoder.config) for name, encoder in loaded.items()}
        model = cls(GramConfig(modalities=modalities, anchor=anchor, projection_dim=projection_dim, **configs))
        for name, encoder in loaded.items():
            mismatch = model.encoders[name].load_state_dict(encoder.state_dict(), strict=False)
            unexpected = [key for key in mismatch.unexpected_keys if not key.startswith("pooler.")]
            if mismatch.missing_keys or unexpected:
                raise ValueError(
                    f"The weights of {type(encoder).__name__} do not fit the encoder {name!r}, a "
                    f"{type(model.encoders[name]).__name__}: missing {mismatch.missing_keys}, unexpected {unexpected}."
                )
        return model

    def get_input_embeddings(self):
        return self.encoders[self.config.modalities[self.config.anchor]["encoder"]].get_input_embeddings()

    def set_input_embeddings(self, value):
        self.encoders[self.config.modalities[self.config.anchor]["encoder"]].set_input_embeddings(value)

    @can_return_tuple
    def get_modality_features(self, modality: str, **inputs) -> BaseModelOutputWithPooling:
        """
        Encode one modality.

        Args:
            modality (`str`): a name of `config.modalities`.
            inputs: the modality's tensors under their batch names, e.g. `input_ids`; `[batch, frames, ...]` where the
                modality has frames. `output_attentions` and `output_hidden_states` go to the encoder.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: the encoder's outputs (`[batch * frames,
            ...]` where the modality has frames), with `pooler_output` the unit vectors `(batch_size, projection_dim)`.

        Raises:
            ValueError: for an unknown modality, or if none of its inputs is given.
            TypeError: for an input that is not the modality's.
        """
        if modality not in self.config.modalities:
            raise ValueError(f"Unknown modality {modality!r}; this model has {list(self.config.modalities)}.")
        spec = self.config.modalities[modality]
        passed = {key: inputs.pop(key) for key in PASSED_TO_THE_ENCODER if key in inputs}
        inputs = {key: value for key, value in inputs.items() if value is not None}
        if unknown := inputs.keys() - spec["inputs"].keys():
            raise TypeError(f"Modality {modality!r} has no input {sorted(unknown)}; it takes {list(spec['inputs'])}.")
        if not inputs:
            raise ValueError(f"Modality {modality!r} needs one of {list(spec['inputs'])}; got none.")

        encoder = self.encoders[spec["encoder"]]
        arguments = {spec["inputs"][key]: value for key, value in inputs.items()}
        arguments = {k: v.to(self.dtype) if v.is_floating_point() else v for k, v in arguments.items()}
        batch_size = next(iter(arguments.values())).shape[0]
        if spec.get("frames"):
            arguments = {key: value.flatten(0, 1) for key, value in arguments.items()}
        outputs = encoder(**arguments, **passed)
        mask = arguments.get("attention_mask")
        if mask is not None and hasattr(encoder, "_get_feature_vector_attention_mask"):
            # Encoders of raw waveforms (Wav2Vec2) take a mask of samples and give fewer hidden states.
            mask = encoder._get_feature_vector_attention_mask(outputs.last_hidden_state.shape[1], mask)
        pooled = pool(outputs, spec["pooling"], mask)
        if spec.get("frames"):
            pooled = pooled.unflatten(0, (batch_size, -1)).mean(dim=1)
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=nn.functional.normalize(self.projections[modality](pooled), dim=-1),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def get_text_features(self, **inputs) -> BaseModelOutputWithPooling:
        """[`get_modality_features`] of "text": `input_ids` and `attention_mask` `(batch_size, sequence_length)`."""
        return self.get_modality_features("text", **inputs)

    def get_video_features(self, **inputs) -> BaseModelOutputWithPooling:
        """[`get_modality_features`] of "video": `pixel_values_videos` `(batch_size, frames, 3, height, width)`."""
        return self.get_modality_features("video", **inputs)

    def get_audio_features(self, **inputs) -> BaseModelOutputWithPooling:
        """[`get_modality_features`] of "audio": `input_features`, e.g. `(batch_size, time, mel_bins)`."""
        return self.get_modality_features("audio", **inputs)

    @can_return_tuple
    def forward(self, *, return_loss: bool | None = None, **inputs: torch.Tensor) -> GramOutput:
        """
        Embed the modalities that the batch holds; a batch without audio is a text-video batch.

        Args:
            return_loss (`bool`, *optional*): also compute the contrastive loss over the volumes, the i-th items of all
                modalities belonging together.
            inputs: tensors of any of the modalities under their batch names (see [`GramProcessor`]). For an encoder's
                hidden states and attentions see `get_modality_features`.

        Raises:
            ValueError: if the batch holds no modality, or with `return_loss` not the anchor and one more.
            TypeError: for an input that no modality has.
        """
        known = {key for spec in self.config.modalities.values() for key in spec["inputs"]}
        if unknown := inputs.keys() - known:
            raise TypeError(f"No modality has an input {sorted(unknown)}; this model takes {sorted(known)}.")
        present = self.config.present_modalities(inputs)
        if not present:
            raise ValueError(f"The batch holds no modality; this model takes {sorted(known)}.")
        embeds = {}
        for name in present:
            own = {key: inputs.get(key) for key in self.config.modalities[name]["inputs"]}
            embeds[name] = self.get_modality_features(name, **own, return_dict=True).pooler_output

        anchor = embeds.get(self.config.anchor)
        others = [embeds[name] for name in present if name != self.config.anchor]
        comparable = anchor is not None and len(others) > 0
        loss = None
        if return_loss:
            if not comparable:
                raise ValueError(
                    f"The loss needs the anchor {self.config.anchor!r} and another modality; got {present}."
                )
            loss = contrastive_loss(anchor, others, self.temperature, gather="none")
        volumes = volume(anchor, *others) if comparable else None
        # A copy: DistributedDataParallel takes a parameter that is itself an output for one that is not used.
        return GramOutput(loss=loss, volumes=volumes, embeds=embeds, temperature=self.temperature.clone())


__all__ = ["GramModel", "GramOutput", "GramPreTrainedModel"]
