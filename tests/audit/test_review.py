"""The queue of judgements: blind, resumable, no vote lost, agreement of who judged."""

from __future__ import annotations

import numpy as np
import pytest

from likely.audit.review import Criterion, ReviewItem, ReviewQueue
from likely.errors import DataError

CRITERIA = (Criterion("relevance", "Same meaning?"), Criterion("diversity", "Other words?"))


@pytest.fixture
def queue(tmp_path):
    items = [ReviewItem(f"i{n}", {"question": f"q{n}", "probe": f"p{n}"}, {"writer": "secret"}) for n in range(8)]
    return ReviewQueue.create(tmp_path / "queue.jsonl", CRITERIA, items)


def judge(queue, annotator, ratings):
    for item, (relevance, diversity) in ratings.items():
        queue.vote(annotator, item, {"relevance": relevance, "diversity": diversity})


def test_votes_survive_and_everyone_judges_alone_in_an_order_of_their_own(queue):
    anna = [item.id for item in queue.pending("anna")]
    bert = [item.id for item in queue.pending("bert")]
    assert sorted(anna) == sorted(bert) and anna != bert
    queue.vote("anna", anna[0], {"relevance": "3", "diversity": 1}, "fine")
    again = ReviewQueue.open(queue.path)
    assert [item.id for item in again.pending("anna")] == anna[1:]  # it goes on where it stopped
    assert [item.id for item in again.pending("bert")] == bert  # and says nothing of the other's votes
    assert again.votes == queue.votes and again.votes[0].ratings == {"relevance": 3, "diversity": 1}
    assert "secret" not in str(again.pending("bert")[0].shown)


def test_a_vote_cut_by_a_kill_is_no_vote_and_the_next_one_is_whole(queue):
    queue.vote("anna", "i0", {"relevance": 1, "diversity": 1})
    with queue.path.open("ab") as file:
        file.write(b'{"kind": "vote", "annot')
    again = ReviewQueue.open(queue.path)
    assert len(again.votes) == 1
    again.vote("anna", "i1", {"relevance": 2, "diversity": 2})
    assert [v.item for v in ReviewQueue.open(queue.path).votes] == ["i0", "i1"]


def test_the_last_vote_counts_and_no_line_is_lost(queue):
    judge(queue, "anna", {"i0": (1, 1)})
    judge(queue, "anna", {"i0": (3, 3)})
    assert queue.ratings("relevance")["anna"] == {"i0": 3} and len(ReviewQueue.open(queue.path).votes) == 2
    assert queue.passing("i0") and queue.passing("i1") is None and queue.pass_rate == 1


def test_a_majority_lets_pass_and_a_tie_does_not(queue):
    judge(queue, "anna", {"i0": (3, 3), "i1": (3, 3)})
    judge(queue, "bert", {"i0": (3, 1), "i1": (2, 2)})
    assert queue.passing("i0") is False and queue.passing("i1") and queue.pass_rate == 0.5
    judge(queue, "cleo", {"i0": (2, 2)})
    assert queue.passing("i0")


def test_agreement_is_kappa_of_two_and_alpha_of_more(queue):
    with pytest.raises(DataError, match="two annotators"):
        queue.agreement()
    judge(queue, "anna", {f"i{n}": (n % 3 + 1, 2) for n in range(8)})
    judge(queue, "bert", {f"i{n}": (n % 3 + 1, 2) for n in range(8)})
    relevance, diversity = queue.agreement()
    assert (relevance.measure, relevance.value, relevance.items) == ("kappa", 1, 8)
    assert relevance.passed == 5 / 8  # i0, i3 and i6 were rated 1
    assert diversity.value is None and diversity.passed == 1  # alike throughout: not defined
    judge(queue, "cleo", {"i0": (3, 1), "i1": (1, 3)})
    assert queue.agreement()[0].measure == "alpha" and queue.agreement()[0].value < 1


def test_agreement_is_that_of_scikit_learn_and_of_pairs_counted_one_by_one(queue):
    sklearn = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    given = {who: rng.integers(1, 4, (8, 2)).tolist() for who in ("anna", "bert", "cleo")}
    for who in ("anna", "bert"):
        judge(queue, who, {f"i{n}": given[who][n] for n in range(8)})
    kappa = sklearn.cohen_kappa_score([r[0] for r in given["anna"]], [r[0] for r in given["bert"]])
    assert queue.agreement()[0].value == pytest.approx(kappa)
    judge(queue, "cleo", {f"i{n}": given["cleo"][n] for n in range(5)})  # three items are judged by two alone
    units = [[given[who][n][0] for who in given if who != "cleo" or n < 5] for n in range(8)]
    values = [v for unit in units for v in unit]

    def distance(a, b):  # ordinal: how many ratings lie between, the ends counted half
        low, high = min(a, b), max(a, b)
        between = sum(low <= v <= high for v in values)
        return 0 if a == b else (between - (values.count(a) + values.count(b)) / 2) ** 2

    observed = sum(distance(a, b) / (len(u) - 1) for u in units for i, a in enumerate(u) for j, b in enumerate(u)
                   if i != j) / len(values)  # fmt: skip
    expected = sum(distance(a, b) for i, a in enumerate(values) for j, b in enumerate(values) if i != j)
    alpha = 1 - observed * len(values) * (len(values) - 1) / expected
    found = queue.agreement()[0]
    assert (found.measure, found.value) == ("alpha", pytest.approx(alpha))


def test_a_frozen_queue_takes_no_votes(queue):
    queue.freeze()
    for one in (queue, ReviewQueue.open(queue.path)):
        with pytest.raises(DataError, match="frozen"):
            one.vote("anna", "i0", {"relevance": 1, "diversity": 1})


def test_votes_of_a_table_are_taken_whole_or_not_at_all(queue):
    head = "annotator,item,relevance,diversity,reason\n"
    assert queue.import_votes(head + 'anna,i0,3,2,"because, yes"\nbert,i0,1,1,\n') == 2
    assert queue.votes[0].reason == "because, yes"
    for row, message in (("anna,i0,9,2,\n", "line 3 of the votes: relevance: a rating"), ("anna,x,1,2,\n", "no item"),
                         (",i0,1,1,\n", "needs a name")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            queue.import_votes(head + "anna,i1,1,1,\n" + row)
    with pytest.raises(DataError, match='"item" is missing'):
        queue.import_votes("annotator,relevance\n")
    assert len(ReviewQueue.open(queue.path).votes) == 2


def test_queues_are_not_overwritten_and_other_files_are_refused(queue, tmp_path):
    with pytest.raises(DataError, match="may hold votes"):
        ReviewQueue.create(queue.path, CRITERIA, [ReviewItem("a", {})])
    other = tmp_path / "other.jsonl"
    other.write_text('{"kind": "something"}\n')
    with pytest.raises(DataError, match='no review queue: field "codebook" is missing'):
        ReviewQueue.open(other)
    with pytest.raises(DataError, match="cannot read"):
        ReviewQueue.open(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="rates relevance, diversity"):
        queue.vote("anna", "i0", {"relevance": 1})
