"""Test-time scaling: many chains by a small model, taken over by a large one at a controlled rate, without barriers."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.serving.scaling.answers import ANSWER_FORMS as ANSWER_FORMS
    from likely.serving.scaling.answers import AnswerForm as AnswerForm
    from likely.serving.scaling.answers import is_right as is_right
    from likely.serving.scaling.answers import vote as vote
    from likely.serving.scaling.atts import ATTS as ATTS
    from likely.serving.scaling.atts import ScalingRun as ScalingRun
    from likely.serving.scaling.chains import Chains as Chains
    from likely.serving.scaling.chains import ChainTurn as ChainTurn
    from likely.serving.scaling.chains import ReasoningChain as ReasoningChain
    from likely.serving.scaling.chains import summarise as summarise
    from likely.serving.scaling.clients import LocalClient as LocalClient
    from likely.serving.scaling.clients import ServerClient as ServerClient
    from likely.serving.scaling.clients import TextClient as TextClient
    from likely.serving.scaling.clients import WrittenText as WrittenText
    from likely.serving.scaling.clients import client_of as client_of
    from likely.serving.scaling.gate import RejectionGate as RejectionGate
    from likely.serving.scaling.gate import RoundRate as RoundRate
    from likely.serving.scaling.gate import read_gate as read_gate
    from likely.serving.scaling.gate import round_rates as round_rates
    from likely.serving.scaling.gate import write_gate as write_gate

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
