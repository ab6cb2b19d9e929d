"""Many users of one model: an engine that one thread owns, the OpenAI-compatible API, tools, batches, a simulator."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.api.app import create_app as create_app
    from likely.serving.batch import BatchCounts as BatchCounts
    from likely.serving.batch import BatchOutput as BatchOutput
    from likely.serving.batch import BatchRequest as BatchRequest
    from likely.serving.batch import read_batch as read_batch
    from likely.serving.batch import run_batch as run_batch
    from likely.serving.cluster import BatchWorker as BatchWorker
    from likely.serving.cluster import map_rows as map_rows
    from likely.serving.engine import AsyncEngine as AsyncEngine
    from likely.serving.engine import EngineFailed as EngineFailed
    from likely.serving.engine import Overloaded as Overloaded
    from likely.serving.engine import ShuttingDown as ShuttingDown
    from likely.serving.engine import Ticket as Ticket
    from likely.serving.limits import ServerLimits as ServerLimits
    from likely.serving.metrics import ServerMetrics as ServerMetrics
    from likely.serving.simulator import Arrival as Arrival
    from likely.serving.simulator import ServedLoad as ServedLoad
    from likely.serving.simulator import SimulatedServer as SimulatedServer
    from likely.serving.simulator import poisson_arrivals as poisson_arrivals

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
