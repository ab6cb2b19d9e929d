"""Oracles of families: HMMER's profiles on its own example data, and k-mers against scikit-learn."""

from __future__ import annotations

import re
import sys

import numpy as np
import pytest

from likely.alignment.protein import KmerClassifier, ProfileHMM, group_by_similarity, read_proteins
from likely.data import find_path
from likely.errors import CapabilityError, DataError


@pytest.fixture(scope="module")
def members():
    found: dict[str, str] = {}
    for line in find_path("protein-families", "fn3.sto").read_text().splitlines():
        if line and line[0] not in "#/":
            name, part = line.split()
            found[name] = found.get(name, "") + re.sub("[^A-Za-z]", "", part).upper()
    return list(found.values())


@pytest.fixture(scope="module")
def globins():
    records = find_path("protein-families", "globins45.fa").read_text().split(">")[1:]
    return ["".join(record.splitlines()[1:]) for record in records]


def test_a_profile_knows_its_members_and_no_others(members, globins):
    pytest.importorskip("pyhmmer")
    profile = ProfileHMM.from_stockholm(find_path("protein-families", "fn3.sto"))
    rng = np.random.default_rng(0)
    shuffled = ["".join(rng.permutation(list(s))) for s in members]
    assert profile.evalues(members).max() < 1e-3
    assert min(profile.evalues(globins).min(), profile.evalues(shuffled).min()) > 1e-3
    assert profile.evalues(members[:3], searched=1000) == pytest.approx(1000 * profile.evalues(members[:3]))


def test_a_profile_of_unaligned_sequences(globins, members):
    pytest.importorskip("pyhmmer")
    profile = ProfileHMM.from_sequences(globins[:30])
    assert profile.evalues(globins[30:]).max() < 1e-3 < profile.evalues(members).min()
    assert ProfileHMM.from_sequences(globins[:1]).evalues(globins[:1])[0] < 1e-3
    with pytest.raises(DataError, match="sequence 1"):
        profile.evalues(["MK", "M1"])


def test_profiles_without_their_package(monkeypatch, tmp_path):
    with pytest.raises(DataError, match="not a Stockholm alignment"):
        pytest.importorskip("pyhmmer")
        (tmp_path / "x.sto").write_text("nothing")
        ProfileHMM.from_stockholm(tmp_path / "x.sto")
    monkeypatch.setitem(sys.modules, "pyhmmer", None)
    with pytest.raises(CapabilityError, match="pip install pyhmmer"):
        ProfileHMM.from_sequences(["MK"])


def test_kmers_agree_with_scikit_learn():
    linear = pytest.importorskip("sklearn.linear_model")
    rows = read_proteins("protein-families:test")
    sequences, labels = [r.sequence for r in rows], [r.superfamily for r in rows]
    ours = KmerClassifier(k=2, l2=0.5).fit(sequences[::2], labels[::2])
    features = ours._features(sequences)[:, :-1]
    theirs = linear.LogisticRegression(C=2.0, max_iter=5000, tol=1e-8).fit(features[::2], labels[::2])
    assert list(theirs.classes_) == ours.classes_
    np.testing.assert_allclose(ours.predict_proba(sequences), theirs.predict_proba(features), atol=2e-3)
    assert np.mean([p == label for p, label in zip(ours.predict(sequences), labels, strict=True)]) > 0.85
    np.testing.assert_allclose(ours.predict_proba(["WWWW", "M"]).sum(1), 1)


def test_groups_join_near_neighbours():
    sequences = ["MKRVLLA", "MKRVLLS", "GGSWYHN", "KRVLLSA", "GGSWYHD"]
    groups = group_by_similarity(sequences, most=0.5)
    assert groups[0] == groups[1] == groups[3] != groups[2] == groups[4]
    assert len(set(group_by_similarity(sequences, most=0.95))) == 5
    with pytest.raises(ValueError, match="most must lie in"):
        group_by_similarity(sequences, most=1.0)
