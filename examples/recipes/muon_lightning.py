"""Muon++ in Lightning: `configure_optimizers` returns it with its schedule, as any optimizer of torch's."""

import lightning
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from internist.demo.model import ByteGPT
from internist.integrations.lightning import InternistCallback, InternistLogger
from internist.optim import MuonPlusPlus, split_parameters


class Language(lightning.LightningModule):
    """A model and its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ByteGPT(width=16, depth=2, heads=4, context=16)

    def training_step(self, tokens: Tensor) -> Tensor:
        """The loss of one batch."""
        loss: Tensor = self.model(tokens[:, :-1], tokens[:, 1:]).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """One optimizer for all parameters, and a warm-up at every step."""
        optimizer = MuonPlusPlus(split_parameters(self.model, lr=0.02, adamw_lr=3e-4))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 4))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


trainer = lightning.Trainer(
    max_steps=12, accelerator="cpu", enable_checkpointing=False, log_every_n_steps=1, gradient_clip_val=1.0,
    callbacks=[InternistCallback("model")], logger=InternistLogger(),
)  # fmt: skip
trainer.fit(Language(), DataLoader(torch.randint(0, 256, (64, 17)), batch_size=4))
