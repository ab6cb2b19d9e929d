"""Everything that takes gradients: the training loop, its checkpoints and processes, LoRA adapters; needs torch."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.training.answers import Adapter as Adapter
    from likely.training.answers import load_adapter as load_adapter
    from likely.training.answers import train_lora as train_lora
    from likely.training.checkpoints import Checkpoints as Checkpoints
    from likely.training.fit import TrainingSettings as TrainingSettings
    from likely.training.grpo import grpo_loss as grpo_loss
    from likely.training.loop import EarlyStopping as EarlyStopping
    from likely.training.loop import LossOutput as LossOutput
    from likely.training.loop import TrainingDiverged as TrainingDiverged
    from likely.training.loop import train as train
    from likely.training.metrics_log import MetricsLog as MetricsLog
    from likely.training.metrics_log import open_trackers as open_trackers
    from likely.training.policy import LoraSettings as LoraSettings
    from likely.training.policy import Policy as Policy
    from likely.training.processes import Processes as Processes

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
