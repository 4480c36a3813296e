"""Muon++ in Hugging Face's Trainer: hand it over by `optimizers=`; the Trainer makes the schedule by its arguments."""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from internist.integrations.transformers import InternistCallback
from internist.optim import MuonPlusPlus, split_parameters

config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
model = LlamaForCausalLM(config)
optimizer = MuonPlusPlus(split_parameters(model, lr=0.02, adamw_lr=3e-4))
tokens = torch.randint(3, 32, (64, 8))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

with tempfile.TemporaryDirectory() as directory:
    arguments = TrainingArguments(
        directory, max_steps=12, lr_scheduler_type="cosine", warmup_steps=2, save_strategy="no", report_to="none",
        use_cpu=True,
    )  # fmt: skip
    Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        optimizers=(optimizer, None),
        callbacks=[InternistCallback()],
    ).train()
