"""Long sequences shared by several processes: states gathered (LASP-2), attention shared, plans of who shares what."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.sequence.parallel.group import SequenceGroup as SequenceGroup
    from likely.sequence.parallel.group import Traffic as Traffic
    from likely.sequence.parallel.group import sum_gradients as sum_gradients
    from likely.sequence.parallel.layout import ShardedBatch as ShardedBatch
    from likely.sequence.parallel.layout import ShardLayout as ShardLayout
    from likely.sequence.parallel.layout import next_token_targets as next_token_targets
    from likely.sequence.parallel.layout import shard_batch as shard_batch
    from likely.sequence.parallel.model import ParallelLM as ParallelLM
    from likely.sequence.parallel.runner import BlockGroups as BlockGroups
    from likely.sequence.parallel.runner import run_plan as run_plan
    from likely.sequence.parallel.shards import SequenceShards as SequenceShards
    from likely.sequence.parallel.shards import loss_sum as loss_sum
    from likely.sequence.parallel.shards import shared_mean_loss as shared_mean_loss

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
