"""Lightning: a callback watches the module, or the model inside it; a logger records what the module logs.

Each does without the other, and `internist.watch(module.model)` before `fit` does without both.
"""

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

from internist.integrations.lightning import InternistCallback, InternistLogger


class Language(lightning.LightningModule):
    """A model and its loss; `training_step` calls the layers, and no `forward` is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))

    def training_step(self, tokens: Tensor) -> Tensor:
        """The loss of one batch."""
        loss = functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Found when it first steps: it need not be named."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


trainer = lightning.Trainer(
    max_steps=12, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1,
    callbacks=[InternistCallback("model")], logger=InternistLogger(),
)  # fmt: skip
trainer.fit(Language(), DataLoader(torch.randint(0, 32, (64, 9)), batch_size=4))
