"""Everything that takes gradients: the training loop, LoRA adapters, the loss of GRPO; needs torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.training.grpo import grpo_loss as grpo_loss
    from likely.training.loop import EarlyStopping as EarlyStopping
    from likely.training.loop import TrainingDiverged as TrainingDiverged
    from likely.training.loop import train as train
    from likely.training.lora import Adapter as Adapter
    from likely.training.lora import load_adapter as load_adapter
    from likely.training.lora import train_lora as train_lora

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
