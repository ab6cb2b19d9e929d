"""Fifty regular expressions, and how two engines are compared on one of them."""

from __future__ import annotations

import numpy as np

from likely.decoding.constraint import members

REGEXES = [
    r"[0-9]{2}", r"[a-z]+", r"\d{4}-\d{2}-\d{2}", r"(yes|no|maybe)", r"(yes|no|maybe)( not)?", r".*", r".{0,7}",
    r"\w+", r"\w+\s\w+", r"\S+", r"[^\n]*\n", r"-?(0|[1-9]\d*)(\.\d+)?", r"[A-Z][a-z]*( [A-Z][a-z]*){0,3}",
    r"(a|b)*abb", r"a{3,5}b?", r"\"[^\"\\]*\"", r"\{\"a\": ?(true|false|null)\}", r"[\w.+-]+@\w+\.\w{2,3}",
    r"https?://[a-z./]+", r"#[0-9a-fA-F]{6}", r"\d{1,3}(\.\d{1,3}){3}", r"\(\d{3}\) \d{3}-\d{4}", r"[01]+",
    r"(01|10)*", r"[àéèü]+", r"é?a", r"[α-ω]+", r"[一-龥]{1,4}", r"(?s).+", r"[^a-z]+", r"\D+", r"\W", r"[^\s]*x",
    r"a|ab|abc|abcd", r"(|x)y", r"()", r"x?", r"( |\t){1,8}", r"\t\n", r"[\[\]{}]+", r"\$\d+\.\d\d",
    r"(mon|tues|wednes|thurs|fri|satur|sun)day", r"[a-f]{0,3}[0-9]", r"(ab|a)(bc|c)",
    r"v\d+(\.\d+)*(-(alpha|beta)\d?)?", r"[ -~]+", r"\+?[\d ]{7,15}", r"€\d+", r"^The .* end\.$",
    r"(lorem|ipsum|dolor|sit|amet)(, (lorem|ipsum|dolor|sit|amet))*",
]  # fmt: skip


def agree(reference, other, pattern, prefixes, seed):
    """Bit-identical masks along random texts of the language, 20 prefixes of each."""
    rng = np.random.default_rng(seed)
    vocabulary = reference.vocabulary
    start_r, start_o = reference, other
    reference, other = start_r.fork(), start_o.fork()
    for _ in range(prefixes):
        one, two = reference.allowed(), other.allowed()
        differing = members(one ^ two)
        assert not len(differing), (pattern, [vocabulary.tokens[i] for i in differing[:5]])
        go_on = [t for t in members(one) if t not in vocabulary.end_ids]
        if not go_on or rng.random() < 0.1:
            reference, other = start_r.fork(), start_o.fork()
            continue
        if "\\d" in pattern.lower() or "\\w" in pattern.lower():  # else into scripts that one Unicode version has alone
            go_on = [t for t in go_on if _is_text(vocabulary.tokens[t])] or go_on
        short = [t for t in go_on if len(vocabulary.tokens[t]) == 1]
        token = int(rng.choice(short if short and rng.random() < 0.5 else go_on))
        reference.advance(token)
        other.advance(token)


def _is_text(text: bytes) -> bool:
    try:
        return bool(text.decode())
    except UnicodeDecodeError:
        return False
