from __future__ import annotations

from types import SimpleNamespace

import pytest

from likely.cli.printing import print_undrafted


def text(tokens, proposed):
    return SimpleNamespace(token_ids=list(range(tokens)), proposed=proposed)


@pytest.mark.parametrize(
    ("results", "drafter", "budget", "said"),
    [
        ([text(20, 0)], "auto", "auto", True),
        ([text(20, 3)], "auto", "auto", False),
        ([text(20, 0)], None, "auto", False),
        ([text(20, 0)], "none", "auto", False),
        ([text(20, 0)], "suffix", "0", False),
        ([text(3, 0)], "suffix", "auto", False),
        ([text(10, 0), text(10, 0)], "suffix", "auto", True),
    ],
)
def test_a_drafter_that_guessed_nothing_is_told(results, drafter, budget, said, capsys):
    print_undrafted(results, drafter, budget, "llamacpp")
    line = capsys.readouterr().err
    assert bool(line) == said and ("--runtime native" in line) == said and len(line.splitlines()) == said


def test_native_is_not_told_to_use_native(capsys):
    print_undrafted([text(20, 0)], "auto", "auto", "native")
    assert "--runtime" not in capsys.readouterr().err
