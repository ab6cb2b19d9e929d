"""Static analysis of unfinished code: jedi in a child process, answers remembered."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.code.analysis.jedi_provider import JediProvider as JediProvider
    from likely.code.analysis.members import Analyses as Analyses
    from likely.code.analysis.members import AnalysisReply as AnalysisReply
    from likely.code.analysis.members import Member as Member
    from likely.code.analysis.members import MemberProvider as MemberProvider
    from likely.code.analysis.members import Parameter as Parameter

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
