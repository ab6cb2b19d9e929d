"""What a program gets in the sandbox, and how its end is told."""

from __future__ import annotations

import os
import sys

import pytest

from likely.audit.code.sandbox import GUARDS, SandboxLimits, run_python

posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system")
pytestmark = posix


def test_a_program_that_ends_well():
    found = run_python("import math, re, json, collections, heapq\nprint(math.pi)\n")
    assert (found.status, found.exit_code, found.stdout, found.stderr) == ("ok", 0, "3.141592653589793\n", "")
    assert found.seconds > 0


@pytest.mark.parametrize(
    ("program", "status", "code"),
    [
        ("import sys; sys.exit(3)", "failed", 3),
        ("1 / 0", "failed", 1),
        ("def f(:", "failed", 1),
        ("import os; os._exit(0)", "ok", 0),
        ("import ctypes; ctypes.string_at(0)", "killed", 139),
    ],
)
def test_how_a_program_ended(program, status, code):
    found = run_python(program, SandboxLimits(wall_s=60))
    assert (found.status, found.exit_code) == (status, code)


def test_the_error_is_told():
    assert "ZeroDivisionError" in run_python("1 / 0").stderr


def test_its_interpreter_is_bare():
    """No site-packages, no environment of ours, an empty standard input, a working folder with nothing but itself."""
    program = (
        "import os, sys\nprint(sorted(os.environ), sys.stdin.read(), os.listdir('.'), "
        "any('site-packages' in p or p in ('', os.getcwd()) for p in sys.path))"
    )
    found = run_python(program)
    assert found.stdout == "['HOME', 'LANG', 'PYTHONHASHSEED', 'TMPDIR']  ['program.py'] False\n"


def test_files_in_the_working_folder_are_its_own():
    first = run_python("open('a', 'w').write('1'); print(open('a').read())")
    second = run_python("import os; print(os.path.exists('a'))")
    assert (first.stdout, second.stdout) == ("1\n", "False\n")


def test_two_runs_of_a_program_agree():
    """Sets of strings come in the same order."""
    program = "print(list({'a', 'b', 'c', 'd', 'e'}))"
    assert run_python(program).stdout == run_python(program).stdout


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
def test_what_holds_it_is_told():
    bare = run_python("print(1)", guards=())
    assert (bare.isolation, bare.guards, bare.stdout) == ("limits", ("limits", "audit hook"), "1\n")
    full = run_python("print(1)")
    assert full.isolation == ("full" if {"namespaces", "landlock", "seccomp"} <= set(full.guards) else "partial")


@pytest.mark.skipif(sys.platform != "linux", reason="Linux only")
@pytest.mark.parametrize("missing", GUARDS)
def test_isolation_is_full_only_with_every_guard(missing):
    found = run_python("print(1)", guards=[guard for guard in GUARDS if guard != missing])
    assert missing not in found.guards and found.isolation in ("partial", "limits")


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="wall_s must be > 0"):
        SandboxLimits(wall_s=0)
    with pytest.raises(ValueError, match="guards must be among"):
        run_python("", guards=["prayer"])


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    run_python("open('x', 'w'); import os; os.mkdir('d'); os.chmod('d', 0)")
    run_python("while True: pass", SandboxLimits(wall_s=0.5))
    assert list(tmp_path.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == before


def test_without_better_guards_other_processes_keep_their_limits():
    program = """
import os, posix, resource
for call in (
    lambda: os.setpriority(os.PRIO_PROCESS, os.getppid(), 5), lambda: posix.sched_setaffinity(os.getppid(), {0}),
    lambda: resource.prlimit(os.getppid(), resource.RLIMIT_CORE, (0, 0)),
):
    try:
        print(call())
    except (AttributeError, PermissionError) as error:
        print("refused")
"""
    found = run_python(program, guards=())
    assert found.stdout == "refused\n" * 3 and found.isolation == "limits", found


def test_memory_that_no_limit_counts_is_refused():
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.shmget(0, 1 << 20, 0o1600), libc.msgget(0, 0o1600), libc.semget(0, 1, 0o1600), libc.memfd_create(b"x", 0))
"""
    found = run_python(program)
    if "seccomp" not in found.guards or "audit hook" in found.guards:
        pytest.skip("needs seccomp and landlock")
    assert found.stdout == "-1 -1 -1 -1\n"
