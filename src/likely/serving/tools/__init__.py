"""Tools that a model may call: typed functions, the grammar of calls, calls checked and executed, how well it does."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.tools.agent import ToolRun as ToolRun
    from likely.serving.tools.agent import best_tools as best_tools
    from likely.serving.tools.agent import run_tools as run_tools
    from likely.serving.tools.evaluation import EvaluationSettings as EvaluationSettings
    from likely.serving.tools.evaluation import evaluate_cases as evaluate_cases
    from likely.serving.tools.evaluation import evaluation_report as evaluation_report
    from likely.serving.tools.examples import export_training_data as export_training_data
    from likely.serving.tools.examples import training_example as training_example
    from likely.serving.tools.grammar import ToolChoice as ToolChoice
    from likely.serving.tools.grammar import tool_form as tool_form
    from likely.serving.tools.registry import CallRefused as CallRefused
    from likely.serving.tools.registry import Observation as Observation
    from likely.serving.tools.registry import Tool as Tool
    from likely.serving.tools.registry import tool as tool
    from likely.serving.tools.report import EnergyMeter as EnergyMeter
    from likely.serving.tools.report import Prices as Prices
    from likely.serving.tools.report import TaskRecord as TaskRecord
    from likely.serving.tools.report import cost_per_success as cost_per_success
    from likely.serving.tools.report import task_report as task_report
    from likely.serving.tools.toolbox import CallResult as CallResult
    from likely.serving.tools.toolbox import Toolbox as Toolbox
    from likely.serving.tools.transcript import CallParser as CallParser
    from likely.serving.tools.transcript import with_tools as with_tools

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
