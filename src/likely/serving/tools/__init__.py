"""Tools that a model may call: functions with types, the grammar of calls, and calls in conversations and replies."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.tools.grammar import ToolChoice as ToolChoice
    from likely.serving.tools.grammar import tool_form as tool_form
    from likely.serving.tools.registry import Tool as Tool
    from likely.serving.tools.registry import Toolbox as Toolbox
    from likely.serving.tools.registry import tool as tool
    from likely.serving.tools.transcript import CallParser as CallParser
    from likely.serving.tools.transcript import with_tools as with_tools

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
