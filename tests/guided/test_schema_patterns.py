"""Patterns and formats mean one thing to the engine, to the check and to the standard they come from."""

from __future__ import annotations

import datetime
import ipaddress
import random
import re
import string
import uuid

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.guided.json_schema.formats import FORMATS, has_format
from likely.guided.json_schema.patterns import PatternError, is_quick, look_around, python_pattern, searcher
from likely.guided.json_schema.report import compile_bytes
from likely.guided.settings import FormSettings


@pytest.mark.parametrize(
    "pattern, inside, outside",
    [
        (r"\d", ["a1"], ["٣", "a"]),
        (r"^\w+$", ["a_1"], ["é", "a\n", ""]),
        (r"^\W$", ["é", "-"], ["a", "_"]),
        (r"^[\D]$", ["a", "٣"], ["1"]),
        (r"^\s$", [" ", "\u2003", "\ufeff", "\n"], ["\x85", "\x1c", "a"]),
        (r"^[\S]$", ["\x85", "a"], ["\u2003", " "]),
        (r"^.$", ["a", "é", "\x85"], ["\n", "\r", "\u2028"]),
        (r"^a$", ["a"], ["a\n"]),
        (r"\$", ["a$b"], ["a"]),
        (r"[$]", ["$"], ["a"]),
        (r"^a|b$", ["ac", "cb"], ["cbc"]),
        (r"^\u00e9\x41\/\-\cA\0$", ["éA/-\x01\x00"], ["eA"]),
        (r"^\u{1F600}$", ["😀"], ["😁"]),
        (r"^(?<year>\d{4})$", ["2020"], ["20"]),
        (r"^[[&&~~]+$", ["[&~"], ["a"]),
        (r"^[\]\\a-]+$", ["]\\-a"], ["b"]),
    ],
)
def test_patterns_of_ecma(pattern, inside, outside):
    find = searcher(pattern)
    assert all(map(find, inside)) and not any(map(find, outside))


@pytest.mark.parametrize("pattern", ["(", "[z-a]", "*a", "a{2,1}", "\\", "\\u12", "\\y", "(?<=a*)b", "a**"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(PatternError) as caught:
        searcher(pattern)
    assert caught.value.wrong


PIECES = ["a", "b", "[ab]", "[^a]", "(?:a|bc)", "x*", "(?:ab)+", "c?", "a{1,2}", "\\d", "\\s", ".", '"', "\\\\", "é"]


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=4), st.booleans(), st.booleans(), st.data())
def test_the_engine_and_the_check_agree(pieces, start, end, data):
    pytest.importorskip("llguidance")
    pattern = ("^" if start else "") + "".join(pieces) + ("$" if end else "")
    from likely.guided.json_schema.form import schema_form

    form = schema_form({"type": "string", "pattern": pattern}, FormSettings())
    constraint = compile_bytes(form.source, form.settings)
    text = data.draw(st.text(alphabet='abcxé1 "\\\n', max_size=6))
    from json import dumps

    recogniser = constraint.fork()
    for byte in dumps(text, ensure_ascii=False).encode():
        if not recogniser.permits(byte):
            taken = False
            break
        recogniser.advance(byte)
    else:
        taken = recogniser.accepting
    assert taken == searcher(pattern)(text) == bool(re.search(python_pattern(pattern), text))


def test_slow_patterns_are_told_from_quick_ones():
    for quick in ("^a+$", "^[a-z]{1,2000}$", "^a{3}b*c*$", "(foo|bar)", "^(?=.*a)(?=.*b).{8,}$"):
        assert is_quick(python_pattern(quick)), quick
    for slow in ("(a+)+b", "(a|a)*b", "a*b*c*d*", "(?:ab*)*c", "(a*)\\1"):
        assert not is_quick(python_pattern(slow)), slow
    assert searcher("(a|a)*b")("a" * 2000 + "b") and not searcher("^(a+)+b$")("a" * 2000)
    with pytest.raises(PatternError, match="very long"):
        searcher("(a*)\\1$")


def test_what_needs_looking_around():
    assert [look_around(p) for p in ("^a$", "^(a|b)$", "^a|b$", "(^a|b$)c?")][:3] == [None] * 3
    assert (
        look_around("a^b")
        and look_around("(?=a)b")
        and look_around("\\ba")
        and look_around("(a)\\1")
        and look_around("(a$)*")
    )


# --- formats ----------------------------------------------------------------------------------------------------------


def is_date(text):
    try:
        return bool(re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text)) and bool(datetime.date.fromisoformat(text))
    except ValueError:
        return False


def test_dates_are_those_of_the_calendar():
    for year in (1, 4, 100, 400, 999, 1900, 2000, 2023, 2024, 9999):
        for month in range(14):
            for day in range(33):
                text = f"{year:04d}-{month:02d}-{day:02d}"
                assert has_format("date", text) == is_date(text), text
    assert not has_format("date", "0000-01-01")


def changed(rng: random.Random, text: str, alphabet: str) -> str:
    """A near miss: some characters replaced, left out or put in."""
    letters = list(text)
    for _ in range(rng.randint(0, 2)):
        at = rng.randrange(len(letters) + 1)
        letters[at : at + rng.randint(0, 1)] = rng.choice(["", rng.choice(alphabet)])
    return "".join(letters)


def ipv6_of(text):
    try:
        ipaddress.IPv6Address(text)
        return "%" not in text
    except ValueError:
        return False


def ipv4_of(text):
    try:
        return bool(ipaddress.IPv4Address(text))
    except ValueError:
        return False


def uuid_of(text):
    try:
        return str(uuid.UUID(text)) == text.lower()
    except ValueError:
        return False


def test_addresses_and_uuids_agree_with_the_standard_library():
    rng = random.Random(0)
    seen = {True: 0, False: 0}
    for _ in range(6000):
        groups = [f"{rng.choice([0, 0, rng.randrange(65536)]):x}" for _ in range(8)]
        address = str(ipaddress.IPv6Address(":".join(groups)))
        if rng.random() < 0.3:
            address = f"{address.rpartition(':')[0]}:{rng.randrange(300)}.1.2.{rng.randrange(300)}"
        text = changed(rng, rng.choice([address, ":".join(groups), "::", "1::"]), "0:f.")
        assert has_format("ipv6", text) == ipv6_of(text), text
        seen[ipv6_of(text)] += 1
        four = changed(rng, ".".join(str(rng.randrange(300)) for _ in range(4)), "0.5")
        assert has_format("ipv4", four) == ipv4_of(four), four
        name = changed(rng, str(uuid.UUID(int=rng.getrandbits(128))), "0-fA")
        assert has_format("uuid", name) == uuid_of(name), name
    assert min(seen.values()) > 1000


def test_times_are_read_by_the_standard_library():
    rng = random.Random(1)
    for _ in range(3000):
        text = changed(rng, f"{rng.randrange(26):02d}:{rng.randrange(62):02d}:{rng.randrange(61):02d}Z", "0:.Z+")
        try:
            datetime.time.fromisoformat(text.upper())
            legal = bool(re.fullmatch(r"\d\d:\d\d:\d\d(\.\d{1,9})?([zZ]|[+-]\d\d:\d\d)", text))
        except ValueError:
            legal = False
        assert has_format("time", text) == legal, text


@pytest.mark.parametrize(
    "name, good, bad",
    [
        ("hostname", ["a", "a-b", "a1.b2", "1.2", "x" * 63, ".".join(["a" * 63] * 3 + ["a" * 61]), "ab-c"],
         ["", "-a", "a-", "a..b", ".a", "x" * 64, "xn--a", "ab--c", ".".join(["a" * 63] * 4), "a_b", "é"]),
        ("email", ["a@b", "a.b+c@d-e.org", "x@[1.2.3.4]"], ["a", "@b", "a@", ".a@b", "a..b@c", "a@-b", "a b@c"]),
        ("duration", ["P1Y", "P4DT12H30M5S", "PT0S", "P3W"], ["P", "PT", "1Y", "P1YT", "P1W2D", "P1D2H", "P1S"]),
        ("uri", ["http://a.b/c?d#e", "urn:x:y", "mailto:a@b", "http://[::1]:80/", "a:", "ftp://u:p@h/%20"],
         ["a", "//a", "http://a b", "http://[1::2::3]", "1a:b", "http://a/%2", "a:\\", "a:<b>"]),
        ("json-pointer", ["", "/a", "/a~0b/~1/"], ["a", "/~", "/~2"]),
        ("date-time", ["2020-02-29T23:59:59.123Z", "2021-01-01t00:00:00+01:00"],
         ["2021-02-29T00:00:00Z", "2021-01-01T24:00:00Z", "2021-01-01 00:00:00Z", "2021-01-01T00:00:00"]),
    ],
)  # fmt: skip
def test_formats(name, good, bad):
    assert all(has_format(name, text) for text in good)
    assert not any(has_format(name, text) for text in bad)


@pytest.mark.slow
def test_every_format_is_generated_and_checked():
    pytest.importorskip("llguidance")
    from toy_texts import uniform

    for name in FORMATS:
        results = uniform().generate("a", schema={"type": "string", "format": name}, n=10, max_tokens=300, seed=3)
        whole = [r for r in results if r.complete]
        assert whole and all(has_format(name, r.value) for r in whole), name
        assert set("".join(r.value for r in whole)) <= set(string.printable) | set("".join(r.value for r in whole))
