"""Do two tokenizers give the same ids? A battery of awkward texts, and one loud line when they do not.

Tokenizers that differ on rare text (digits, runs of spaces, marks) give slightly wrong likelihoods that nobody notices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from likely.tokenizers.protocol import Tokenizer, common_length

_DIGITS = [
    "0", "7", "12", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "1 000 000", "-42", "+1",
    "1e-10", "0x1F", "10:45", "2024-02-29", "v2.0.1-rc3", "a1b2c3", "1st 2nd 3rd", "½ ¼ ¾", "x² y³", "Ⅷ Ⅸ",
    "٣٤٥", "१२३", "１２３",
]  # fmt: skip
_SPACES = [
    "", " ", "  ", "   ", " " * 7, " " * 40, "\n", "\n\n", "\n\n\n\n", "\t", "\t\t\t", "\r\n", "\r", " \n",
    "\n ", "\n  \n", "a b", "a  b", "a   b", "a\tb", "a\nb", "a \n b", "a\n\n  b", " leading", "   leading",
    "trailing ", "trailing   ", "  both  ", "end\n", "\nstart", "a\u00a0b", "a\u3000b", "a\u2028b", "a\u200bb",
    "\ufeffbom", "x"+" " * 31+"y", "x"+" " * 32+"y", "    return x\n\n\n    # done\n",
]  # fmt: skip
_SCRIPTS = [
    "Straße, Größe, Übermut", "naïve café déjà vu", "Zażółć gęślą jaźń", "Příliš žluťoučký kůň",
    "İstanbul ıslak", "Việt Nam đẹp lắm", "Съешь ещё этих булок", "Ξεσκεπάζω την ψυχοφθόρα", "שלום עולם",
    "مرحبا بالعالم", "नमस्ते दुनिया", "হ্যালো বিশ্ব", "வணக்கம் உலகம்", "สวัสดีชาวโลก", "こんにちは世界",
    "カタカナとひらがな", "你好，世界", "繁體中文測試", "안녕하세요 세계", "Բարեւ աշխարհ", "გამარჯობა მსოფლიო",
    "ሰላም ልዑል", "ᏣᎳᎩ", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𐍈𐌰𐌿", "ﷺ", "ﬁ ﬂ",
]  # fmt: skip
_MARKS = [
    "e\u0301", "é", "n\u0303o", "\u0301", "a\u0300\u0301\u0302\u0303", "Z\u0351\u036b\u0343a", "한글",
    "\u1112\u1161\u11ab", "😀", "👍🏽", "👩‍👩‍👧‍👦", "🇩🇪🇫🇷", "1️⃣", "❤️", "😀😀😀😀", "text😀text", "▁",
    "a▁b", "▁▁ ▁", "\ufffd", "\u0000", "a\u0000b", "\x7f", "\x1b[31mred\x1b[0m",
]  # fmt: skip
_WORDS = [
    "Hello world", "hello", " hello", "HELLO", "hElLo", "don't", "DON'T", "they're we'll I'd he's", "o'clock",
    "'s 't 'll", "rock 'n' roll", "“quoted” ‘text’", "wait... what?!", "e-mail", "semi;colon:",
    "(a) [b] {c} <d>", "a/b\\c", "C++ and C#", "100%", "$5.00 €7 £3", "user@example.org",
    "https://example.org/a?b=c&d=%20#e", "#tag @name", "~/.bashrc", "_under_score__", "camelCaseWord",
    "snake_case_word", "ALL_CAPS", "Mr. Smith went to Washington, D.C.", "The quick brown fox jumps.",
    "antidisestablishmentarianism", "Donaudampfschifffahrtsgesellschaft", "asdfghjkl qwertz",
]  # fmt: skip
_CODE = [
    "def f(x):\n    return x ** 2\n", "for (int i = 0; i < n; ++i) { a[i] += 1; }", 'print("hi\\n")',
    "if x == 'y' and not z:", '{"a": [1, 2.5, null, true], "b": {"c": "d"}}', "<div class=\"x\">&nbsp;</div>",
    "SELECT * FROM t WHERE a >= 3;", "\tif err != nil {\n\t\treturn err\n\t}\n", "a => b ?? c", "lambda x: x@y",
    "#!/bin/sh\nset -eu\n", "x = {}\n\n\n\ny = []\n", "// ----------------\n", "/* **** */",
    "$x^2 + \\frac{1}{2}$", "| a | b |\n|---|---|\n", "```python\npass\n```",
]  # fmt: skip
_CONTROL = [
    "<|im_start|>user\nhi<|im_end|>\n", "<|im_end|>", "a<|im_end|>b", " <|im_end|> ", "<|endoftext|>",
    "<|im_end|", "<eos>", "<bos>text", "<start_of_turn>user\nhi<end_of_turn>\n", "<unk><pad>",
    "[INST] x [/INST]", "<0x0A>", "<|eot_id|>", "< |im_end| >",
]  # fmt: skip
_RUNS = [
    "a" * 500, "ab" * 300, "=" * 80, "-" * 333, "." * 100, "!?" * 60, "哈" * 100, "0" * 100, "é" * 90,
    "\n" * 70, "the " * 200,
]  # fmt: skip

BATTERY: tuple[str, ...] = (*_DIGITS, *_SPACES, *_SCRIPTS, *_MARKS, *_WORDS, *_CODE, *_CONTROL, *_RUNS)


@dataclass(frozen=True)
class Mismatch:
    """One text whose ids differ. at: the first position where they do."""

    text: str
    parse_special: bool
    a: tuple[int, ...]
    b: tuple[int, ...]

    @property
    def at(self) -> int:
        return common_length(self.a, self.b)


def compare_tokenizers(
    a: Tokenizer, b: Tokenizer, texts: Iterable[str] = BATTERY, *, parse_special: tuple[bool, ...] = (False, True)
) -> list[Mismatch]:
    """The texts on which two tokenizers give different ids, control tokens taken as text and parsed."""
    found = []
    for text in texts:
        for special in parse_special:
            left, right = a.encode(text, parse_special=special), b.encode(text, parse_special=special)
            if left != right:
                found.append(Mismatch(text, special, tuple(left), tuple(right)))
    return found


def mismatch_message(mismatches: list[Mismatch], *, a: str = "this tokenizer", b: str = "llama.cpp's own") -> str:
    """One line to shout when there are mismatches; a, b name the tokenizers. The shortest text is the example."""
    worst = min(mismatches, key=lambda m: len(m.text))
    start = max(0, worst.at - 1)
    near = slice(start, worst.at + 3)
    return (
        f"TOKENIZERS DIFFER: {a} and {b} give different ids for {len(mismatches)} texts, e.g. {worst.text[:60]!r}: "
        f"{list(worst.a[near])} and {list(worst.b[near])} from token {start}; likelihoods will not agree."
    )
