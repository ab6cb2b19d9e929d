"""Chat templates out of a hostile model file: refused in one line, after bounded work, and nothing reached."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from likely.errors import DataError, LikelyError, ModelError
from likely.models import template_sandbox
from likely.models.chat_template import ChatTemplate

MESSAGES = [{"role": "user", "content": "hi"}]


def render(source: str) -> str:
    return ChatTemplate(source).render(MESSAGES)


def grown(step: str, start: str = "'aa'") -> str:
    return f"{{% set ns = namespace(x={start}) %}}{{% for i in range(60) %}}{step}{{% endfor %}}{{{{ ns.x }}}}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'a' * 10**9 }}",
        "{{ 1000000000 * 'a' }}",
        "{{ messages * 100000000 }}",
        "{{ [1] * (10**9) }}",
        "{{ 2 ** 10000000 }}",
        "{{ (2 ** 200) * (2 ** 200) }}",
        "{{ 9" + "9" * 5000 + " }}",
        grown("{% set ns.x = ns.x * ns.x %}", "3"),
        grown("{% set ns.x = ns.x + ns.x %}"),
        grown("{% set ns.x = ns.x ~ ns.x %}"),
        grown("{% set ns.x = [ns.x, ns.x] %}"),
        grown("{% set ns.x = (ns.x, ns.x) %}"),
        grown("{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
        grown("{% set ns.x = dict(a=ns.x, b=ns.x) %}"),
        grown("{% set ns.x = namespace(a=ns.x, b=ns.x) %}"),
        grown("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        grown("{% set ns.x = ns.x | replace('a', ns.x) %}"),
        grown("{% set ns.x = ns.x.replace('a', ns.x) %}"),
        grown("{% set ns.x = ns.x.replace('', ns.x) %}"),
        grown("{% set ns.x = ns.x.join(ns.x) %}"),
        grown("{% set ns.x = ns.x | join(ns.x) %}"),
        grown("{% set ns.x = ns.x | indent(ns.x) %}", "'a\\nb'"),
        grown("{% set ns.x = ns.x | list %}{% set ns.x = [ns.x, ns.x] | string %}"),
        "{{ 'a' | indent(1000000000) }}",
        "{{ messages | tojson(indent=100000000) }}",
        "{{ 'a' | center(1000000000) }}",
        "{{ 'a'.center(1000000000) }}",
        "{{ 'a'.zfill(1000000000) }}",
        "{{ '\\t'.expandtabs(1000000000) }}",
        "{{ '%1000000000d' % 1 }}",
        "{{ '%1000000000d' | format(1) }}",
        "{{ '{:1000000000}'.format(1) }}",
        "{{ '{x:1000000000}'.format_map({'x': 1}) }}",
        "{{ (1).to_bytes(1000000000) }}",
        "{{ 1 | round(1000000000, 'ceil') }}",
        "{{ [1] | batch(1000000000, 'x') | list }}",
        "{{ lipsum(n=1000000) }}",
        "{{ range(10**12) }}",
        "{{ range(100001) | list }}",
        "{{ strftime_now('%Y' * 100000) }}",
        "{% for a in range(100000) %}" + "x" * 1000 + "{% endfor %}",
        "{% for a in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% macro f() %}{% for a in range(100000) %}" + "x" * 9000 + "{% endfor %}{% endmacro %}{{ f() }}",
        "x" * (template_sandbox.MAX_SOURCE + 1),
    ],
)
def test_large_values_are_refused(source: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "source",
    [
        "{% for a in range(100000) %}{% for a in range(100000) %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{% for a in range(100000) if false %}{% endfor %}{% endfor %}",
        "{% for a in range(100000) %}{{ range(100000) | map('string') | list | length }}{% endfor %}",
        "{% for a in range(100000) %}{% if range(100000) | select('none') | first %}{% endif %}{% endfor %}",
        "{% macro f(n) %}{% if n %}{% set x = f(n - 1) %}{% set x = f(n - 1) %}{% endif %}{% endmacro %}{{ f(60) }}",
        "{% for a in range(50) recursive %}{% if loop.depth < 20 %}{{ loop(range(50)) }}{% endif %}{% endfor %}",
        "{% set x = 'x' * 4000000 %}{% for i in range(100000) %}{% if x == x ~ '' %}{% endif %}{% endfor %}",
    ],
)
def test_endless_work_is_stopped(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 50_000)
    monkeypatch.setattr(template_sandbox, "MAX_CPU_S", 0.2)
    with pytest.raises(ModelError, match=r"takes more than|larger than|recursion"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__ }}",
        "{{ ''['__class__'] }}",
        "{{ ''['__cla' ~ 'ss__'] }}",
        "{{ ().__class__.__bases__[0].__subclasses__() }}",
        "{{ '' | attr('__class__') }}",
        "{{ messages | map(attribute='__class__') | list }}",
        "{{ messages | map(attribute='items.__self__') | list }}",
        "{{ messages | selectattr('__class__') | list }}",
        "{{ messages | sort(attribute='__class__') }}",
        "{{ messages | join(attribute='__class__') }}",
        "{{ '{0.__class__}'.format(1) }}",
        "{{ ('{0.__class__}' | string).format(1) }}",
        "{{ raise_exception.__globals__ }}",
        "{{ range.__class__ }}",
        "{{ namespace.__init__ }}",
        "{{ namespace(__class__=1) }}",
        "{{ namespace({'__class__': 1}) }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ dict.fromkeys }}",
        "{{ self.__init__ }}",
        "{{ self._TemplateReference__context }}",
        "{% for a in [1] %}{{ loop._iterable }}{% endfor %}",
        "{% for a in [1] %}{{ loop.__init__ }}{% endfor %}",
        "{% macro m() %}{% endmacro %}{{ m._func }}",
        "{% macro m() %}{% endmacro %}{{ m.__class__ }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].pop('role') }}",
        "{{ environment.globals }}",
        "{{ context.parent }}",
        "{% include 'x' %}",
        "{% import 'os' as os %}",
        "{% extends 'x' %}",
    ],
)
def test_what_is_not_for_templates_cannot_be_reached(source: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(source)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source",
    [
        "{% for %}",
        "{{",
        "{% endfor %}",
        "{{ x | nosuchfilter }}",
        "{{ 1 / 0 }}",
        "{{ none.x.y }}",
        "{{ messages[7].role.x }}",
        "{{ messages() }}",
        "{{" + "(" * 500 + "1" + ")" * 500 + "}}",
        "{{ 1" + "+1" * 20000 + "}}",
        "{{ " + "-" * 5000 + "1 }}",
        "{% if 1 %}" * 500 + "{% endif %}" * 500,
        "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
        "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    ],
)
def test_broken_templates_are_one_line(source: str) -> None:
    with pytest.raises(ModelError) as caught:
        render(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_template_cannot_change_the_messages() -> None:
    message = {"role": "user", "content": "hi"}
    with pytest.raises(ModelError):
        ChatTemplate("{{ messages[0].update(content='x') }}").render([message])
    assert message == {"role": "user", "content": "hi"}


def test_a_long_refusal_is_cut() -> None:
    with pytest.raises(DataError) as caught:
        render("{{ raise_exception('no\nway ' * 1000) }}")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_one_rendering_does_not_use_up_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_sandbox, "MAX_STEPS", 10_000)
    template = ChatTemplate("{% for a in range(9000) %}{% endfor %}ok")
    assert [template.render(MESSAGES) for _ in range(12)] == ["ok"] * 12


def test_long_conversations_are_within_bounds() -> None:
    messages = [{"role": ("user", "assistant")[i % 2], "content": "word " * 400} for i in range(1000)]
    source = "{% for m in messages %}{{ m.role ~ ': ' + m.content | trim ~ '\\n' }}{% endfor %}"
    assert ChatTemplate(source).render(messages).count("\n") == 1000


PARTS = [
    "{{",
    "}}",
    "{%",
    "%}",
    "for",
    "in",
    "if",
    "set",
    "x",
    "=",
    "messages",
    "range(9)",
    "*",
    "~",
    "'a'",
    "|",
    "list",
]
PARTS += [
    "[",
    "]",
    "(",
    ")",
    ".",
    "items",
    "__class__",
    "endfor",
    "endif",
    "macro",
    "loop",
    "namespace",
    ",",
    "1",
    "join",
]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PARTS), max_size=14).map(" ".join))
def test_any_source_renders_or_is_one_line(source: str) -> None:
    try:
        assert isinstance(render(source), str)
    except LikelyError as error:
        assert "\n" not in str(error)
