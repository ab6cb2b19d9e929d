"""The page: escaped, self-contained, and its numbers are the record's."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from records import HOSTILE, generation, scored

from likely.errors import DataError
from likely.io.whole_file import check_target, write_for_user
from likely.show.colours import level_of
from likely.show.html import page
from likely.show.tokens import shown, visible

VOID = {"meta", "br", "img", "input", "link", "hr"}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "details", "summary", "pre", "ul",
    "li", "small", "main", "article", "dl", "div", "dt", "dd", "data", "a", "span", "b", "bdi", "code", "table",
    "caption", "thead", "tbody", "tr", "th", "td",
}  # fmt: skip


class Page(HTMLParser):
    """Elements, attributes, and the text and numbers of the heat map and of the table."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements, self.stack, self.metas, self.style = [], [], [], ""
        self.cells, self.numbers, self.rows = [], [], []
        self.feed(source)
        self.close()
        assert not self.stack

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag == "meta":
            self.metas.append(dict(attrs))
        if tag == "tr":
            self.rows.append([])
        if tag == "data":
            self.numbers.append((self.stack[-1][1], float(dict(attrs)["value"])))
            if any(name == "tr" for name, _ in self.stack):
                self.rows[-1].append(float(dict(attrs)["value"]))
        if tag == "span" and (dict(attrs).get("class") or "").startswith("t l"):
            self.cells.append([dict(attrs)["class"], ""])
        if tag not in VOID:
            self.stack.append((tag, dict(attrs).get("class") or ""))

    def handle_endtag(self, tag):
        assert self.stack.pop()[0] == tag

    def handle_data(self, data):
        if self.stack and self.stack[-1][1].startswith("t l"):
            self.cells[-1][1] += data
        if self.stack and self.stack[-1][0] == "style":
            self.style += data


def check_self_contained(source):
    parsed = Page(source)
    assert {tag for tag, _ in parsed.elements} <= ALLOWED
    for tag, attributes in parsed.elements:
        assert not any(name.startswith("on") or name in ("src", "style", "srcset", "action") for name in attributes), (
            tag
        )
        if "href" in attributes:
            assert re.fullmatch(r"#table\d+", attributes["href"])
    assert not re.search(r"url\(|@import|expression\(", parsed.style)
    return parsed


@pytest.fixture(scope="module")
def hostile():
    record = scored(HOSTILE)
    texts = [shown(record), shown(scored(["a"], tops=False, entropies=False))]
    source = page(texts, title="".join(HOSTILE), prompt="".join(HOSTILE), origin={"model": HOSTILE[0], "x": None})
    return record, source


def test_nothing_in_a_record_becomes_an_element_or_a_resource(hostile):
    _, source = hostile
    check_self_contained(source)
    assert "<script" not in source and "<img" not in source and "<b>" in source
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e\u202c\u2066\ufeff\ud800\u2028]", source)
    source.encode("utf-8")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=12) | st.sampled_from(HOSTILE), min_size=1, max_size=5))
def test_any_tokens_come_back_as_their_visible_text(tokens):
    parsed = check_self_contained(page([shown(scored(tokens))], title="t", prompt=tokens[0]))
    assert [text for _, text in parsed.cells] == [visible(token) or "∅" for token in tokens]


def test_policy_allows_exactly_this_style_sheet_and_no_script(hostile):
    parsed = Page(hostile[1])
    policy = next(m["content"] for m in parsed.metas if m.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(parsed.style.encode()).digest()).decode()
    assert policy.split("; ") == [
        "default-src 'none'", f"style-src 'sha256-{digest}'", "base-uri 'none'", "form-action 'none'",
    ]  # fmt: skip
    assert "prefers-color-scheme: dark" in parsed.style


def test_numbers_are_exactly_those_of_the_record(hostile):
    record, source = hostile
    parsed = Page(source)
    n = len(HOSTILE)
    pairs = [x for pair in zip(record.token_logprobs, record.entropies, strict=True) for x in pair]
    values = [value for _, value in parsed.numbers]
    assert values[:2] == [record.sequence_logprob, record.mean_logprob]
    assert values[2 : 2 + 2 * n] == pairs  # details of each token
    assert values[2 + 2 * n : 2 + 4 * n] == pairs  # the table
    rows = [row for row in parsed.rows if row]
    assert rows[:n] == [list(pair) for pair in zip(record.token_logprobs, record.entropies, strict=True)]
    assert [name for name, _ in parsed.cells[:n]] == [f"t l{level_of(lp)}" for lp in record.token_logprobs]
    for logprob in record.token_logprobs:
        assert f">{logprob:.4f}</data>" in source


def test_ranks_and_alternatives_are_there_only_if_known():
    with_all = page([shown(scored(["a"]))], title="t")
    assert "rank 1" in with_all and "&lt;i&gt;other" in with_all and "entropy" in with_all
    bare = page([shown(generation(["a"], [-1.0]))], title="t")
    body = bare[bare.index("<body>") :]
    assert "rank" not in body and ">entropy" not in body and "alternatives" not in body


def columns(source):
    """Names of the table's columns and the number of cells in each row."""
    heads = re.findall(r'<th scope="col"[^>]*>(.*?)</th>', source)
    return heads, {row.count("<td") for row in re.findall(r"<tr><td.*?</tr>", source, flags=re.S)}


@pytest.mark.parametrize(
    ("tops", "entropies", "names"),
    [
        (True, True, ["#", "token", "logprob", "p", "rank", "entropy", "alternatives (p)"]),
        (True, False, ["#", "token", "logprob", "p", "rank", "alternatives (p)"]),
        (False, True, ["#", "token", "logprob", "p", "entropy"]),
        (False, False, ["#", "token", "logprob", "p"]),
    ],
)
def test_the_table_has_the_columns_that_are_known(tops, entropies, names):
    source = page([shown(scored(["a", "b"], tops=tops, entropies=entropies))], title="t")
    assert columns(source) == (names, {len(names)})


def test_every_token_can_be_reached_by_keyboard_and_read_as_a_table(hostile):
    parsed = Page(hostile[1])
    spans = [a for tag, a in parsed.elements if tag == "span" and (a.get("class") or "").startswith("t l")]
    assert all(a.get("tabindex") == "0" for a in spans) and len(spans) == len(HOSTILE) + 1
    assert [a for tag, a in parsed.elements if tag == "th"] and all(
        a.get("scope") == "col" for tag, a in parsed.elements if tag == "th"
    )
    ids = [a["id"] for _, a in parsed.elements if "id" in a]
    assert len(ids) == len(set(ids)) and {"h1", "h2", "table1", "table2"} == set(ids)


def test_the_same_record_gives_the_same_bytes():
    assert page([shown(scored(["a"]))], title="t") == page([shown(scored(["a"]))], title="t")


def test_bytes_in_right_to_left_text_read_from_left_to_right():
    parsed = Page(page([shown(scored(["سلام", "\\xd9", " \\xd9\\x86", "abc"]))], title="t"))
    cells = [a for tag, a in parsed.elements if tag == "span" and (a.get("class") or "").startswith("t l")]
    assert [a.get("dir") for a in cells] == [None, "ltr", "ltr", None]
    assert any(a.get("class") == "tokens" and a.get("dir") == "auto" for _, a in parsed.elements)


def test_an_impossible_token_and_an_empty_answer_have_a_page():
    source = page([shown(generation(["a"], [float("-inf")])), shown(scored([]))], title="t", prompt="")
    parsed = check_self_contained(source)
    assert float("-inf") in [value for _, value in parsed.numbers] and "(empty text)" in source


def test_files_are_whole_or_not_there(tmp_path, monkeypatch):
    import os

    target = tmp_path / "page.html"
    write_for_user(target, b"old")

    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(DataError, match=r"cannot write .*No space left"):
        write_for_user(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]
    monkeypatch.undo()
    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(DataError, match=r"cannot write .*No space left"):
        write_for_user(target, b"new")
    assert target.read_bytes() == b"old" and list(tmp_path.iterdir()) == [target]


def test_targets_that_cannot_be_written_are_refused_before_work(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        check_target(tmp_path / "none" / "a.html", (".html",))
    (tmp_path / "dir.html").mkdir()
    with pytest.raises(DataError, match="folder"):
        check_target(tmp_path / "dir.html", (".html",))
    with pytest.raises(ValueError, match=r"must end in \.html"):
        check_target(tmp_path / "a.txt", (".html",))
    (tmp_path / "real.html").write_text("x")
    (tmp_path / "link.html").symlink_to(tmp_path / "real.html")
    write_for_user(tmp_path / "link.html", b"y")
    assert (tmp_path / "link.html").is_symlink() and (tmp_path / "real.html").read_text() == "y"
