"""Sequence labelling by a causal language model: spans written as text, SIFT, in-context labelling and tagging."""

from typing import TYPE_CHECKING

from likely.lazy import lazy_exports

if TYPE_CHECKING:
    from likely.alignment.labelling.codec import DecodedSpans as DecodedSpans
    from likely.alignment.labelling.codec import SpanCodec as SpanCodec
    from likely.alignment.labelling.codec import SpanProblem as SpanProblem
    from likely.alignment.labelling.constraint import SpanAutomaton as SpanAutomaton
    from likely.alignment.labelling.constraint import SpanConstraint as SpanConstraint
    from likely.alignment.labelling.labeller import LabellingReport as LabellingReport
    from likely.alignment.labelling.labeller import SpanLabeller as SpanLabeller
    from likely.alignment.labelling.labeller import SpanPrediction as SpanPrediction
    from likely.alignment.labelling.labeller import report_of as report_of
    from likely.alignment.labelling.prompt import NearestDemonstrations as NearestDemonstrations
    from likely.alignment.labelling.prompt import PromptWithTargets as PromptWithTargets
    from likely.alignment.labelling.prompt import RandomDemonstrations as RandomDemonstrations
    from likely.alignment.labelling.prompt import SpanPrompt as SpanPrompt
    from likely.alignment.labelling.sentences import Sentence as Sentence
    from likely.alignment.labelling.sentences import load_sentences as load_sentences
    from likely.alignment.labelling.sentences import read_sentences as read_sentences
    from likely.alignment.labelling.sift import SiftSettings as SiftSettings
    from likely.alignment.labelling.sift import open_labeller as open_labeller
    from likely.alignment.labelling.sift import remove_labeller as remove_labeller
    from likely.alignment.labelling.sift import response_loss as response_loss
    from likely.alignment.labelling.sift import train_labeller as train_labeller
    from likely.alignment.labelling.sift import training_prompts as training_prompts
    from likely.alignment.labelling.spans import LabelledSpan as LabelledSpan
    from likely.alignment.labelling.spans import span_f1 as span_f1
    from likely.alignment.labelling.spans import spans_of as spans_of
    from likely.alignment.labelling.spans import tags_of as tags_of
    from likely.alignment.labelling.token_classifier import TokenClassifier as TokenClassifier

__all__, __getattr__, __dir__ = lazy_exports(__name__, __file__)
