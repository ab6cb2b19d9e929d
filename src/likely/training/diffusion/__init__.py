"""Training of masked diffusion language models: the loss, tiny models, and the tasks that they learn in minutes."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.training.diffusion.adapt import AdaptSettings as AdaptSettings
    from likely.training.diffusion.adapt import adapt_causal as adapt_causal
    from likely.training.diffusion.loss import diffusion_loss as diffusion_loss
    from likely.training.diffusion.tasks import Addition as Addition
    from likely.training.diffusion.tasks import Shakespeare as Shakespeare
    from likely.training.diffusion.tasks import Sudoku as Sudoku
    from likely.training.diffusion.tasks import TinyTask as TinyTask
    from likely.training.diffusion.tasks import make_task as make_task
    from likely.training.diffusion.tiny import TinySettings as TinySettings
    from likely.training.diffusion.tiny import task_of as task_of
    from likely.training.diffusion.tiny import train_tiny as train_tiny
    from likely.training.diffusion.tiny import trained_tiny as trained_tiny

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
