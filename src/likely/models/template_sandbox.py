"""A Jinja environment for chat templates, which are programs out of a model file: bounded in size, steps and reach.

Jinja's own sandbox stops attribute walks, not `"a" * 10**9`, `set x = [x, x]` forty times or loops that print nothing.
Here the surface is closed (lists of filters, functions and methods) and every value that a template makes is weighed:
no value is larger than MAX_WEIGHT, so that each operation is short, and the number of operations is counted.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from types import BuiltinMethodType, GeneratorType
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

MAX_SOURCE = 512 * 1024  # characters of a template
MAX_WEIGHT = 4 * 1024 * 1024  # of one value: a character is 1, an entry of a container ENTRY and what it holds
MAX_PRINTED = 256 * 1024 * 1024  # characters printed in all, macros and untaken branches counted in full
MAX_STEPS = 1_000_000  # loop rounds, calls, filters, operators
MAX_CPU_S = 5.0
MAX_DEPTH = 32  # containers in containers
MAX_BITS = 256  # of an integer
ENTRY = 32
CLOCK_EVERY = 200_000  # units of work between two looks at the clock


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


FILTERS = _words(
    """abs capitalize count d default dictsort e escape first float int items last length list lower map max min reject
    rejectattr reverse safe select selectattr sort string title trim unique upper wordcount"""
)
METHODS: dict[type, frozenset[str]] = {
    str: _words(
        """capitalize casefold count endswith find index isalnum isalpha isdecimal isdigit islower isnumeric isspace
        istitle isupper join lower lstrip partition removeprefix removesuffix replace rfind rindex rpartition rsplit
        rstrip split splitlines startswith strip swapcase title upper"""
    ),
    dict: _words("get items keys values"),
    list: _words("count index"),
    tuple: _words("count index"),
}
LOOP = _words("changed cycle depth depth0 first index index0 last length nextitem previtem revindex revindex0")


class Refusal(TemplateError):
    """`raise_exception` was called: the template does not take these messages."""


class Bounds:
    """What one rendering has used."""

    def __init__(self) -> None:
        self._steps = self._printed = self._unchecked = 0
        self._deadline = time.thread_time() + MAX_CPU_S

    def step(self, work: int = 1) -> None:
        """Count one operation that touched `work` characters."""
        self._steps += 1
        self._unchecked += work + CLOCK_EVERY // 100  # a step without weight can take milliseconds: x in y
        if self._steps > MAX_STEPS:
            raise SecurityError(f"it takes more than {MAX_STEPS} steps")
        if self._unchecked > CLOCK_EVERY:
            self._unchecked = 0
            if time.thread_time() > self._deadline:
                raise SecurityError(f"it takes more than {MAX_CPU_S:g} s")

    def print(self, characters: int) -> None:
        self._printed += characters
        if self._printed > MAX_PRINTED:
            raise SecurityError(f"it prints more than {MAX_PRINTED} characters")

    def weigh(self, value: object) -> int:
        """The weight of a value, as if what it holds several times were copied; raises if it is too large."""
        weight = _weight(value, 0, 0)
        self.step(weight)
        return weight


def _weight(value: object, so_far: int, depth: int) -> int:
    if isinstance(value, str):
        so_far += len(value)
    elif isinstance(value, int):
        if value.bit_length() > MAX_BITS:
            raise SecurityError(f"it makes an integer of more than {MAX_BITS} bits")
    elif isinstance(value, (list, tuple, dict, set, frozenset)) or type(value) in _VIEWS:
        if depth == MAX_DEPTH:
            raise SecurityError(f"it nests containers deeper than {MAX_DEPTH}")
        so_far = _fits(so_far + ENTRY * (1 + len(value)))  # type: ignore[arg-type]
        entries = (part for pair in value.items() for part in pair) if isinstance(value, dict) else iter(value)  # type: ignore[call-overload]
        for entry in entries:
            so_far = _weight(entry, so_far, depth + 1)
    elif isinstance(value, Namespace):
        # Can be changed after it was weighed, so it may be neither printed nor put into anything.
        raise SecurityError("it uses a namespace as a value")
    return _fits(so_far)


_VIEWS: tuple[type, ...] = (type({}.keys()), type({}.values()), type({}.items()))


def _fits(weight: int) -> int:
    if weight > MAX_WEIGHT:
        raise SecurityError(f"it makes a value larger than {MAX_WEIGHT} characters")
    return weight


class PlainNamespace(Namespace):
    """`namespace(...)` without names that begin with an underscore, which Python would give a meaning."""

    def __init__(
        *args: Any, **values: Any
    ) -> None:  # the object itself comes in args: `self` is a legal name in a template
        self, *rest = args
        for name in dict(*rest, **values):
            PlainNamespace._check(name)
        Namespace.__init__(self, *rest, **values)

    def __setitem__(self, name: str, value: Any) -> None:
        PlainNamespace._check(name)
        super().__setitem__(name, value)

    @staticmethod
    def _check(name: object) -> None:
        if not isinstance(name, str) or name.startswith("_"):
            raise SecurityError(f"it names a namespace attribute {name!r}")


class _Counted(NodeTransformer):
    """Count what runs unseen by the environment's hooks: loop rounds, macro bodies, literals and `~`."""

    def _count_body(self, node: Any) -> Any:
        printed = sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        printed += sum(len(c.value) for c in node.find_all(nodes.Const) if isinstance(c.value, str))
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_hook("round", nodes.Const(printed))))
        if getattr(node, "test", None) is not None:  # items that `for x in y if z` passes over take time, too
            node.test = nodes.And(_hook("round", nodes.Const(0)), node.test)
        return node

    visit_For = visit_Macro = visit_CallBlock = _count_body

    def _weigh_literal(self, node: Any) -> Any:
        self.generic_visit(node)
        return node if getattr(node, "ctx", "load") != "load" else _hook("weighed", node)

    visit_List = visit_Dict = visit_Tuple = _weigh_literal

    def visit_Concat(self, node: nodes.Concat) -> Any:
        self.generic_visit(node)
        return _hook("joined", *node.nodes)


def _hook(name: str, *args: nodes.Expr) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), list(args), [], None, None)


class _GenerationTag(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only holds its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """See the module's first lines. One rendering at a time; `bounds` is renewed for each."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _GenerationTag], finalize=self._printed
        )
        self.bounds = Bounds()
        own: dict[str, Callable[..., Any]] = {
            "tojson": _tojson,
            "replace": _replace,
            "join": self._join(self.filters["join"]),
            "indent": self._indent(self.filters["indent"]),
        }
        self.filters = {name: self._weighed_filter(own.get(name) or self.filters[name]) for name in (*FILTERS, *own)}
        self.globals = {
            "range": self.globals["range"],  # jinja's own is bounded
            "namespace": PlainNamespace,
            "dict": dict,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }

    def compile_bounded(self, source: str) -> Any:
        """A jinja template, counted."""
        if len(source) > MAX_SOURCE:
            raise SecurityError(f"it is longer than {MAX_SOURCE} characters")
        self.renew()
        return self.from_string(_Counted().visit(self.parse(source)))

    def renew(self) -> None:
        self.bounds = Bounds()

    # --- hooks that the counted template calls -----------------------------------------------------------------------

    def round(self, characters: int) -> bool:
        self.bounds.step()
        self.bounds.print(characters)
        return True

    def weighed(self, value: Any) -> Any:
        return value  # `call` weighs

    def joined(self, *parts: Any) -> str:
        return "".join(map(str, parts))

    def _printed(self, value: Any) -> Any:
        self.bounds.print(self.bounds.weigh(value))
        return value

    # --- jinja's own hooks -------------------------------------------------------------------------------------------

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: object) -> Any:
        if getattr(function, "__func__", None) is BoundedEnvironment.round:
            return function(*args)
        own = isinstance(function, (Macro, BlockReference, LoopContext))
        for value in (*args, *kwargs.values()):
            if not (own and isinstance(value, Namespace)):  # what a macro does with it is watched in its body
                self.bounds.weigh(value)
        if isinstance(function, BuiltinMethodType) and isinstance(function.__self__, str):
            if function.__name__ == "replace":
                _check_replace(function.__self__, *args)
            elif function.__name__ == "join" and args:
                args = (self._check_join(function.__self__, args[0]), *args[1:])
        result = super().call(context, function, *args, **kwargs)
        if not isinstance(result, Namespace):
            self.bounds.weigh(result)
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        for value in (left, right):
            self.bounds.weigh(value)
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "*" and not numbers:
            sequence, times = (right, left) if isinstance(left, int) else (left, right)
            if isinstance(times, int):
                _fits(max(times, 0) * max(self.bounds.weigh(sequence), 1))
        if operator == "**" and not (numbers and abs(right) * max(int(abs(left)).bit_length(), 1) <= MAX_BITS):
            raise SecurityError(f"it raises to a power beyond {MAX_BITS} bits")
        if operator == "%" and not numbers:
            raise SecurityError("it formats text with %; use ~ instead")
        result = super().call_binop(context, operator, left, right)
        self.bounds.weigh(result)
        return result

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if not super().is_safe_attribute(obj, attr, value):
            return False
        if isinstance(obj, Namespace):
            return True
        if isinstance(obj, LoopContext):
            return attr in LOOP
        return any(isinstance(obj, kind) and attr in names for kind, names in METHODS.items())

    def unsafe_undefined(self, obj: Any, attribute: str) -> Any:
        # Raised at once: an undefined value would print as nothing.
        raise SecurityError(f"it reaches for the attribute {attribute!r} of a {type(obj).__name__}")

    def wrap_str_format(self, value: Any) -> Any:
        if isinstance(value, BuiltinMethodType) and value.__name__ in ("format", "format_map"):
            raise SecurityError(f"it calls .{value.__name__}(); use ~ instead")
        return None

    # --- filters -----------------------------------------------------------------------------------------------------

    def _weighed_filter(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def weighed(*args: Any, **kwargs: object) -> Any:
            for value in (*args, *kwargs.values()):
                self.bounds.weigh(value)
            result = function(*args, **kwargs)
            self.bounds.weigh(result)
            return self._counted(result) if isinstance(result, GeneratorType) else result

        return weighed

    def _counted(self, items: Iterator[Any]) -> Iterator[Any]:
        for item in items:
            self.bounds.weigh(item)
            yield item

    def _join(self, join: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(join)
        def bounded(eval_ctx: Any, value: Any, d: str = "", attribute: Any = None) -> str:
            return join(eval_ctx, self._check_join(d, value), d, attribute)

        return bounded

    def _check_join(self, separator: object, items: Any) -> list[Any]:
        held = [] if items is None else list(items)
        _fits(self.bounds.weigh(held) + len(held) * len(str(separator)))
        return held

    def _indent(self, indent: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(indent)
        def bounded(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
            margin = len(width) if isinstance(width, str) else width
            _fits(len(text) + (len(text.splitlines()) + 1) * margin)
            return indent(text, width, first, blank)

        return bounded


def _check_replace(text: str, old: str = "", new: str = "", *_: object) -> None:
    _fits(len(text) + text.count(old) * len(new))


def _replace(text: object, old: object, new: object, count: int | None = None) -> str:
    held, before, after = str(text), str(old), str(new)
    _check_replace(held, before, after)
    return held.replace(before, after, -1 if count is None else count)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as models were trained to read it: not escaped for HTML, as jinja's own filter would."""
    if indent is not None and not (isinstance(indent, int) and 0 <= indent <= 16):
        raise SecurityError(f"it indents JSON by {indent!r}")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> None:
    raise Refusal(str(message))


def _strftime_now(form: str) -> str:
    if len(form) > 100:
        raise SecurityError("it formats the time with more than 100 characters")
    return datetime.now().strftime(form)
