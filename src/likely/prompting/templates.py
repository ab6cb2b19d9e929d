"""Prompts with places for an input, and pools of them: what `likely prompts select` chooses from.

A template is Jinja (bounded: a pool may come from anywhere): the prompt, "|||", and what the model should answer, as in
promptsource and in the pools of Yang et al. 2023:

    {"name": "mood", "template": "{{ text }} All in all, it was ||| {{ answer_choices[label] }}",
     "answer_choices": ["bad", "good"]}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from likely.errors import DataError, names_in, nearest
from likely.io.jsonl import Line, read_checked

BAR = "|||"
CHOICES, LABEL, TEXT = "answer_choices", "label", "text"


@dataclass(frozen=True)
class Template:
    """One prompt for a task of K answers.

    source   Jinja, prompt ||| answer; without "|||" the answer is {{ answer_choices[label] }}
    choices  the K verbalisers, in the order of the labels; an input with an `answer_choices` of its own replaces them
    prefix   text in front of every prompt, as it is: demonstrations, say; nothing in it is filled in
    """

    name: str
    source: str
    choices: tuple[str, ...]
    prefix: str = ""
    _prompt: Callable[..., str] = field(init=False, repr=False, compare=False)
    _answer: Callable[..., str] = field(init=False, repr=False, compare=False)
    fields: tuple[str, ...] = field(init=False, compare=False)  # of an input that the template asks for

    def __post_init__(self) -> None:
        if len(self.choices) < 2 or len(set(self.choices)) < len(self.choices):
            raise DataError(f'prompt "{self.name}": at least 2 different answer_choices are needed')
        prompt, bar, answer = self.source.partition(BAR)
        if BAR in answer:
            raise DataError(f'prompt "{self.name}": "{BAR}" stands between prompt and answer, once')
        answer = answer if bar else "{{ answer_choices[label] }}"
        in_prompt, render = _compiled(prompt, self.name)
        in_answer, render_answer = _compiled(answer, self.name)
        if LABEL in in_prompt:
            raise DataError(f'prompt "{self.name}": the prompt must not use "label", which is what is asked for')
        if LABEL not in in_answer:
            raise DataError(f'prompt "{self.name}": the answer must use "label", as in {{{{ answer_choices[label] }}}}')
        object.__setattr__(self, "_prompt", render)
        object.__setattr__(self, "_answer", render_answer)
        object.__setattr__(self, "fields", tuple(sorted((in_prompt | in_answer) - {CHOICES, LABEL})))

    @property
    def lead(self) -> str:
        """What stands before the first field: prompts that begin alike share the tokens of lead and input."""
        return self.prefix + self.source.partition("{")[0].lstrip()

    def prompt(self, record: Mapping[str, Any]) -> str:
        """The text before the answer: the prefix, and the prompt without white space at its ends."""
        filled = self._prompt(**self.values(record), answer_choices=list(self.answer_choices(record)))
        return self.prefix + filled.strip()

    def answers(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """The K answers as they would go on after the prompt: each with a space in front."""
        choices = self.answer_choices(record)
        values = self.values(record)
        found = [self._answer(**values, answer_choices=list(choices), label=k).strip() for k in range(len(choices))]
        if "" in found:
            raise DataError(f'prompt "{self.name}": answer {found.index("")} is empty')
        return tuple(" " + answer for answer in found)

    def pairs(self, record: Mapping[str, Any]) -> list[tuple[str, str]]:
        """(prompt, answer) for each of the K answers: what `score_pairs` takes."""
        prompt = self.prompt(record)
        return [(prompt, answer) for answer in self.answers(record)]

    def answer_choices(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        given = record.get(CHOICES)
        return self.choices if given is None else choices_of(given, f'prompt "{self.name}"')

    def values(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """What is filled in, by the field's name.

        The only field of a template takes `text` where the record has no such name.
        """
        found = {}
        for name in self.fields:
            source = TEXT if len(self.fields) == 1 and name not in record else name
            if source not in record:
                has = f"(found: {names_in(record)}){nearest(name, record)}"
                raise DataError(f'prompt "{self.name}" asks for the field "{name}" {has}')
            found[name] = record[source]
        return found


def choices_of(value: Any, where: str) -> tuple[str, ...]:
    """Verbalisers from a list, or from one text with ||| between them."""
    parts = value.split(BAR) if isinstance(value, str) else value
    if not isinstance(parts, list | tuple) or not all(isinstance(part, str) and part.strip() for part in parts):
        raise DataError(f'{where}: {CHOICES} must be texts, as ["no", "yes"] or "no {BAR} yes"')
    return tuple(part.strip() for part in parts)


@dataclass(frozen=True)
class PromptPool:
    """T templates of one task, with different names and as many answers each."""

    templates: tuple[Template, ...]

    def __post_init__(self) -> None:
        if not self.templates:
            raise DataError("a pool needs at least one prompt")
        names = self.names
        if len(set(names)) < len(names):
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise DataError(f'two prompts of the pool are called "{twice}": each needs a name of its own')
        first = self.templates[0]
        for template in self.templates:
            if len(template.choices) != len(first.choices):
                raise DataError(
                    f'prompt "{template.name}" has {len(template.choices)} answers, "{first.name}" '
                    f"{len(first.choices)}: the prompts of a pool need the same labels in the same order"
                )

    @classmethod
    def from_jsonl(cls, path: str | Path, *, task: str | None = None, limit: int | None = None) -> PromptPool:
        """Lines {"name", "template", "answer_choices"} (.gz, too); task: only lines with this "task".

        Without a name a line is called by its number.  DataError names file and line.
        """
        found: dict[int, Template] = {}
        tasks: set[str] = set()

        def check(line: Line) -> None:
            where = f"{path}:{line.number}"
            named = line.record.get("task")
            if isinstance(named, str):
                tasks.add(named)
            if task is None or named == task:
                found[line.number] = _template(line, where)

        lines = read_checked(path, check).lines
        if task is None and len(tasks) > 1:
            raise DataError(
                f"{path} holds prompts of {len(tasks)} tasks ({', '.join(sorted(tasks))}): choose one (task)"
            )
        if not found:
            what = f'no prompt of the task "{task}"{nearest(task, tasks)}' if task else "no prompts"
            raise DataError(f'{path} holds {what}: expected lines like {{"name", "template", "answer_choices"}}')
        templates = [found[line.number] for line in lines if line.number in found]
        return cls(tuple(templates[:limit]))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(template.name for template in self.templates)

    def __len__(self) -> int:
        return len(self.templates)

    def __iter__(self) -> Iterator[Template]:
        return iter(self.templates)

    def pick(self, names: Sequence[str]) -> PromptPool:
        """These prompts, in this order."""
        by_name = dict(zip(self.names, self.templates, strict=True))
        for name in names:
            if name not in by_name:
                raise DataError(f'the pool has no prompt "{name}"{nearest(name, by_name)}')
        return PromptPool(tuple(by_name[name] for name in names))


def _template(line: Line, where: str) -> Template:
    record = line.record
    for name in ("template", CHOICES):
        if name not in record:
            raise DataError(f'{where}: field "{name}" is missing (found: {names_in(record)})')
    name = record.get("name", f"line {line.number}")
    if not isinstance(record["template"], str) or not isinstance(name, str):
        raise DataError(f"{where}: name and template must be texts")
    try:
        return Template(name, record["template"], choices_of(record[CHOICES], "the line"))
    except DataError as error:
        raise DataError(f"{where}: {error}") from None


def _compiled(source: str, name: str) -> tuple[set[str], Callable[..., str]]:
    """(the variables that it uses, a function that fills it in)."""
    from jinja2 import meta
    from jinja2.exceptions import TemplateError

    from likely.models.template_sandbox import BoundedEnvironment

    environment = BoundedEnvironment()
    try:
        used = meta.find_undeclared_variables(environment.parse(source)) - set(environment.globals)
        compiled = environment.compile_bounded(source)
    except TemplateError as error:
        raise DataError(f'prompt "{name}": not a template: {error}') from None

    def render(**values: Any) -> str:
        environment.renew()
        try:
            return compiled.render(**values)
        except (TemplateError, ArithmeticError, TypeError, ValueError, LookupError) as error:
            raise DataError(f'prompt "{name}": cannot be filled in: {error}') from None

    return used, render
