"""
Train a GRAM model on clips with captions, evaluate it by retrieval, and save it.

Without arguments, a small model learns the sample clips from random weights:

    accelerate launch examples/run_pretrain.py

Your own clips (`transformers_gram.load_annotations` says what the file may look like):

    accelerate launch examples/run_pretrain.py --train_file annotations.json --video_dir clips/

From pretrained encoders:

    accelerate launch examples/run_pretrain.py --train_file annotations.json --video_dir clips/ \
        --text_model google-bert/bert-base-uncased --vision_model google/vit-base-patch16-224-in21k \
        --audio_model MIT/ast-finetuned-audioset-10-10-0.4593 --num_frames 8 --learning_rate 2e-5
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from transformers import HfArgumentParser, set_seed
from transformers.utils import logging

from transformers_gram import (
    GramModel,
    GramProcessor,
    GramTrainer,
    GramTrainingArguments,
    load_annotations,
    load_sample_clips,
    small_config,
    small_processor,
)
from transformers_gram.model_card import results_table
from transformers_gram.plots import save_pictures


logger = logging.get_logger("transformers_gram.run_pretrain")


@dataclass
class ScriptArguments:
    train_file: str | None = field(default=None, metadata={"help": "Annotations to train on. Default: sample clips."})
    eval_file: str | None = field(default=None, metadata={"help": "Annotations to test on. Default: the train_file."})
    video_dir: str | None = field(default=None, metadata={"help": "Folder of videos, found by the exact id."})
    audio_dir: str | None = field(default=None, metadata={"help": "Folder of sounds. Default: the videos' own."})
    depth_dir: str | None = field(default=None, metadata={"help": "Folder of depth videos."})
    modalities: list[str] = field(
        default_factory=lambda: ["text", "video", "audio"],
        metadata={"help": "What to align: text, and any of video, audio, subtitle, depth."},
    )
    model_name_or_path: str | None = field(default=None, metadata={"help": "A GRAM model to continue from."})
    text_model: str | None = field(default=None, metadata={"help": "Pretrained text encoder, Hub id or folder."})
    vision_model: str | None = field(default=None, metadata={"help": "Pretrained vision encoder."})
    audio_model: str | None = field(default=None, metadata={"help": "Pretrained audio encoder."})
    num_frames: int = field(default=2, metadata={"help": "Frames per video, for a new model."})
    audio_seconds: float = field(
        default=10.0,
        metadata={"help": "Longer sounds are cut to a window of this length. (A new small model hears 2 seconds.)"},
    )


DEFAULTS = {
    "output_dir": "outputs/gram",
    "max_steps": 600,
    "per_device_train_batch_size": 64,
    "per_device_eval_batch_size": 64,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "weight_decay": 0.05,
    "logging_steps": 10,
    "eval_strategy": "steps",
    "eval_steps": 100,
    "save_steps": 100,
    "save_total_limit": 2,
    "dataloader_num_workers": 2,
    "dataloader_persistent_workers": True,
    "dataloader_pin_memory": torch.accelerator.is_available(),
}


def load_data(args: ScriptArguments):
    if "text" not in args.modalities:
        raise ValueError(f"--modalities {' '.join(args.modalities)}: this script aligns with captions; add text.")
    folders = {"video": args.video_dir, "audio": args.audio_dir, "depth": args.depth_dir}
    if args.train_file is None:
        if args.eval_file or any(folders.values()):
            raise ValueError("--eval_file and folders of media need a --train_file.")
        clips = load_sample_clips()
        if missing := set(args.modalities) - set(clips["train"].column_names):
            raise ValueError(f"The sample clips have no {sorted(missing)}; choose other --modalities.")
        clips = clips.select_columns(["id", "label", *args.modalities])
        return clips["train"], clips["test"]
    train = load_annotations(args.train_file, folders, args.modalities)
    if args.eval_file is None or Path(args.eval_file).resolve() == Path(args.train_file).resolve():
        logger.warning("No other --eval_file: recall is measured on the clips that were trained on.")
        return train, train
    return train, load_annotations(args.eval_file, folders, args.modalities)


def build_model(args: ScriptArguments, texts: list[str]):
    if args.model_name_or_path:
        model = GramModel.from_pretrained(args.model_name_or_path)
        if missing := set(args.modalities) - set(model.config.modalities):
            raise ValueError(f"{args.model_name_or_path} does not know {sorted(missing)}; choose other --modalities.")
        return model, GramProcessor.from_pretrained(args.model_name_or_path)
    names = {"text": args.text_model, "vision": args.vision_model, "audio": args.audio_model}
    encoders = {name: encoder for name, encoder in names.items() if encoder}
    if encoders and not args.text_model:
        raise ValueError(f"Pretrained {sorted(encoders)} need a --text_model too.")
    if encoders:
        processor = GramProcessor.from_encoders(
            **encoders, num_frames=args.num_frames, audio_seconds=args.audio_seconds
        )
        return GramModel.from_encoders(modalities=args.modalities, **encoders), processor
    processor = small_processor(texts, num_frames=args.num_frames)
    return GramModel(small_config(len(processor.tokenizer), args.modalities)), processor


def parse_arguments():
    parser = HfArgumentParser((ScriptArguments, GramTrainingArguments))
    parser.set_defaults(**DEFAULTS)
    if any(argument.replace("-", "_").startswith("__num_train_epochs") for argument in sys.argv):
        parser.set_defaults(max_steps=-1)
    args, training_args = parser.parse_args_into_dataclasses()
    training_args.dataloader_persistent_workers &= training_args.dataloader_num_workers > 0
    return args, training_args


def main():
    args, training_args = parse_arguments()
    set_seed(training_args.seed)
    with training_args.main_process_first(desc="reading the data"):
        train, test = load_data(args)
    batch = max(1, len(train) // training_args.world_size)
    if batch < training_args.per_device_train_batch_size:
        logger.warning(f"The training set has {len(train)} clips: the batch size per device is lowered to {batch}.")
        training_args.per_device_train_batch_size = batch
    texts = [caption for captions in train["text"] for caption in captions]
    texts += train["subtitle"] if "subtitle" in args.modalities else []
    model, processor = build_model(args, texts)

    trainer = GramTrainer(
        model=model, args=training_args, train_dataset=train, eval_dataset=test, processing_class=processor
    )
    result = trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)
    metrics = result.metrics | trainer.evaluate()
    trainer.save_model()
    if trainer.is_world_process_zero():
        Path(training_args.output_dir, "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    save_pictures(trainer, test)
    data_name = Path(args.train_file).name if args.train_file else "sample_clips"
    trainer.create_model_card(dataset=data_name)
    if trainer.is_world_process_zero():
        table = results_table(metrics, model.config.anchor)
        print(f"\n{table}\n\nModel, card and pictures: {training_args.output_dir}")
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset=data_name)


if __name__ == "__main__":
    main()
