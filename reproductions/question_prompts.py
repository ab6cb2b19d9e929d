"""Prompts for sorting questions by what they ask for (TREC) and text messages (SMS spam): pools of two studies."""

from __future__ import annotations

from likely.prompting.templates import PromptPool, Template

QUESTIONS = ("abbreviation", "description", "entity", "human", "location", "numeric")  # the data set's labels
KINDS = ("abbreviation", "description", "thing", "person", "place", "number")  # how they are said
MESSAGES = ("ham", "spam")

_QUESTION_PROMPTS = (
    "{{ text }} The question asks for a",
    "{{ text }} The answer to this question is a",
    "{{ text }} This is a question about a",
    "{{ text }} Kind of question:",
    "{{ text }} What is asked for is a",
    "{{ text }} The answer names a",
    "Question: {{ text }}\nKind of answer:",
    "Question: {{ text }}\nAnswer type:",
    "Question: {{ text }}\nTopic:",
    "Question: {{ text }}\nThe question is about a",
    "Question: {{ text }}\nCategory:",
    'The question "{{ text }}" asks for a',
    '"{{ text }}" is a question about a',
    'Whoever asks "{{ text }}" wants to hear a',
    'What does "{{ text }}" ask for? A',
    'The kind of the question "{{ text }}" is',
    "Sort the question by what it asks for. {{ text }}",
    "Say what the question asks for. {{ text }} It asks for a",
    'Is this about a {{ answer_choices | join(", a ") }}? {{ text }} It is about a',
    'Choose among {{ answer_choices | join(", ") }}. Question: {{ text }} Kind:',
    'Question: {{ text }}\nWhich of {{ answer_choices | join(", ") }}? Answer:',
    '{{ text }} Does it ask for a {{ answer_choices | join(" or a ") }}? For a',
    'Label the question with one of {{ answer_choices | join(", ") }}. {{ text }} Label:',
    'Kinds of questions: {{ answer_choices | join(", ") }}.\nQuestion: {{ text }}\nKind:',
)
_MESSAGE_PROMPTS = (
    ("Message: {{ text }}\nKind:", ("personal", "advertising")),
    ("Message: {{ text }}\nIs this message spam? Answer:", ("no", "yes")),
    ("{{ text }}\nThe message above was sent by a", ("friend", "company")),
    ("Text message: {{ text }}\nLabel (normal or spam):", ("normal", "spam")),
    ("SMS: {{ text }}\nThe sender of this SMS is a", ("friend", "company")),
)


def question_pool(count: int | None = None) -> PromptPool:
    """Prompts for TREC, `count` of them spread over the list; labels in the order of QUESTIONS."""
    step = 1 if count is None else max(1, len(_QUESTION_PROMPTS) // count)
    every = [Template(f"q{i:02}", source, KINDS) for i, source in enumerate(_QUESTION_PROMPTS)]
    return PromptPool(tuple(every[::step][:count]))


def message_pool() -> PromptPool:
    """Five prompts for SMS spam; labels in the order of MESSAGES."""
    return PromptPool(tuple(Template(f"m{i}", s, words) for i, (s, words) in enumerate(_MESSAGE_PROMPTS)))
