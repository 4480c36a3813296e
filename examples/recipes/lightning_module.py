"""Lightning: watch the module, or the model inside it, before `fit`."""

import lightning
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader

import internist


class Language(lightning.LightningModule):
    """A model and its loss; `training_step` calls the layers, and no `forward` is needed."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Embedding(32, 16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 32))

    def training_step(self, tokens: Tensor) -> Tensor:
        """The loss of one batch."""
        loss = functional.cross_entropy(self.model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        internist.log(loss=loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Found when it first steps: it need not be named."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


module = Language()

internist.watch(module.model)

trainer = lightning.Trainer(max_steps=12, accelerator="cpu", logger=False, enable_checkpointing=False)
trainer.fit(module, DataLoader(torch.randint(0, 32, (64, 9)), batch_size=4))
