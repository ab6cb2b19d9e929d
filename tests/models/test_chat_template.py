"""Chat templates: equal to transformers', closed against control tokens in contents, exact about system and BOS."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from likely.errors import DataError, ModelError
from likely.models.chat_template import ChatTemplate, fold_system, render_chat
from likely.tokenizers.protocol import decode

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "<start>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<start>model\n{% endif %}"
)
DROPS_SYSTEM = "{% for m in messages if m.role != 'system' %}[{{ m.role }}]{{ m.content }}{% endfor %}"
RICH = """{%- macro block(m, ns) -%}
    {%- set ns.count = ns.count + 1 -%}
    {{ ns.count ~ ':' ~ m.role | upper }}|{{ m.content | trim | replace('a', 'b') | indent(2) }}
{%- endmacro -%}
{%- set ns = namespace(count=0, last='') -%}
{%- if tools is defined and tools %}{{ tools | tojson }}{% endif -%}
{%- set users = messages | selectattr('role', 'equalto', 'user') | list -%}
{{- users | length }} of {{ messages | length }}, {{ messages | map(attribute='role') | unique | join(', ') }}
{% for m in messages[::-1] %}
    {%- if m.content.startswith('skip') %}{% continue %}{% endif %}
    {%- set ns.last = m.content.split('x')[-1].strip() %}
    {{ loop.index }}/{{ loop.length }} {{ loop.last }} {{ block(m, ns) }}
    {% generation %}{{ m | tojson(indent=2) }}{% endgeneration %}
    {% for key, value in m.items() %}{{ key }}={{ value[:3] }};{% endfor %}
    {% for c in m.content if c in 'aeiou' %}{{ c * 2 }}{% else %}none{% endfor %}
{% endfor %}
{{- ns.last or 'nothing' }} {{ (7 + 3) * 2 // 3 % 5 }} {{ [1, (2, 3), {'k': none}] }} {{ undefined_thing }}
{%- set held %}<{{ eos_token }}>{% endset %}{{ held }}{% if add_generation_prompt %}[go]{% endif %}
"""
TEMPLATES = {"chatml": CHATML, "no system": NO_SYSTEM, "drops system": DROPS_SYSTEM, "rich": RICH}
CONVERSATIONS = [
    [("user", "Hello")],
    [("user", "a\n b\n\nc <b>&amp;'\"</b>"), ("assistant", " yes "), ("user", "é漢字🙂 axa")],
    [("user", ""), ("assistant", ""), ("user", "skip this")],
    [("user", "{{ 7*7 }} {% raw %}"), ("assistant", "\\n")],
]


def talk(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def reference(source: str, messages: list[dict[str, str]], **settings: object) -> str:
    rendered, _ = render_jinja_template([messages], chat_template=source, **settings)
    return rendered[0]


@dataclass
class ByteTokenizer:
    """A token per UTF-8 byte, then the control tokens; with `space_first` it begins every text with a space."""

    special: tuple[str, ...] = ("<|im_start|>", "<|im_end|>", "<bos>", "<start>", "<end>")
    add_bos: bool = False
    space_first: bool = False
    chat_template: str | None = None
    fingerprint: str = "bytes"
    eos_id: int | None = None
    end_ids: frozenset[int] = frozenset()
    special_tokens: dict[str, int] = field(init=False)

    def __post_init__(self) -> None:
        self.special_tokens = {text: 256 + i for i, text in enumerate(self.special)}
        self.vocab_size = 256 + len(self.special)
        self.bos_id = self.special_tokens.get("<bos>")

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        if self.space_first and text and not (parse_special and text.startswith(self.special)):
            text = " " + text
        if not parse_special:
            return list(text.encode())
        parts = re.split(f"({'|'.join(map(re.escape, sorted(self.special, key=len, reverse=True)))})", text)
        return [t for p in parts for t in ([self.special_tokens[p]] if p in self.special_tokens else p.encode())]

    def token_bytes(self, token: int) -> bytes:
        return bytes([token]) if token < 256 else b""

    def token_text(self, token: int) -> str:
        return chr(token) if token < 256 else self.special[token - 256]

    def written(self, tokens: list[int]) -> str:
        """The text with control tokens spelt out."""
        return b"".join(self.token_bytes(t) or self.special[t - 256].encode() for t in tokens).decode()


def control(tokens: list[int]) -> list[int]:
    return [t for t in tokens if t >= 256]


@pytest.mark.parametrize("name", TEMPLATES)
@pytest.mark.parametrize("turns", CONVERSATIONS)
@pytest.mark.parametrize("prompt", [True, False])
def test_rendering_equals_transformers(name: str, turns: list[tuple[str, str]], prompt: bool) -> None:
    messages = talk(*turns)
    ours = ChatTemplate(TEMPLATES[name], bos_token="<bos>", eos_token="</s>")
    expected = reference(TEMPLATES[name], messages, add_generation_prompt=prompt, bos_token="<bos>", eos_token="</s>")
    assert ours.render(messages, add_generation_prompt=prompt) == expected


def test_the_time_is_formatted_as_in_transformers() -> None:
    source, messages = "{{ strftime_now('%Y-%m') }}", talk(("user", "x"))
    assert ChatTemplate(source).render(messages) == reference(source, messages)


def test_tokens_are_those_of_the_whole_text_without_control_tokens_in_contents() -> None:
    tokenizer = ByteTokenizer()
    for turns in CONVERSATIONS:
        rendered = render_chat(tokenizer, ChatTemplate(CHATML), talk(*turns))
        assert rendered.tokens == tokenizer.encode(rendered.text, parse_special=True)
        assert rendered.text == ChatTemplate(CHATML).render(talk(*turns))


PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|im_",
    "end|>",
    "<",
    ">",
    "|",
    "im_end",
    "<bos>",
    "a",
    " ",
    "\n",
    "é🙂",
    "\U000f0000",
]
contents = st.lists(st.sampled_from(PIECES), max_size=6).map("".join) | st.text(max_size=12)


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.lists(contents, min_size=1, max_size=4), st.booleans())
def test_contents_never_become_control_tokens(texts: list[str], space_first: bool) -> None:
    tokenizer = ByteTokenizer(space_first=space_first)
    messages = talk(*((("user", "assistant")[i % 2], text) for i, text in enumerate(texts)))
    rendered = render_chat(tokenizer, ChatTemplate(CHATML), messages)
    assert rendered.text == ChatTemplate(CHATML).render(messages)
    assert tokenizer.written(rendered.tokens) == rendered.text
    start, end = tokenizer.special_tokens["<|im_start|>"], tokenizer.special_tokens["<|im_end|>"]
    assert control(rendered.tokens) == [start, end] * len(texts) + [start]


@pytest.mark.parametrize("content", ["end|>", " end|>\n", "<|im_", "x<|im_ ", "|", "<|im_start|"])
def test_contents_cannot_complete_a_control_token_with_the_templates_text(content: str) -> None:
    source = "{% for m in messages %}<|im_{{ m.content | trim }}end|>{% endfor %}"
    tokenizer = ByteTokenizer(special=("<|im_end|>", "<|im_|end|>", "<|im_start|>", "<|im_<|im_end|>"))
    rendered = render_chat(tokenizer, ChatTemplate(source), talk(("user", content)))
    assert rendered.text == f"<|im_{content.strip()}end|>"
    assert tokenizer.written(rendered.tokens) == rendered.text
    assert control(rendered.tokens) == []


def test_a_control_token_in_a_name_stays_text() -> None:
    tokenizer = ByteTokenizer()
    messages = [{"role": "user", "content": "x", "name": "<|im_end|>"}]
    rendered = render_chat(tokenizer, ChatTemplate("<|im_start|>{{ messages[0].name }}"), messages)
    assert control(rendered.tokens) == [tokenizer.special_tokens["<|im_start|>"]]


def test_a_tokenizer_that_cannot_write_a_control_token_as_text_is_an_error() -> None:
    class Stubborn(ByteTokenizer):
        def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
            return super().encode(text, parse_special=True)

    with pytest.raises(ModelError, match="cannot write '<bos>' as plain text"):
        render_chat(Stubborn(), ChatTemplate(CHATML), talk(("user", "<bos>")))


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("printed", ["<bos>", ""])
@pytest.mark.parametrize("content", ["hi", "<bos>hi"])
def test_beginning_of_sequence_comes_once(add_bos: bool, printed: str, content: str) -> None:
    tokenizer = ByteTokenizer(add_bos=add_bos)
    source = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
    tokens = render_chat(tokenizer, ChatTemplate(source, bos_token=printed), talk(("user", content))).tokens
    wanted = [tokenizer.bos_id] if add_bos or printed else []
    assert tokens == wanted + list(content.encode())


@pytest.mark.parametrize("source", [NO_SYSTEM, DROPS_SYSTEM])
def test_system_is_folded_visibly_where_the_model_has_no_such_role(source: str) -> None:
    template = ChatTemplate(source, bos_token="<bos>")
    assert not template.takes_system
    rendered = render_chat(ByteTokenizer(), template, talk(("system", "Be brief."), ("user", "Hi")))
    assert rendered.system_folded and "user" in rendered.text and "Be brief.\n\nHi" in rendered.text
    plain = render_chat(ByteTokenizer(), template, talk(("user", "Be brief.\n\nHi")))
    assert plain.tokens == rendered.tokens and not plain.system_folded


def test_system_is_left_alone_where_the_model_has_the_role() -> None:
    messages = talk(("system", "Be brief."), ("user", "Hi"))
    rendered = render_chat(ByteTokenizer(), ChatTemplate(CHATML), messages)
    assert not rendered.system_folded
    assert rendered.text.startswith("<|im_start|>system\nBe brief.<|im_end|>")


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([("system", "a")], "no user message"),
        ([("user", "a"), ("system", "b")], "only one system message"),
        ([("system", "a"), ("system", "b"), ("user", "c")], "only one system message"),
    ],
)
def test_what_cannot_be_folded_is_an_error(turns: list[tuple[str, str]], words: str) -> None:
    with pytest.raises(DataError, match=words):
        fold_system(talk(*turns))


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([], "messages is empty"),
        ("Hello", "must be a list"),
        ({"role": "user", "content": "x"}, "must be a list"),
        (["Hello"], r"messages\[0\] must be like"),
        ([{"role": "usr", "content": "x"}], 'unknown role .usr.; allowed: .*did you mean "user"'),
        ([{"role": "user"}], 'messages.0.: field "content" is missing .found: role.'),
        ([{"content": "x"}], 'field "role" is missing'),
        ([{"role": "user", "content": None}], '"content" must be a string, got None'),
        ([{"role": "user", "content": ["x"]}], '"content" must be a string'),
        ([{"role": "user", "content": "x", "contnt": "y"}], 'unknown field .contnt.*did you mean "content"'),
        ([{"role": "user", "content": "\ud83d"}], "half of a surrogate pair"),
    ],
)
def test_malformed_messages_are_one_line(messages: object, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        ChatTemplate(CHATML).render(messages)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


def test_what_the_template_refuses_is_one_line() -> None:
    with pytest.raises(DataError, match=r"does not take these messages: Roles must alternate user/assistant$"):
        ChatTemplate(NO_SYSTEM).render(talk(("user", "a"), ("user", "b")))


# --- with the real tokenizer ------------------------------------------------------------------------------------------


@dataclass
class LlamaVocabulary:
    """llama.cpp's own tokenizer for the tests here."""

    llama: object
    special_tokens: dict[str, int]
    add_bos: bool = False
    bos_id: int | None = None

    def encode(self, text: str, *, parse_special: bool = False) -> list[int]:
        return self.llama.tokenize(text.encode(), add_bos=False, special=parse_special)  # type: ignore[attr-defined]

    def token_bytes(self, token: int) -> bytes:
        return b"" if token in self.special_tokens.values() else self.llama.detokenize([token])  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def smollm2(smollm2_path):
    llama_cpp = pytest.importorskip("llama_cpp")
    llama = llama_cpp.Llama(str(smollm2_path), vocab_only=True, verbose=False)
    special = {"<|im_start|>": 1, "<|im_end|>": 2, "<|endoftext|>": 0}
    for text, token in special.items():
        assert llama.tokenize(text.encode(), add_bos=False, special=True) == [token]
    return LlamaVocabulary(llama, special), ChatTemplate(llama.metadata["tokenizer.chat_template"])


REAL_CONVERSATIONS = [
    talk(("user", "What is 2+2?")),
    talk(("system", "Answer in French."), ("user", "Hello there"), ("assistant", "Bonjour"), ("user", " and\n\nnow? ")),
    talk(("user", "\n\ndef f(x):\n    return x"), ("assistant", "é漢字🙂")),
]


@pytest.mark.slow
@pytest.mark.real
def test_smollm2_equals_transformers(smollm2, smollm2_path) -> None:
    from transformers import AutoTokenizer

    tokenizer, template = smollm2
    theirs = AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    for messages in REAL_CONVERSATIONS:
        for prompt in (True, False):
            text = theirs.apply_chat_template(
                messages, chat_template=template.source, tokenize=False, add_generation_prompt=prompt
            )
            rendered = render_chat(tokenizer, template, messages, add_generation_prompt=prompt)
            assert rendered.text == text
            assert rendered.tokens == theirs.encode(text, add_special_tokens=False)


@pytest.mark.real
@settings(max_examples=60, deadline=None)
@given(st.lists(contents, min_size=1, max_size=3))
def test_smollm2_contents_never_become_control_tokens(smollm2, texts: list[str]) -> None:
    tokenizer, template = smollm2
    messages = talk(("system", "s"), *(("user", text) for text in texts))
    rendered = render_chat(tokenizer, template, messages)
    assert [t for t in rendered.tokens if t < 3] == [1, 2] * len(messages) + [1]
    dropped = {0x04, 0x06, 0x13, 0x14, 0x16, 0x1D}
    if max(map(ord, rendered.text)) > 0xFFFF or dropped & set(map(ord, rendered.text)):
        return  # the vocabulary has no token for some control characters and bytes of the planes above
    body = rendered.text.replace("<|im_start|>", "").replace("<|im_end|>", "")
    assert decode(tokenizer, rendered.tokens).replace("<|im_start|>", "").replace("<|im_end|>", "") == body
