"""Sequence diagrams in Mermaid's language: parsed, drawn, compared with a reference, and written by models."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.audit.mermaid.benchmark import diagram_cases as diagram_cases
    from likely.audit.mermaid.benchmark import diagram_modes as diagram_modes
    from likely.audit.mermaid.benchmark import diagram_report as diagram_report
    from likely.audit.mermaid.benchmark import diagrams as diagrams
    from likely.audit.mermaid.criteria import DiagramScores as DiagramScores
    from likely.audit.mermaid.criteria import score_diagram as score_diagram
    from likely.audit.mermaid.criteria import score_response as score_response
    from likely.audit.mermaid.diagram import SequenceDiagram as SequenceDiagram
    from likely.audit.mermaid.drawing import draw_diagram as draw_diagram
    from likely.audit.mermaid.grammar import close_diagram as close_diagram
    from likely.audit.mermaid.grammar import sequence_grammar as sequence_grammar
    from likely.audit.mermaid.judge import JudgeControl as JudgeControl
    from likely.audit.mermaid.judge import expected_scores as expected_scores
    from likely.audit.mermaid.judge import judge_control as judge_control
    from likely.audit.mermaid.judge import judge_prompt as judge_prompt
    from likely.audit.mermaid.judge import judged_scores as judged_scores
    from likely.audit.mermaid.judge import read_score as read_score
    from likely.audit.mermaid.judge import with_faults as with_faults
    from likely.audit.mermaid.lexer import MermaidSyntaxError as MermaidSyntaxError
    from likely.audit.mermaid.official import official_errors as official_errors
    from likely.audit.mermaid.parser import parse_sequence as parse_sequence

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
