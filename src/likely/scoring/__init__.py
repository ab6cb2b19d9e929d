"""log p(answer | prompt) of given texts on any runtime: pairs, multiple choice, digits, perplexity, hidden states."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.scoring.choices import ChoiceItem as ChoiceItem
    from likely.scoring.choices import ChoiceReport as ChoiceReport
    from likely.scoring.choices import ChoiceResult as ChoiceResult
    from likely.scoring.choices import score_choices as score_choices
    from likely.scoring.digits import Number as Number
    from likely.scoring.digits import read_numbers as read_numbers
    from likely.scoring.hidden import HiddenFeatures as HiddenFeatures
    from likely.scoring.hidden import OptionFeatures as OptionFeatures
    from likely.scoring.hidden import hidden_states as hidden_states
    from likely.scoring.hidden import option_features as option_features
    from likely.scoring.hidden import token_states as token_states
    from likely.scoring.letters import Shares as Shares
    from likely.scoring.letters import shares as shares
    from likely.scoring.likelihood import score_items as score_items
    from likely.scoring.likelihood import score_pairs as score_pairs
    from likely.scoring.rolling import Perplexity as Perplexity
    from likely.scoring.rolling import perplexity as perplexity
    from likely.scoring.scored import Scored as Scored
    from likely.scoring.scored import TopLogprob as TopLogprob

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
