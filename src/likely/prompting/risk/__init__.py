"""Risk scores from tables: P(outcome | row) by a language model, and how good they are."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.prompting.risk.file import read_table as read_table
    from likely.prompting.risk.report import OrderBias as OrderBias
    from likely.prompting.risk.report import order_bias as order_bias
    from likely.prompting.risk.report import risk_report as risk_report
    from likely.prompting.risk.report import subgroup_report as subgroup_report
    from likely.prompting.risk.scorer import RiskScorer as RiskScorer
    from likely.prompting.risk.scorer import RiskScores as RiskScores
    from likely.prompting.risk.task import TableChoice as TableChoice
    from likely.prompting.risk.task import TableTask as TableTask
    from likely.prompting.risk.task import load_task as load_task
    from likely.prompting.risk.text import ColumnText as ColumnText
    from likely.prompting.risk.text import RowLayout as RowLayout

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
