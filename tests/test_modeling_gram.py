import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    ViTConfig,
    ViTModel,
    Wav2Vec2Config,
    Wav2Vec2Model,
)
from transformers.modeling_outputs import BaseModelOutput

from transformers_gram import GramConfig, GramModel, contrastive_loss, paper_modalities, small_config, volume


ALL_FIVE = ("text", "video", "audio", "subtitle", "depth")


class SensorConfig(PreTrainedConfig):
    model_type = "test_sensor"
    channels: int = 32
    hidden_size: int = 24


class SensorModel(PreTrainedModel):
    config_class = SensorConfig
    main_input_name = "values"

    def __init__(self, config):
        super().__init__(config)
        self.conv = nn.Conv1d(config.channels, config.hidden_size, kernel_size=5, stride=2)
        self.post_init()

    def forward(self, values):
        return BaseModelOutput(last_hidden_state=self.conv(values.mT).mT)


@pytest.fixture(scope="module", autouse=True)
def registered_sensor():
    AutoConfig.register("test_sensor", SensorConfig, exist_ok=True)
    AutoModel.register(SensorConfig, SensorModel, exist_ok=True)


def tiny_model(modalities=("text", "video", "audio"), seed=0):
    torch.manual_seed(seed)
    return GramModel(small_config(50, modalities, hidden_size=16, num_layers=1)).eval()


def tiny_batch(modalities=("text", "video", "audio"), batch_size=3, frames=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(5, 50, (batch_size, 7), generator=generator)
    attention_mask = torch.ones_like(tokens)
    attention_mask[-1, 4:] = 0
    pixels = torch.randn(batch_size, frames, 3, 64, 64, generator=generator)
    batch = {
        "text": {"input_ids": tokens, "attention_mask": attention_mask},
        "video": {"pixel_values_videos": pixels},
        "audio": {"input_features": torch.randn(batch_size, 64, 200, generator=generator)},
        "subtitle": {"subtitle_input_ids": tokens.flip(0), "subtitle_attention_mask": attention_mask.flip(0)},
        "depth": {"depth_pixel_values_videos": pixels.flip(0)},
    }
    return {key: value for name in modalities for key, value in batch[name].items()}


def test_embeds_are_unit_vectors_and_volumes_are_theirs():
    outputs = tiny_model()(**tiny_batch())
    assert list(outputs.embeds) == ["text", "audio", "video"]
    for embeds in outputs.embeds.values():
        assert embeds.shape == (3, 64)
        torch.testing.assert_close(embeds.norm(dim=-1), torch.ones(3))
    expected = volume(outputs.embeds["text"], outputs.embeds["video"], outputs.embeds["audio"])
    torch.testing.assert_close(outputs.volumes, expected)
    assert outputs.loss is None


def test_loss_and_that_every_parameter_learns():
    model = tiny_model(ALL_FIVE).train()
    outputs = model(**tiny_batch(ALL_FIVE), return_loss=True)
    anchor, *others = outputs.embeds.values()
    torch.testing.assert_close(outputs.loss, contrastive_loss(anchor, others, model.temperature))
    outputs.loss.backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("present", [("text", "video"), ("text", "audio"), ("text",), ("video", "audio"), ALL_FIVE])
def test_the_modalities_of_the_batch_are_the_ones_embedded(present):
    model = tiny_model(ALL_FIVE)
    outputs = model(**tiny_batch(present))
    assert set(outputs.embeds) == set(present)
    assert (outputs.volumes is not None) == ("text" in present and len(present) > 1)
    everything = model(**tiny_batch(ALL_FIVE))
    for name, embeds in outputs.embeds.items():
        torch.testing.assert_close(embeds, everything.embeds[name])


def test_frames_are_encoded_one_by_one_and_averaged():
    model, batch = tiny_model(), tiny_batch(frames=4)
    pixels = batch["pixel_values_videos"]
    outputs = model.get_video_features(pixel_values_videos=pixels)
    assert outputs.last_hidden_state.shape[:2] == (12, 17)
    hidden = model.encoders["vision"](pixels.flatten(0, 1)).last_hidden_state[:, 0].view(3, 4, -1).mean(1)
    expected = nn.functional.normalize(model.projections["video"](hidden), dim=-1)
    torch.testing.assert_close(outputs.pooler_output, expected)
    shuffled = model.get_video_features(pixel_values_videos=pixels[:, [2, 0, 3, 1]])
    torch.testing.assert_close(shuffled.pooler_output, expected)


def test_padding_does_not_change_a_text():
    modalities = paper_modalities("text", "video")
    modalities["text"]["pooling"] = "mean"
    config = small_config(50, ("text", "video"), hidden_size=16, num_layers=1).to_dict()
    model = GramModel(GramConfig(**{**config, "modalities": modalities})).eval()
    tokens = torch.tensor([[5, 6, 7]])
    padded = torch.tensor([[5, 6, 7, 0, 0]])
    expected = model.get_text_features(input_ids=tokens).pooler_output
    mask = torch.tensor([[1, 1, 1, 0, 0]])
    torch.testing.assert_close(model.get_text_features(input_ids=padded, attention_mask=mask).pooler_output, expected)
    assert not torch.allclose(model.get_text_features(input_ids=padded).pooler_output, expected)


def test_hidden_states_and_attentions_on_request():
    model = tiny_model()
    model.set_attn_implementation("eager")
    batch = tiny_batch()
    outputs = model.get_text_features(input_ids=batch["input_ids"], output_hidden_states=True, output_attentions=True)
    assert len(outputs.hidden_states) == 2 and len(outputs.attentions) == 1


def test_return_dict_false_gives_a_tuple():
    model, batch = tiny_model(), tiny_batch()
    volumes, embeds, temperature = model(**batch, return_dict=False)
    outputs = model(**batch)
    torch.testing.assert_close(volumes, outputs.volumes)
    assert embeds.keys() == outputs.embeds.keys() and torch.equal(temperature, model.temperature)


@pytest.mark.parametrize("modalities", [("text", "video", "audio"), ALL_FIVE])
def test_save_and_load_is_bit_exact(modalities, tmp_path):
    model, batch = tiny_model(modalities), tiny_batch(modalities)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    for loaded in (GramModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is GramModel
        outputs, expected = loaded.eval()(**batch), model(**batch)
        assert torch.equal(outputs.volumes, expected.volumes)
        assert list(outputs.embeds) == list(expected.embeds)
        assert all(torch.equal(outputs.embeds[name], expected.embeds[name]) for name in modalities)
        assert loaded.config.modalities == model.config.modalities
    assert isinstance(AutoConfig.from_pretrained(tmp_path), GramConfig)


def test_loading_reports_no_missing_or_unexpected_keys(tmp_path):
    tiny_model().save_pretrained(tmp_path)
    _, report = GramModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    # Trainer resumes with a plain load_state_dict.
    assert load_file(tmp_path / "model.safetensors").keys() == tiny_model().state_dict().keys()


def sensor_config(**kwargs):
    modalities = {
        **paper_modalities("text", "video"),
        "sensor": {"encoder": "sensor", "pooling": "mean", "inputs": {"sensor_values": "values"}},
    }
    small = small_config(50, ("text", "video"), hidden_size=16, num_layers=1)
    return GramConfig(
        text_config=small.text_config,
        vision_config=small.vision_config,
        modalities=modalities,
        projection_dim=32,
        **{"sensor_config": SensorConfig(), **kwargs},
    )


def test_an_invented_modality_needs_configuration_only(tmp_path):
    model = GramModel(sensor_config()).eval()
    batch = {**tiny_batch(("text", "video")), "sensor_values": torch.randn(3, 40, 32)}
    outputs = model(**batch, return_loss=True)
    assert outputs.embeds["sensor"].shape == (3, 32) and outputs.volumes.shape == (3, 3)
    outputs.loss.backward()
    assert model.encoders["sensor"].conv.weight.grad.norm() > 0

    model.save_pretrained(tmp_path)
    loaded = GramModel.from_pretrained(tmp_path).eval()
    assert isinstance(loaded.config.sensor_config, SensorConfig)
    assert torch.equal(loaded(**batch).volumes, outputs.volumes)
    features = loaded.get_modality_features("sensor", sensor_values=batch["sensor_values"])
    assert torch.equal(features.pooler_output, outputs.embeds["sensor"])


def test_the_sensor_can_be_the_anchor():
    model = GramModel(sensor_config(anchor="sensor"))
    outputs = model(**tiny_batch(("text", "video")), sensor_values=torch.randn(3, 40, 32), return_loss=True)
    assert list(outputs.embeds) == ["sensor", "text", "video"] and outputs.loss.isfinite()


def test_shared_encoders_are_one_module():
    model = tiny_model(ALL_FIVE)
    assert sorted(model.encoders) == ["audio", "text", "vision"]
    assert sorted(model.projections) == sorted(ALL_FIVE)
    assert {"BertLayer", "ViTLayer", "ASTLayer"} <= model._no_split_modules


def encoder_parts():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return {
        "text": BertModel(BertConfig(vocab_size=50, **size)),
        "vision": ViTModel(ViTConfig(image_size=64, patch_size=16, **size)),
    }


def test_from_encoders_keeps_their_weights(tmp_path):
    parts = encoder_parts()
    parts["text"].save_pretrained(tmp_path / "text")
    model = GramModel.from_encoders(text=str(tmp_path / "text"), vision=parts["vision"], projection_dim=8).eval()
    assert list(model.config.modalities) == ["text", "video"]
    for name, part in parts.items():
        state = part.state_dict()
        for key, value in model.encoders[name].state_dict().items():
            assert torch.equal(value, state[key])
    assert not any("pooler" in name for name, _ in model.named_parameters())
    assert model.config.name_or_path == ""
    model.save_pretrained(tmp_path / "gram")
    batch = tiny_batch(("text", "video"))
    assert torch.equal(GramModel.from_pretrained(tmp_path / "gram").eval()(**batch).volumes, model(**batch).volumes)


def test_from_encoders_takes_other_architectures():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPVisionModel(CLIPVisionConfig(image_size=64, patch_size=16, **size))
    modalities = paper_modalities("text", "video")
    modalities["video"]["pooling"] = "pooler"
    model = GramModel.from_encoders(text=encoder_parts()["text"], vision=clip)
    assert model.config.modalities["video"] == modalities["video"]
    model(**tiny_batch(("text", "video")), return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    text = BertConfig(vocab_size=50, **size)
    model = GramModel(GramConfig(text_config=text, vision_config=resnet, modalities=modalities))
    assert model(**tiny_batch(("text", "video"))).volumes.shape == (3, 3)


def test_a_raw_waveform_encoder_with_its_mask():
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    waves = Wav2Vec2Config(**size, conv_dim=[8, 8], conv_stride=[5, 4], conv_kernel=[10, 8], feat_extract_norm="layer")
    waves.num_conv_pos_embeddings, waves.num_conv_pos_embedding_groups = 4, 2
    model = GramModel.from_encoders(text=encoder_parts()["text"], audio=Wav2Vec2Model(waves)).eval()
    assert model.config.modalities["audio"]["inputs"] == {
        "input_features": "input_values",
        "audio_attention_mask": "attention_mask",
    }
    sound = torch.randn(1, 800)

    def embed(padding, with_mask):
        padded = torch.cat([sound, torch.zeros(1, padding)], dim=1)
        mask = {"audio_attention_mask": (torch.arange(800 + padding) < 800).long()[None]} if with_mask else {}
        return model.get_audio_features(input_features=padded, **mask).pooler_output

    torch.testing.assert_close(embed(400, True), embed(800, True), rtol=0, atol=1e-4)
    assert (embed(400, False) - embed(800, False)).norm() > 1e-2


def test_sdpa_equals_eager():
    model, batch = tiny_model(), tiny_batch()
    assert model.config._attn_implementation == "sdpa"
    expected = model(**batch).embeds
    model.set_attn_implementation("eager")
    assert model.encoders["vision"].config._attn_implementation == "eager"
    for name, embeds in model(**batch).embeds.items():
        torch.testing.assert_close(embeds, expected[name], rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = tiny_model().train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.encoders["text"].is_activation_checkpointing
        model(**tiny_batch(), return_loss=True).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_bf16():
    model, batch = tiny_model(), tiny_batch()
    expected = model(**batch)
    outputs = model.to(torch.bfloat16)(**batch)
    assert outputs.volumes.dtype == torch.float32
    torch.testing.assert_close(outputs.embeds["video"].float(), expected.embeds["video"], rtol=0.1, atol=0.03)


def test_initial_weights():
    model = GramModel(small_config(50))
    assert model.temperature.item() == pytest.approx(0.07)
    assert model.projections["text"].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_unknown_inputs_and_modalities_are_named():
    model, batch = tiny_model(), tiny_batch()
    with pytest.raises(TypeError, match=r"\['pixel_values'\].*pixel_values_videos"):
        model(**batch, pixel_values=batch["pixel_values_videos"])
    with pytest.raises(ValueError, match=r"'smell'.*\['text', 'audio', 'video'\]"):
        model.get_modality_features("smell", input_ids=batch["input_ids"])
    with pytest.raises(TypeError, match=r"'text' has no input \['input_features'\]"):
        model.get_text_features(input_features=batch["input_features"])
    with pytest.raises(ValueError, match="needs one of"):
        model.get_text_features()
    with pytest.raises(ValueError, match="no modality"):
        model()
    with pytest.raises(TypeError, match="output_attentions"):
        model(**batch, output_attentions=True)
    with pytest.raises(ValueError, match="'text' and another modality"):
        model(input_ids=batch["input_ids"], return_loss=True)


def test_wrong_configurations_say_what_is_wrong():
    good = paper_modalities("text", "video")
    bert = {"model_type": "bert"}
    for modalities, kwargs, message in [
        ({"text": good["text"]}, {}, "At least two"),
        (good, {"anchor": "smell"}, "'smell' is not among"),
        ({**good, "x": {"encoder": "x", "inputs": {"a": "a"}, "pooling": "max"}}, {}, "'x': 'pooling'"),
        ({**good, "x": {"encoder": "x", "pooling": "mean"}}, {}, "'x' needs 'inputs'"),
        ({**good, "x": {"encoder": "x", "pooling": "mean", "inputs": ["a"]}}, {}, "'x' needs 'inputs'"),
        ({**good, "x.y": {"encoder": "x", "pooling": "mean", "inputs": {"a": "a"}}}, {}, "'x.y'.*'eeg_left'"),
        (good, {"temperature_init_value": -1.0}, "temperature_init_value"),
        (good, {"text_config": {"model_type": "t5"}}, "encoder-decoder 't5'"),
        ({**good, "x": {**good["text"], "layers": 3}}, {}, r"'x' has unknown keys \['layers'\]"),
        ({**good, "x": {**good["text"]}}, {}, "'input_ids' belongs to both 'text' and 'x'"),
        ({**good, "x": {"encoder": "x", "inputs": {"a": "a"}, "pooling": "mean"}}, {}, "`x_config`"),
        (good, {"audio_config": bert}, r"No modality uses \['audio_config'\]"),
        (good, {"text_config": {"model_type": "nonsense"}}, "nonsense"),
    ]:
        with pytest.raises(ValueError, match=message):
            GramConfig(modalities=modalities, **kwargs)
    with pytest.raises(ValueError, match="smell"):
        paper_modalities("text", "smell")
    with pytest.raises(Exception, match="projection_dim"):
        GramConfig(projection_dim="512")
    with pytest.raises(ValueError, match=r"\['audio'\]"):
        GramModel.from_encoders(modalities=paper_modalities("text", "audio"), text=encoder_parts()["text"])


def test_default_configuration():
    config = GramConfig()
    assert (config.text_config.model_type, config.vision_config.model_type) == ("bert", "vit")
    assert list(config.modalities) == ["text", "audio", "video"]
    assert GramConfig(modalities=paper_modalities("text", "audio")).vision_config is None
