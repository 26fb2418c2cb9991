import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from test_modeling_gram import SensorConfig, SensorModel, sensor_config
from transformers import AutoConfig, AutoModel, TrainingArguments, set_seed

from transformers_gram import (
    GramModel,
    GramTrainer,
    GramTrainingArguments,
    alignment_metrics,
    contrastive_loss,
    retrieval_metrics,
    small_config,
)
from transformers_gram.trainer import last_complete_checkpoint


@pytest.fixture
def make_trainer(processor, sample_clips, tmp_path):
    def make(model=None, train=None, test=None, **kwargs):
        defaults = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 8,
            "per_device_eval_batch_size": 4,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        set_seed(0)
        if model is None:
            model = GramModel(small_config(len(processor.tokenizer), hidden_size=16, num_layers=1))
        return GramTrainer(
            model,
            GramTrainingArguments(**{**defaults, **kwargs}),
            processing_class=processor,
            train_dataset=sample_clips["train"] if train is None else train,
            eval_dataset=sample_clips["test"] if test is None else test,
        )

    return make


def test_every_parameter_changes(make_trainer):
    trainer = make_trainer()
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    unchanged = [name for name, value in trainer.model.state_dict().items() if torch.equal(value, before[name])]
    # The attention does not change if a number is added to all its scores, so its key biases get no gradient.
    assert [name for name in unchanged if "key.bias" not in name and "k_proj.bias" not in name] == []
    log = trainer.state.log_history[0]
    assert 0 < log["alignment"] < 1 and log["temperature"] == pytest.approx(0.07, abs=0.02)


def test_a_new_process_gives_the_bits_of_the_trained_model(make_trainer, sample_clips, tmp_path):
    trainer = make_trainer()
    trainer.train()
    trainer.save_model(tmp_path / "model")
    rows = sample_clips["test"][:4]
    inputs = {"text": [captions[0] for captions in rows["text"]], "videos": rows["video"], "audio": rows["audio"]}
    with torch.no_grad():
        expected = trainer.model.eval()(**trainer.processing_class(**inputs)).embeds
    torch.save((inputs, expected), tmp_path / "expected.pt")
    script = """
import sys, torch, transformers_gram
from transformers import AutoModel, AutoProcessor
torch.set_num_threads(2)
inputs, expected = torch.load(sys.argv[1] + "/expected.pt")
model, processor = (auto.from_pretrained(sys.argv[1] + "/model") for auto in (AutoModel, AutoProcessor))
embeds = model(**processor(**inputs)).embeds
assert embeds.keys() == expected.keys() and all(torch.equal(embeds[name], expected[name]) for name in expected)
"""
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


def test_training_lowers_the_loss(make_trainer):
    trainer = make_trainer(max_steps=40, logging_steps=10, per_device_train_batch_size=16, label_smoothing_factor=0.0)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[1] < losses[0] - 0.2


def test_the_loss_warms_up_with_cosine(make_trainer):
    trainer = make_trainer(max_steps=8)
    used = []
    original = trainer.training_step

    def spy(*args, **kwargs):
        used.append(trainer.current_measure)
        return original(*args, **kwargs)

    trainer.training_step = spy
    trainer.train()
    assert used == ["cosine"] * 4 + ["volume"] * 4


def test_a_loaded_model_needs_no_warm_up(make_trainer, tmp_path):
    fresh = make_trainer()
    fresh.state.max_steps = 100
    assert fresh.warmup_measure_steps == 50
    fresh.model.save_pretrained(tmp_path / "model")
    loaded = make_trainer(GramModel.from_pretrained(tmp_path / "model"))
    loaded.state.max_steps = 100
    assert loaded.warmup_measure_steps == 0
    config = AutoConfig.from_pretrained(tmp_path / "model")
    rebuilt = make_trainer(AutoModel.from_config(config))
    rebuilt.state.max_steps = 100
    assert rebuilt.warmup_measure_steps == 50
    loaded.args.warmup_measure_ratio = 0.1
    assert loaded.warmup_measure_steps == 10


def test_the_loss_is_that_of_the_arguments(make_trainer):
    trainer = make_trainer(measure="cosine", label_smoothing_factor=0.3)
    batch = next(iter(trainer.get_train_dataloader()))
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    anchor, *others = outputs.embeds.values()
    expected = contrastive_loss(anchor, others, outputs.temperature, "cosine", label_smoothing=0.3)
    torch.testing.assert_close(loss, expected)


def test_accumulated_gradients_are_means(make_trainer):
    one_step = {"max_steps": 1, "learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0, "weight_decay": 0}
    trainer = make_trainer(**one_step, gradient_accumulation_steps=2)
    before = trainer.model.projections["video"].weight.detach().clone()
    trainer.train()
    update = before - trainer.model.projections["video"].weight.detach()

    by_hand = make_trainer()
    by_hand.state.max_steps = 1
    loader = by_hand.get_train_dataloader()
    assert len(loader) == 2
    for batch in loader:
        (by_hand.compute_loss(by_hand.model, batch) / 2).backward()
    torch.testing.assert_close(update, by_hand.model.projections["video"].weight.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("workers", [{}, {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}])
def test_evaluation_embeds_every_clip_and_every_caption(make_trainer, sample_clips, workers):
    trainer = make_trainer(test=sample_clips["train"].select(range(7)), **workers)
    metrics = trainer.evaluate()
    assert metrics["eval_num_clips"] == 7
    embeds, owners = trainer.embed_for_retrieval(trainer.eval_dataset)
    assert embeds["text"].shape == (21, 64) and embeds["video"].shape == (7, 64)
    assert owners.tolist() == [index for index in range(7) for _ in range(3)]

    rows = trainer.eval_dataset
    batch = trainer.processing_class(
        text=[caption for captions in rows["text"] for caption in captions],
        videos=list(rows["video"]),
        audio=list(rows["audio"]),
    )
    with torch.no_grad():
        direct = trainer.model.eval()(**batch).embeds
    for name, vectors in direct.items():
        torch.testing.assert_close(embeds[name], vectors, rtol=1e-4, atol=1e-4)
    expected = retrieval_metrics(direct, "text", owners, torch.arange(7))
    matched = {**direct, "text": direct["text"][::3]}
    expected |= alignment_metrics(matched, "text")
    for key, value in expected.items():
        assert metrics[f"eval_{key}"] == pytest.approx(value, abs=1e-2), key
    torch.testing.assert_close(trainer.embed_matched(rows)["text"], direct["text"][::3], rtol=1e-4, atol=1e-4)


def test_several_evaluation_sets_and_the_best_model(make_trainer, sample_clips):
    sets = {"one": sample_clips["test"], "two": sample_clips["train"].select(range(16))}
    trainer = make_trainer(
        test=sets,
        eval_strategy="steps",
        eval_steps=1,
        save_strategy="steps",
        save_steps=1,
        load_best_model_at_end=True,
        metric_for_best_model="eval_one_alignment",
    )
    trainer.train()
    evaluations = [entry["eval_one_alignment"] for entry in trainer.state.log_history if "eval_one_alignment" in entry]
    assert len(set(evaluations)) == 2 and trainer.state.best_metric == max(evaluations)
    metrics = trainer.evaluate()
    assert metrics["eval_one_alignment"] == pytest.approx(max(evaluations), abs=1e-6)
    assert {"eval_one_alignment", "eval_two_alignment"} <= metrics.keys()
    trainer.create_model_card(license="apache-2.0", tags="mine", dataset="clips")
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    assert card.data.license == "apache-2.0" and "mine" in card.data.tags
    assert {result.dataset_config for result in card.data.eval_results} == {"one", "two"}
    assert "On the 9 clips for evaluation one" in card.text and "16 clips" in card.text


def test_results_on_the_training_clips_are_called_that(make_trainer, sample_clips):
    trainer = make_trainer(test=sample_clips["train"])
    trainer.evaluate()
    trainer.create_model_card()
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    assert "On the 16 clips it was trained on" in card.text and card.data.eval_results is None


def test_data_with_fewer_modalities_than_the_model(make_trainer, sample_clips, caplog):
    rows = {split: data.remove_columns("audio") for split, data in sample_clips.items()}
    with caplog.at_level("WARNING", logger="transformers_gram.trainer"):
        trainer = make_trainer(train=rows["train"], test=rows["test"])
    assert "no columns for ['audio']" in caplog.text
    trainer.train()
    trainer.evaluate()
    trainer.create_model_card()
    card = ModelCard.load(Path(trainer.args.output_dir) / "README.md")
    assert "| volume(text; video) | text → clip |" in card.text and "| cosine(text, video) |" in card.text


def test_what_the_trainer_does_not_take(make_trainer, sample_clips, processor, tmp_path):
    model = GramModel(small_config(50, hidden_size=16, num_layers=1))
    args = GramTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    with pytest.raises(TypeError, match="GramTrainingArguments; got TrainingArguments"):
        GramTrainer(model, TrainingArguments(output_dir=str(tmp_path)), processing_class=processor)
    with pytest.raises(TypeError, match="processing_class"):
        GramTrainer(model, args)
    with pytest.raises(TypeError, match="compute_metrics"):
        GramTrainer(model, args, processing_class=processor, compute_metrics=print)
    with pytest.raises(TypeError, match=r"map-style.*generator"):
        GramTrainer(model, args, processing_class=processor, train_dataset=(row for row in []))
    with pytest.raises(ValueError, match=r"row 'test-0000' has no `text`"):
        make_trainer(test=[dict(sample_clips["test"][0], text=None)]).evaluate()
    with pytest.raises(ValueError, match="two rows at least"):
        make_trainer(per_device_train_batch_size=1).train()


def test_the_temperature_comes_back_from_zero(make_trainer):
    trainer = make_trainer(max_steps=3)
    trainer.model.temperature.data.fill_(-1.0)
    trainer.train()
    assert trainer.model.temperature.item() >= 1e-3


def test_optimizer_groups(make_trainer):
    trainer = make_trainer(weight_decay=0.1, encoder_learning_rates='{"vision": 1e-5}')
    optimizer = trainer.create_optimizer()
    names = {parameter: name for name, parameter in trainer.model.named_parameters()}
    settings = {names[p]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert settings.keys() == set(names.values())
    assert settings["temperature"] == (1e-2, 0)
    assert settings["video_projection.weight"] == (1e-2, 0.1)
    vision = {value for name, value in settings.items() if name.startswith("vision_encoder.")}
    assert vision == {(1e-5, 0.1), (1e-5, 0)}
    with pytest.raises(ValueError, match=r"\['smell'\].*'vision'"):
        make_trainer(encoder_learning_rates={"smell": 1.0}).create_optimizer()


def test_a_training_set_smaller_than_a_batch_is_an_error(make_trainer):
    with pytest.raises(ValueError, match=r"16 rows, fewer than one batch of 32.*per_device_train_batch_size"):
        make_trainer(per_device_train_batch_size=32).train()


def test_wrong_arguments():
    for kwargs, message in [
        ({"measure": "area"}, "`measure` must be one of"),
        ({"warmup_measure": "area"}, "`warmup_measure`"),
        ({"gather": "some"}, "`gather`"),
        ({"warmup_measure_ratio": 2.0}, "warmup_measure_ratio"),
    ]:
        with pytest.raises(ValueError, match=message):
            GramTrainingArguments(output_dir="unused", **kwargs)


def test_an_invented_modality_trains_by_configuration_only(make_trainer, sample_clips):
    AutoConfig.register("test_sensor", SensorConfig, exist_ok=True)
    AutoModel.register(SensorConfig, SensorModel, exist_ok=True)

    def with_sensor(row, index):
        generator = torch.Generator().manual_seed(index)
        return {"sensor_values": torch.randn(20, 32, generator=generator).tolist()}

    rows = {split: data.map(with_sensor, with_indices=True) for split, data in sample_clips.items()}
    for anchor in ("text", "sensor"):
        config = sensor_config(anchor=anchor)
        config.text_config.vocab_size = 200
        trainer = make_trainer(GramModel(config), train=rows["train"], test=rows["test"])
        before = trainer.model.encoders["sensor"].conv.weight.detach().clone()
        trainer.train()
        assert not torch.equal(trainer.model.encoders["sensor"].conv.weight, before)
        metrics = trainer.evaluate()
        assert 1 <= metrics[f"eval_volume_clip_to_{anchor}_mean_rank"] <= 9
        assert {f"eval_cosine_of_{anchor}_and_video", f"eval_cosine_video_{anchor}_to_clip_R@1"} <= metrics.keys()


def test_half_a_checkpoint_is_not_resumed_from(tmp_path, make_trainer):
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    for step, complete in ((9, True), (100, True), (200, False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if complete:
            (folder / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-300").write_text("a file")
    (tmp_path / "checkpoint-150").mkdir()
    (tmp_path / "checkpoint-150" / "trainer_state.json").write_text('{"epoch": 1')
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    with pytest.raises(ValueError, match="no complete checkpoint to resume from"):
        make_trainer().train(resume_from_checkpoint=True)
