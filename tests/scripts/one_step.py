"""One optimizer step of GramTrainer on a fixed batch of 8; run by test_distributed.py in one and in two processes."""

import sys

import torch
from transformers import TrainerCallback, set_seed

from transformers_gram import (
    GramModel,
    GramTrainer,
    GramTrainingArguments,
    load_annotations,
    small_config,
    small_processor,
)


class SaveGradients(TrainerCallback):
    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        model = getattr(model, "module", model)
        self.gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def main(annotations, output_dir, batch_size):
    rows = load_annotations(annotations)
    results = {}
    for measure in ("volume", "cosine"):
        set_seed(0)
        processor = small_processor([caption for captions in rows["text"] for caption in captions])
        model = GramModel(small_config(len(processor.tokenizer), hidden_size=16, num_layers=1)).double()
        args = GramTrainingArguments(
            output_dir=output_dir,
            measure=measure,
            warmup_measure_ratio=0,
            max_steps=1,
            per_device_train_batch_size=int(batch_size),
            max_grad_norm=0,
            logging_steps=1,
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        saved = SaveGradients()
        trainer = GramTrainer(
            model, args, train_dataset=rows, eval_dataset=rows, processing_class=processor, callbacks=[saved]
        )
        trainer.train()
        results[measure] = {
            "world_size": args.world_size,
            "loss": trainer.state.log_history[0]["loss"],
            "gradients": saved.gradients,
            "metrics": trainer.evaluate(),
        }
    if trainer.is_world_process_zero():
        torch.save(results, f"{output_dir}/results.pt")


if __name__ == "__main__":
    main(*sys.argv[1:])
