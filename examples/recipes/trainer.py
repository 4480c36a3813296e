"""Hugging Face's Trainer: a callback watches the model, keeps the arguments and records what the Trainer logs.

`report_to="internist"` does the same once the callback's module is imported. `internist.watch(model)` does without
both.
"""

import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from internist.integrations.transformers import InternistCallback

config = LlamaConfig(
    vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
model = LlamaForCausalLM(config)
tokens = torch.randint(3, 32, (64, 8))
dataset = [{"input_ids": row, "labels": row} for row in tokens]

with tempfile.TemporaryDirectory() as directory:
    arguments = TrainingArguments(directory, max_steps=12, save_strategy="no", report_to="none", use_cpu=True)
    Trainer(model=model, args=arguments, train_dataset=dataset, callbacks=[InternistCallback()]).train()
