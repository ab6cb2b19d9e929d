"""Drafters by name: NAME[:ARGUMENT][,SETTING=VALUE ...]."""

import pytest
from byte_tokenizer import PieceTokenizer
from factories import FACTORIES

from likely.decoding.drafting.lookup import CopySource
from likely.decoding.drafting.model.drafter import DraftModel
from likely.decoding.drafting.suffix.drafter import SuffixMemory
from likely.decoding.drafting.table import DRAFTERS, DrafterContext, check_name, make_drafter, runs_model
from likely.decoding.drafting.trees import Chain, ConstantBranching, IidPaths, StochasticBeam, named_shape
from likely.decoding.drafting.trigram.drafter import TrigramMemory

NO_MODEL = DrafterContext(None, None)


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("chain-5", Chain(5)),
        ("rsd-c-3-2-1", ConstantBranching((3, 2, 1))),
        ("specinfer-2-2", ConstantBranching((2, 2), independent=True)),
        ("rsd-s-4-3", StochasticBeam(4, 3)),
        ("spectr-4-3", IidPaths(4, 3)),
    ],
)
def test_a_shape_is_what_its_name_says(text, shape):
    assert named_shape(text) == shape


@pytest.mark.parametrize(
    "text", ["", "chain", "chain-", "chain-1-2", "rsd-s-4", "rsd-s-4-4-4", "rsd-c-0", "tree-3", "5"]
)
def test_other_shapes_are_refused(text):
    with pytest.raises(ValueError, match=r"write chain-5|must be >= 1|numbers >= 1"):
        named_shape(text)


def test_settings_reach_the_drafter():
    suffix = make_drafter("suffix,spec_factor=2,min_prob=0.25,tree=yes,scope=request", NO_MODEL)
    assert isinstance(suffix, SuffixMemory) and suffix.scope == "request"
    assert (suffix.limits.factor, suffix.limits.min_prob, suffix.limits.tree) == (2.0, 0.25, True)
    trigram = make_drafter("trigram, depth=7", NO_MODEL)
    assert isinstance(trigram, TrigramMemory) and trigram.depth == 7
    both = make_drafter("copy,gram=5+lookup,ngram=2", NO_MODEL)
    assert both is not None and "copy" in both.name and "lookup" in both.name


def test_a_longer_gram_drafts_where_five_tokens_agree():
    text = [1, 2, 3, 4, 9, 2, 3, 4]
    made = make_drafter("copy,gram=4,copy=2", NO_MODEL)
    assert isinstance(made, CopySource)
    assert len(made.begin(text, None).propose(8)) == 0
    assert make_drafter("copy,gram=3,copy=2", NO_MODEL).begin(text, None).propose(8).tokens.tolist() == [9, 2]


def test_a_draft_model_takes_its_shape():
    runtime = FACTORIES["toy"][0]()
    tokenizer = PieceTokenizer([bytes([97 + i]) for i in range(runtime.vocab_size)])
    context = DrafterContext(runtime, tokenizer, load=lambda name: (runtime, tokenizer))
    made = make_drafter("model:draft,shape=rsd-s-2-3", context)
    assert isinstance(made, DraftModel) and made.shape == StochasticBeam(2, 3)
    runtime.shutdown()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("copy,grm=5", 'no setting "grm".*did you mean "gram"'),
        ("auto,shape=chain-3", "it has: none"),
        ("copy,gram=x", 'gram="x" cannot be used'),
        ("suffix,tree=maybe", "write yes or no"),
        ("model:x,shape=rsd-s-4", "write chain-5"),
    ],
)
def test_an_unknown_or_unusable_setting_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        check_name(text)


def test_names_with_commas_of_their_own_still_work():
    check_name("skip:3,5-9")
    assert runs_model("skip:attn:3,mlp:4-6")


@pytest.mark.parametrize("name", DRAFTERS)
def test_every_setting_of_the_table_is_one_of_the_maker(name):
    """A row's settings, set to their type's first value, never raise TypeError when the drafter is made."""
    entry = DRAFTERS[name]
    if entry.runs_model or name == "ngram":
        pytest.skip("made with a model elsewhere")
    values = {int: "3", float: "0.5", str: None}
    for setting, kind in entry.settings.items():
        value = values.get(kind, "yes") or {"occurrence": "last", "scope": "all"}[setting]
        assert make_drafter(f"{name},{setting}={value}", NO_MODEL) is not None
