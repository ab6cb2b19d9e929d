"""likely chat: a conversation in the terminal, or line by line through a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from likely.cli import flags, forms, options
from likely.cli.confidence import ConfidenceFlags, bind, tell
from likely.cli.printing import (
    for_terminal,
    print_better,
    print_ending,
    print_json,
    print_stats,
    print_stream,
)
from likely.errors import ConstraintError, DataError, LikelyError, nearest
from likely.io.whole_file import check_target, read_text, write_whole_file
from likely.lm.extract import why_incomplete
from likely.lm.options import CHAT_DEFAULTS

if TYPE_CHECKING:
    from likely.lm.confidence import BoundPolicy
    from likely.lm.model import Model
    from likely.lm.remote.model import RemoteModel
    from likely.models.chat_template import Message

HELP = """/help            this list
/reset           forget the conversation (the system message stays)
/undo            take back the last question and its answer
/retry           ask the last question again, with another seed
/system TEXT     set the system message ("/system" alone removes it)
/set KEY=VALUE   a setting of generate, e.g. /set temperature=0.7
/show            what the model sees now
/history         the conversation so far
/save FILE       save the conversation as JSON
/load FILE       go on with a saved conversation
/quit            leave (also Ctrl-D)
A line that ends in \\ goes on; \"\"\" begins and ends a longer text; a line with a space before its / is asked.
Ctrl-C stops an answer."""


TEXT = flags.TextFlags.of(CHAT_DEFAULTS)


@flags.grouped
def chat(
    model: flags.ModelFlags,
    form: forms.FormFlags,
    confidence: ConfidenceFlags,
    system: flags.SystemOption = None,
    load: Annotated[Path | None, typer.Option("--load", help="Go on with a conversation saved by /save.")] = None,
    go_on: Annotated[
        bool, typer.Option("--continue", "-c", help="Go on with the last conversation that was typed here.")
    ] = False,
    save: Annotated[Path | None, typer.Option("--save", help="Save the conversation here at the end.")] = None,
    text: flags.TextFlags = TEXT,
    stats: flags.StatsOption = False,
    show_prompt: flags.ShowPrompt = False,
    as_json: flags.JsonOption = False,
) -> None:
    """Talk with a model; /help lists the commands.

    Lines of a pipe may be commands, too, but for /save and /load, so that no text can name a file.

    Examples:

      likely chat

      likely chat --system "You answer in one sentence." --save talk.json

      printf 'Hello!\\nAnd in French?\\n' | likely chat --json

      likely chat --choices yes,no

      likely chat --continue
    """
    given = text.given()
    given |= form.given(given, model.model)
    if save:
        check_target(save)
    if load and go_on:
        raise typer.BadParameter("--load and --continue name two conversations: choose one", param_hint="--continue")
    wanted = confidence.given()
    with model.open() as lm:
        talk = Conversation(lm.with_confidence(**wanted), given, show_prompt=show_prompt, as_json=as_json, stats=stats)
        if load or go_on:
            talk.load(load or last_conversation())
        if system is not None:
            talk.set_system(system)
        talk.check()
        try:
            talk.bound()  # what cannot be is refused before the first question
            talk.run()
        finally:
            if save and talk.worth_keeping:  # an error before the first word replaces no file
                talk.save(save)
            if talk.interactive and talk.worth_keeping:
                with contextlib.suppress(OSError):  # a home that cannot be written to
                    talk.save(last_conversation(), quiet=True)


@dataclass(eq=False)
class Conversation:
    """The messages so far and what the person types."""

    model: Model | RemoteModel
    settings: dict[str, Any]
    show_prompt: bool = False
    as_json: bool = False
    stats: bool = False
    messages: list[dict[str, str]] = field(default_factory=list)
    unanswered: str | None = field(default=None, init=False)  # the last question, where an error or Ctrl-C ended it
    _stopped: bool = field(default=False, init=False)  # by Ctrl-C, before the first word
    _left_out: int = field(default=0, init=False)  # messages that the context has no room for
    _bound: tuple[Any, BoundPolicy] | None = field(default=None, init=False)  # and what it was bound to

    def bound(self) -> BoundPolicy:
        """What is done about confidence with the present settings."""
        from likely.lm.confidence import system_of

        key = ({**CHAT_DEFAULTS, **self.settings}, system_of(self.messages))
        if self._bound is None or self._bound[0] != key:
            self._bound = key, bind(self.model, *key)
        return self._bound[1]

    @property
    def interactive(self) -> bool:
        return sys.stdin.isatty()

    @property
    def worth_keeping(self) -> bool:
        return bool(self.messages) or self._stopped

    def check(self) -> None:
        """Refuse at once a model that cannot chat."""
        self.model.stream([*self.messages[:1], _HELLO][-2:], **self.settings).close()

    def run(self) -> None:
        if self.interactive:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401  line editing and history for input()
            print_better(self.model.info.name)
            typer.echo(f"{self.model.info.name}: /help lists the commands, Ctrl-D leaves.", err=True)
        while True:
            try:
                text = self.read()
            except EOFError:
                break
            except KeyboardInterrupt:
                typer.echo("", err=True)
                if not self.interactive:
                    raise
                continue
            if not text.strip():
                continue
            if text.startswith("/"):
                if self.command(text):
                    break
                continue
            self.answer(text)
        if self.interactive:
            typer.echo("", err=True)

    def read(self) -> str:
        """One message: a line, lines joined by a final backslash, or a text between triple quotes.

        The end of the input ends a message that was begun.
        """
        line = self._line("> ")
        if line.strip().startswith('"""'):
            lines, line = [], line.strip()[3:]
            while not line.rstrip().endswith('"""'):
                lines.append(line)
                line = self._line(". ", at_end='"""')
            return "\n".join([*lines, line.rstrip()[:-3]]).strip("\n")
        parts = []
        while line.endswith("\\"):
            parts.append(line[:-1])
            line = self._line(". ", at_end="")
        return "\n".join([*parts, line])

    def _line(self, prompt: str, *, at_end: str | None = None) -> str:
        """The next line; at the end of the input `at_end`, or EOFError."""
        try:
            line = input(prompt if self.interactive else "")
            if not self.interactive:
                line.encode()  # some locales let bytes pass that are no text
            return line
        except EOFError:
            if at_end is None:
                raise
            return at_end
        except UnicodeError:
            raise DataError("standard input is not UTF-8") from None

    def answer(self, text: str) -> None:
        """Ask the model; an answer stopped by Ctrl-C stays in the conversation as far as it came."""
        self.messages.append({"role": "user", "content": text})
        self.unanswered, self._stopped, stream = text, False, None
        try:
            stream = self.model.stream_chat(self._fitting(), **self.settings)
            if self.show_prompt:
                typer.echo(stream.prompt, err=True)
            whole = self.as_json or not forms.streams(self.settings) or self.bound().rule is not None
            result = stream.finish() if whole else print_stream(stream)
            if whole and not self.as_json and not result.abstained:
                typer.echo(for_terminal(result.text))
        except KeyboardInterrupt:
            # a text of which nobody knows whether it reaches the threshold is no answer
            result = stream.result if stream is not None and not self.model.confidence.has_threshold else None
            if result is None or not result.text:
                self._stopped = True
                self.messages.pop()
                if self.interactive:
                    return
                raise
            if not self.interactive:
                self._answered(result.text)
                raise
        except (LikelyError, ValueError, TypeError) as error:
            self.messages.pop()
            if not self.interactive:
                raise
            typer.echo(f"Error: {error} (/retry asks again, /reset forgets the conversation)", err=True)
            return
        if result.abstained:
            self.messages.pop()  # the question was not answered: it is no part of the conversation
        else:
            self._answered(result.text)
            if not self.as_json:
                print_ending(result)
        if self.as_json:
            print_json({**options.origin(self.model), "question": text, **result.to_dict()})
        else:
            tell(result)
        if self.stats:
            print_stats(result)
        if why := why_incomplete(result):
            if not self.interactive:
                raise ConstraintError(why)
            typer.echo(f"Note: {why}", err=True)

    def _answered(self, text: str) -> None:
        self.messages.append({"role": "assistant", "content": text})
        self.unanswered = None

    def _fitting(self) -> list[Message]:
        """What the model is shown: where the context is full, the conversation without its oldest turns."""
        kept = self.model.fitting(self.messages, self.settings.get("max_tokens", CHAT_DEFAULTS["max_tokens"]))
        left_out = len(self.messages) - len(kept)
        if left_out > self._left_out:
            typer.echo(
                f"Note: the context is full, the model no longer sees the {left_out} oldest messages (/reset forgets "
                f"all, --context makes room)",
                err=True,
            )
        self._left_out = left_out
        return kept

    def retry(self) -> None:
        """Ask the last question again; one that was answered, with the next seed."""
        if self.unanswered is not None:
            self.answer(self.unanswered)
            return
        asked = next((m["content"] for m in reversed(self.messages) if m["role"] == "user"), None)
        if asked is None:
            raise ValueError("there is no question to ask again")
        self.undo()
        self.settings["seed"] = self.settings.get("seed", 0) + 1
        self.answer(asked)

    def command(self, line: str) -> bool:
        """Carry out a / command; returns whether to leave."""
        verb, _, rest = line[1:].partition(" ")
        rest = rest.strip()
        verbs = {
            "help": lambda: typer.echo(HELP, err=True),
            "reset": self.reset,
            "undo": self.undo,
            "retry": self.retry,
            "system": lambda: self.set_system(rest or None),
            "set": lambda: self.change(rest),
            "show": self.show,
            "history": self.history,
            "save": lambda: self.save(_path(rest)),
            "load": lambda: self.load(_path(rest)),
        }
        if verb in ("quit", "exit", "q"):
            return True
        try:
            if verb not in verbs:
                raise DataError(f"unknown command /{verb}{nearest(verb, [*verbs, 'quit'])} (/help lists them)")
            if verb in ("save", "load") and not self.interactive:
                raise DataError(f"/{verb} is for a terminal: name the file of a pipe's conversation by --{verb}")
            verbs[verb]()
        except (LikelyError, ValueError, TypeError, OSError, typer.BadParameter) as error:
            if not self.interactive:
                raise
            typer.echo(f"Error: {error}", err=True)
        return False

    def reset(self) -> None:
        self.unanswered, self._left_out = None, 0
        self.messages = [m for m in self.messages if m["role"] == "system"]

    def undo(self) -> None:
        while self.messages and self.messages[-1]["role"] != "system":
            if self.messages.pop()["role"] == "user":
                break

    def set_system(self, text: str | None) -> None:
        rest = [m for m in self.messages if m["role"] != "system"]
        self.messages = ([] if text is None else [{"role": "system", "content": text}]) + rest

    def change(self, pair: str) -> None:
        change = options.parse_settings([pair])
        self.model.stream_chat([_HELLO], **{**self.settings, **change}).close()  # refuses what is not allowed
        self.settings |= change

    def show(self) -> None:
        typer.echo(self.model.render(self.messages or [_HELLO]).text, err=True)

    def history(self) -> None:
        for message in self.messages:
            typer.echo(for_terminal(f"{message['role']}: {message['content']}", err=True), err=True)

    def save(self, path: Path, *, quiet: bool = False) -> None:
        """Write the conversation, whole or not at all."""
        record = {"kind": "chat", **options.origin(self.model), "settings": self.settings, "messages": self.messages}
        if self.unanswered is not None:
            record["unanswered"] = self.unanswered  # /retry asks it again
        write_whole_file(path, (json.dumps(record, ensure_ascii=False, indent=1) + "\n").encode())
        if not quiet:
            more = "" if self.unanswered is None else " and the question that has no answer"
            typer.echo(f"saved {len(self.messages)} messages{more} to {path}", err=True)

    def load(self, path: Path) -> None:
        from likely.models.chat_template import check_messages

        try:
            record = json.loads(read_text(path))
        except ValueError as error:
            raise DataError(f"{path} is not a saved conversation: {error}") from None
        found = record.get("messages") if isinstance(record, dict) else record
        if not isinstance(found, list):
            raise DataError(f'{path} is not a saved conversation: expected {{"messages": [...]}}')
        self.messages = check_messages(found) if found else []
        unanswered = record.get("unanswered") if isinstance(record, dict) else None
        self.unanswered = unanswered if isinstance(unanswered, str) else None


def last_conversation() -> Path:
    """Where the conversation that was typed last is kept: in $XDG_DATA_HOME/likely, else ~/.local/share/likely."""
    return Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "likely" / "last-chat.json"


_HELLO = {"role": "user", "content": "Hello"}


def _path(text: str) -> Path:
    if not text:
        raise typer.BadParameter("give a file name")
    return Path(text).expanduser()
