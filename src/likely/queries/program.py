"""Queries: prompts with holes, written as Python functions, as text, or call by call; one program behind all three."""

from __future__ import annotations
import __future__

import ast
import builtins
import inspect
import sys
import textwrap
import traceback
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, overload

from likely.decoding.constraint import LogitsProcessor
from likely.errors import DataError, nearest
from likely.io.hashes import fingerprint
from likely.io.whole_file import read_text
from likely.queries.actions import RECORDER
from likely.queries.best_first import best_k
from likely.queries.decoders import CompletedProgram, Decoder, beam, make_decoder, score_of
from likely.queries.holes import plain
from likely.queries.run import QueryError, QueryRun
from likely.queries.session import Host, QuerySettings, Session
from likely.queries.syntax.parse import SUBQUERY, Parsed, parse, parse_function
from likely.queries.trace import CostMeter, QueryCost, QueryEvent, QueryTrace, ReplayMismatch

MAX_TOKENS = 128  # per hole, where nobody says otherwise
_RESERVED = ("decoder", "seed", "max_tokens", "drafter", "logits_processors", "keep")


@dataclass(frozen=True)
class QueryResult:
    """What a query gave.

    text          everything: prompts and holes
    vars          the holes' values;  value: what the body returned
    logprobs      per hole: log p of its tokens in nats, as the model has it (those behind a stop included)
    log_weight    Σ log m over all holes: low where the model did not want to answer in this form
    distribution  of the distribution hole: {value: probability}, None without one
    cost          what it took
    trace         every event, token by token
    """

    text: str
    vars: dict[str, Any]
    value: Any
    logprobs: dict[str, float]
    log_weight: float
    distribution: dict[str, float] | None
    cost: QueryCost
    trace: QueryTrace

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        return {
            "text": self.text,
            "vars": plain(self.vars),
            "value": plain(self.value),
            "logprobs": self.logprobs,
            "log_weight": self.log_weight,
            "distribution": self.distribution,
            "cost": self.cost.to_dict(),
            "trace": plain(self.trace.to_dict()),
        }


@dataclass(frozen=True, eq=False)
class BoundQuery:
    """A query with its arguments, as the type of a hole."""

    query: Query
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def body_with(self, q: QueryRun) -> Any:
        return self.query.body(q, *self.args, **self.kwargs)


@dataclass(eq=False)
class Query:
    """A program with holes.  Call it with a model and its arguments:

        result = my_query(lm, "some argument", seed=1)

    decoder  how holes are decided, where the call does not say;  model: name in a `from` clause, for the command line
    holes    their names, where they are known before a run;  source: the program's text
    """

    name: str
    source: str
    decoder: Decoder = field(default_factory=Decoder)
    holes: tuple[str, ...] = ()
    model: str | None = None
    _body: Callable[..., Any] | None = None
    _parsed: Parsed | None = None
    file: str = "query"

    @cached_property
    def body(self) -> Callable[..., Any]:
        """The program: a function of a `QueryRun` and the query's arguments.  A text's own code first runs here."""
        if self._body is None:
            assert self._parsed is not None
            module = types.ModuleType(f"likely_query_{fingerprint([self.file, self.source])[:16]}")
            sys.modules[module.__name__] = module  # where dataclasses and pydantic look for the names of annotations
            vars(module).update({"__file__": self.file, SUBQUERY: self._subquery})
            exec(compile(self._parsed.module, self.file, "exec"), vars(module))
            self._body = vars(module)[self._parsed.function]
        for name in inspect.signature(self._body).parameters:
            if name in _RESERVED:
                raise DataError(f"query {self.name}: an argument cannot be called {name}: calls use that name")
        return self._body

    def _subquery(self, body: Callable[..., Any]) -> Query:
        """Another function of the text that has prompts: a query that holes may name as their type."""
        return Query(body.__name__, self.source, _body=body, file=self.file)

    @property
    def arguments(self) -> list[inspect.Parameter]:
        return list(inspect.signature(self.body).parameters.values())[1:]

    def bind(self, *args: object, **kwargs: object) -> BoundQuery:
        """The query with its arguments, for a hole: [ANSWER: my_query(question)] or type=my_query.bind(question)."""
        return BoundQuery(self, args, kwargs)

    def body_with(self, q: QueryRun) -> Any:
        return self.body(q)

    def __call__(
        self,
        model: Any,
        /,
        *args: Any,
        decoder: str | Decoder | None = None,
        seed: int = 0,
        max_tokens: int | None = None,
        drafter: Any = None,
        logits_processors: Sequence[LogitsProcessor] = (),
        keep: bool = True,
        **kwargs: Any,
    ) -> Any:
        """Run it.  Returns a QueryResult; a list of them, best first where they are ranked, for n > 1.

        model       of likely.load, on this machine
        decoder     "argmax" or one of make_decoder("sample", n=3, temperature=0.7), ("beam", n=4), ("best_k", k=4)
        max_tokens  per hole;  drafter: as in generate;  logits_processors: soft changes of the logits
        keep        go on from what is computed; False sends every hole its whole prompt, as to a stateless server

        An exception of the body passes through; its `query_trace` holds what had happened.
        """
        chosen = self._decoder(decoder)
        session = self._session(model, chosen, seed, max_tokens, drafter, logits_processors, keep)
        try:
            record = partial(self._trace, session, chosen, seed, args, kwargs)
            ended = self._search(session, chosen, args, kwargs, record)
        finally:
            session.close()
        results = [self._result(e, cost, record) for e, cost in ended]
        return results if chosen.n > 1 else results[0]

    def replay(self, trace: QueryTrace, model: Any = None) -> QueryResult:
        """The run of a trace once more.

        With the model it was made on, every hole is decoded and every value scored again, with the trace's settings,
        and compared token by token: ReplayMismatch names the first difference.  Without a model the holes are taken
        from the trace.  External calls marked with @effect are not repeated, but for beam and best_k, which search
        anew.
        """
        args = trace.args.get("args", []), trace.args.get("kwargs", {})
        settings = trace.settings
        decoder = Decoder(**settings["decoder"])
        if model is None:
            run = QueryRun(None, trace.sample, trace.events, holes=self.holes)  # type: ignore[arg-type]
            ended = self._run(run, *args)
            self._check_text(trace, run)
            return self._result(ended, QueryCost(), lambda run: trace)
        info = _model(model)
        if info["revision"] != trace.model["revision"]:
            raise ReplayMismatch(0, f"the model is {info['name']} ({info['revision'][:12]}), the trace is of "
                                 f"{trace.model['name']} ({trace.model['revision'][:12]})")  # fmt: skip
        session = self._session(
            model, decoder, trace.seed, settings["max_tokens"], settings["drafter"], (), settings["keep"]
        )
        branching = decoder.name in ("beam", "best_k")
        try:
            record = partial(self._trace, session, decoder, trace.seed, *args)
            if branching:
                ended, cost = self._search(session, decoder, *args, record)[trace.sample]
                _same_events(trace, ended.run.events)
            else:
                run = QueryRun(session, trace.sample, trace.events, checks=True, holes=self.holes)
                ended = self._run(run, *args)
                cost = session.meter.total
        finally:
            session.close()
        self._check_text(trace, ended.run)
        return self._result(ended, cost, record)

    # --- how it is done -------------------------------------------------------------------------------------------

    def _decoder(self, decoder: str | Decoder | None) -> Decoder:
        if decoder is None:
            return self.decoder
        return make_decoder(decoder) if isinstance(decoder, str) else decoder

    def _session(
        self, model: Any, decoder: Decoder, seed: int, max_tokens: int | None, drafter: Any,
        logits_processors: Sequence[LogitsProcessor], keep: bool,
    ) -> Session:  # fmt: skip
        if isinstance(model, str):
            raise TypeError(f"model must be an object of likely.load, got {model!r}: pass likely.load({model!r})")
        settings = QuerySettings(
            sampling=decoder.sampling(seed), max_tokens=max_tokens or decoder.max_tokens or MAX_TOKENS, drafter=drafter,
            logits_processors=tuple(logits_processors), keep=keep,
        )  # fmt: skip
        return Session(model, settings, CostMeter())

    def _search(
        self,
        session: Session,
        decoder: Decoder,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        record: Callable[[QueryRun], QueryTrace],
    ) -> list[tuple[CompletedProgram, QueryCost]]:
        """Programs that ran to their end, each with its share of the cost (branching decoders: the whole)."""
        if decoder.name in ("beam", "best_k"):
            make_run = partial(QueryRun, session, holes=self.holes)
            program = lambda run: self._run(run, args, kwargs, record).value  # noqa: E731
            if decoder.name == "beam":
                found = beam(program, make_run, session, decoder.n)
            else:
                found = best_k(program, make_run, session, **decoder.options)
            return [(e, session.meter.total) for e in found]
        done = []
        for sample in range(decoder.n):
            before = session.meter.total
            session.meter.begin()
            ended = self._run(QueryRun(session, sample, holes=self.holes), args, kwargs, record)
            done.append((ended, session.meter.total - before))
        return done

    def _run(
        self,
        run: QueryRun,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        record: Callable[[QueryRun], QueryTrace] | None = None,
    ) -> CompletedProgram:
        token = RECORDER.set(run.effect)
        try:
            value = self.body(run, *args, **kwargs)
            return CompletedProgram(run, value, score_of(run.events))
        except Exception as error:
            if isinstance(error, NameError) and (line := self._line_of(error)):
                error = QueryError(f"{self.file}:{line}: {error}{nearest(error.name or '', (*run.vars, *self.holes))}")
            if record is not None:
                error.query_trace = record(run)  # type: ignore[attr-defined]
            raise error
        finally:
            RECORDER.reset(token)

    def _line_of(self, error: Exception) -> int | None:
        """The line of a text query in which the error arose; None elsewhere."""
        frames = traceback.extract_tb(error.__traceback__)
        return frames[-1].lineno if self._parsed is not None and frames and frames[-1].filename == self.file else None

    def _trace(
        self,
        session: Session,
        decoder: Decoder,
        seed: int,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        run: QueryRun,
    ) -> QueryTrace:
        settings = session.settings
        drafter = settings.drafter
        return QueryTrace(
            query=self.source,
            args={"args": list(args), "kwargs": dict(kwargs)},
            model=_model(session.host),
            settings={
                "decoder": decoder.to_dict(),
                "max_tokens": settings.max_tokens,
                "drafter": drafter if drafter is None or isinstance(drafter, str) else drafter.name,
                "keep": settings.keep,
                "logits_processors": [type(t).__name__ for t in settings.logits_processors],
            },
            seed=seed,
            sample=run.sample,
            events=tuple(run.events),
        )

    def _result(
        self, ended: CompletedProgram, cost: QueryCost, record: Callable[[QueryRun], QueryTrace]
    ) -> QueryResult:
        run = ended.run
        holes = [e for e in run.events if e.kind == "hole"]
        last = next((e for e in reversed(run.events) if e.kind == "distribution" and not e.depth), None)
        return QueryResult(
            text=run.text,
            vars=dict(run.vars),
            value=ended.value,
            logprobs={e.name: e.logprob for e in holes if not e.depth},
            log_weight=float(sum(sum(e.log_masses) for e in holes)),
            distribution=None if last is None else dict(last.probabilities),
            cost=cost,
            trace=record(run),
        )

    def _check_text(self, trace: QueryTrace, run: QueryRun) -> None:
        if run.text != trace.text:
            raise ReplayMismatch(len(trace.events), "the program writes another text: its code or arguments changed")


def _same_events(trace: QueryTrace, events: Sequence[QueryEvent]) -> None:
    for number, (old, new) in enumerate(zip(trace.events, events, strict=False)):
        if (old.kind, old.name, old.tokens) != (new.kind, new.name, new.tokens):
            raise ReplayMismatch(number, f"{new.kind} {new.name} is {new.text!r}, the trace has {old.text!r}")


def _model(host: Host) -> dict[str, Any]:
    info = host.info
    return {
        "name": info.name,
        "runtime": info.runtime,
        "dtype": info.dtype,
        "sha256": info.sha256,
        "tokenizer": info.tokenizer,
        "revision": host.runtime.revision,
    }


# --- making queries ---------------------------------------------------------------------------------------------------


@overload
def query(what: str | Callable[..., Any], *, decoder: str | Decoder | None = None) -> Query: ...
@overload
def query(*, decoder: str | Decoder | None = None) -> Callable[[Callable[..., Any]], Query]: ...
def query(what: Any = None, *, decoder: str | Decoder | None = None) -> Any:
    """Make a query, from text or from a function (also as a decorator).

    A function whose first parameter is called q is given the run and calls it:

        @likely.query
        def capital(q, country):
            q.say(f"The capital of {country} is")
            return q.gen("CITY", where=THIS.stops_before("."))

    In any other function a bare string is a prompt statement, its holes become variables, and conditions stand in
    .where(...) and .distribution(...):

        @likely.query
        def capital(country):
            "The capital of {country} is[CITY]".where(STOPS_BEFORE(CITY, "."))
            return CITY

    (Its prompts know arguments, variables and the names of the module; of an enclosing function those that code names.)
    In text the same reads: "The capital of {country} is[CITY]" where STOPS_BEFORE(CITY, ".").
    A query is code of yours: never make one of text that came over a network.
    """
    if what is None:
        return partial(query, decoder=decoder)
    made = _from_text(what, "query") if isinstance(what, str) else _from_function(what)
    if decoder is not None:
        made.decoder = make_decoder(decoder) if isinstance(decoder, str) else decoder
    return made


def query_file(path: str | Path) -> Query:
    """The query in a file; its code runs when the query is first called."""
    return _from_text(read_text(path), str(path))


def _from_text(text: str, file: str) -> Query:
    parsed = parse(text, file)
    return Query(
        parsed.function, text, parsed.decoder or Decoder(), parsed.holes, parsed.model, _parsed=parsed, file=file
    )


def _from_function(function: Callable[..., Any]) -> Query:
    if not isinstance(function, types.FunctionType):
        raise TypeError(f"a query is made of a text or a function, got {type(function).__name__}")
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError):
        lines, first = [], 1
    source = textwrap.dedent("".join(lines))
    if list(inspect.signature(function).parameters)[:1] == ["q"]:
        return Query(function.__name__, source, _body=function)
    if not lines:
        raise DataError(
            f"the source of {function.__name__} is not there: write the query as text, or with q as argument"
        )
    file = inspect.getsourcefile(function) or "query"
    padded = "\n" * (first - 1) + source
    definition = ast.parse(padded).body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise TypeError("a query is an ordinary function, not async")
    try:
        outer = inspect.getclosurevars(function).nonlocals
    except ValueError:
        names = ", ".join(function.__code__.co_freevars)
        raise DataError(f"query {function.__name__}: set all of {names} before the query is made") from None
    scope = function.__globals__

    def known(name: str) -> bool:
        return name in scope or name in outer or hasattr(builtins, name) or not name.isupper()

    parsed = parse_function(definition, padded, file, known)
    return Query(
        function.__name__,
        source,
        parsed.decoder or Decoder(),
        parsed.holes,
        _body=_rewritten(parsed, function, file, outer),
    )


def _rewritten(parsed: Parsed, function: types.FunctionType, file: str, outer: Mapping[str, Any]) -> Callable[..., Any]:
    """The rewritten function in the module, and with the defaults, of the original; outer variables by value."""
    [factory] = ast.parse(f"def factory({', '.join(outer)}): return {parsed.function}").body
    [definition] = parsed.module.body
    assert isinstance(factory, ast.FunctionDef) and isinstance(definition, ast.FunctionDef)
    definition.args.defaults, definition.args.kw_defaults = [], [None for _ in definition.args.kwonlyargs]
    factory.body.insert(0, definition)
    module = ast.fix_missing_locations(ast.Module(body=[factory], type_ignores=[]))
    made: dict[str, Any] = {}
    exec(compile(module, file, "exec", __future__.annotations.compiler_flag), function.__globals__, made)
    body = made["factory"](**outer)
    body.__defaults__, body.__kwdefaults__ = function.__defaults__, function.__kwdefaults__
    return body
