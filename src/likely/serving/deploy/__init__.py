"""Launch files: a likely server with its monitoring, or a vLLM server to stand behind one.  Nothing is started here."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.deploy.dashboard import grafana_dashboard as grafana_dashboard
    from likely.serving.deploy.files import ServedLikely as ServedLikely
    from likely.serving.deploy.files import ServedVllm as ServedVllm
    from likely.serving.deploy.files import compose_files as compose_files
    from likely.serving.deploy.files import vllm_files as vllm_files

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
