"""Programs that mean harm: each is stopped or refused, soon, and nothing outside the sandbox changes.

Every attack runs under all guards and again where the operating system offers none but limits.
"""

from __future__ import annotations

import os
import socket
import sys
import time

import pytest

from likely.audit.code.sandbox import GUARDS, SandboxLimits, run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="attacks on Linux")
SOON = SandboxLimits(wall_s=8, cpu_s=1)
HELD = {"all guards": GUARDS, "limits alone": ()}


@pytest.fixture(params=list(HELD))
def guards(request):
    return HELD[request.param]


def test_an_endless_loop_is_stopped(guards):
    assert run_python("while True: pass", SOON, guards=guards).status == "timeout"


def test_sleeping_is_stopped(guards):
    assert run_python("import time; time.sleep(1000)", SandboxLimits(wall_s=1), guards=guards).status == "timeout"


@pytest.mark.slow
def test_ignored_signals_do_not_help(guards):
    program = (
        "import signal\nfor s in range(1, 65):\n    try: signal.signal(s, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\nwhile True: pass"
    )
    assert run_python(program, SOON, guards=guards).status == "timeout"


@pytest.mark.parametrize(
    "program",
    [
        "import os\nwhile True: os.fork()",
        "import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'input()'])",
        "import multiprocessing as m\nif __name__ == '__main__':\n    while True: m.Process(target=print).start()",
        "import os\nwhile True: os.posix_spawn('/bin/sh', ['sh'], {})",
        "import os\nos.system('echo escaped')\nassert False",
        "import ctypes\nlibc = ctypes.CDLL(None)\nfor _ in range(100): print(libc.fork())\nassert False",
    ],
)
def test_no_further_process_is_started(program, guards):
    found = run_python(program, SOON, guards=guards)
    assert found.status in ("failed", "killed") and "escaped" not in found.stdout
    assert not any(line.isdigit() and int(line) > 0 for line in found.stdout.splitlines())


@pytest.mark.parametrize("program", ["x = bytearray(10**11)", "x = []\nwhile True: x.append(bytearray(10**7))"])
def test_memory_is_bounded(program, guards):
    found = run_python(program, SandboxLimits(wall_s=60, cpu_s=30), guards=guards)
    assert found.status == "failed" and "MemoryError" in found.stderr


def test_threads_are_bounded():
    program = "import threading, time\nwhile True: threading.Thread(target=time.sleep, args=(100,)).start()"
    found = run_python(program, SOON)
    assert found.status in ("failed", "killed", "timeout") and found.seconds < 20


def test_output_is_bounded(guards):
    for program in (
        "while True: print('x' * 1000)",
        "import sys\nwhile True: sys.stderr.write('x' * 1000)",
        "import os\nwhile True: os.write(1, b'\\xff' * 65536)",
    ):
        found = run_python(program, SOON, guards=guards)
        assert found.status == "output"
        assert len(found.stdout) <= SOON.output_bytes and len(found.stderr) <= SOON.output_bytes


def test_files_are_bounded(guards):
    found = run_python("f = open('big', 'wb')\nwhile True: f.write(bytes(1 << 20)); f.flush()", SOON, guards=guards)
    assert found.status in ("failed", "killed", "timeout")


def test_many_files_are_bounded():
    program = "for i in range(10**6): open(f'f{i}', 'wb').write(bytes(1 << 20))"
    found = run_python(program, SOON)
    if "namespaces" not in found.guards:
        pytest.skip("no file system in memory without namespaces")
    assert "No space left" in found.stderr


@pytest.mark.parametrize("how", ["tcp", "udp", "unix", "resolve"])
def test_no_network(how, tmp_path, guards):
    """A server on this machine that would answer hears nothing."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(tmp_path / "door"))
        local.listen()
        port = server.getsockname()[1]
        program = {
            "tcp": f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=2); print('escaped')",
            "udp": f"import socket; socket.socket(type=2).sendto(b'x', ('127.0.0.1', {port})); print('escaped')",
            "unix": f"import socket; socket.socket(1).connect({str(tmp_path / 'door')!r}); print('escaped')",
            "resolve": "import socket; socket.getaddrinfo('localhost', 80); print('escaped')",
        }[how]
        found = run_python(program, SOON, guards=guards)
        for one in (server, local):
            one.setblocking(False)
            with pytest.raises(BlockingIOError):
                one.accept()
    if how == "resolve" and guards:
        return  # without network it may still read names from nowhere
    assert "escaped" not in found.stdout and found.status == "failed"


@pytest.mark.parametrize(
    "action",
    [
        "open({path!r}, 'w')",
        "open({path!r}, 'a')",
        "import os; os.open({path!r}, os.O_CREAT | os.O_WRONLY)",
        "import os; os.mkdir({path!r})",
        "import os; os.symlink('/etc/passwd', {path!r})",
        "import os; os.rename('program.py', {path!r})",
        "import os; os.link('program.py', {path!r})",
        "import os; os.symlink({folder!r}, 'way'); open('way/new', 'w')",
        "import shutil; shutil.copy('program.py', {path!r})",
    ],
)
def test_nothing_is_written_outside(action, tmp_path, guards):
    found = run_python(action.format(path=str(tmp_path / "new"), folder=str(tmp_path)), SOON, guards=guards)
    assert list(tmp_path.iterdir()) == []
    assert found.status == "failed"


@pytest.mark.parametrize(
    "action",
    ["os.remove({path!r})", "os.truncate({path!r}, 0)", "os.chmod({path!r}, 0o200)", "os.utime({path!r}, (1, 1))"],
)
def test_nothing_outside_is_destroyed(action, tmp_path, guards):
    file = tmp_path / "precious"
    file.write_text("gold")
    before = file.stat()
    run_python("import os; " + action.format(path=str(file)), SOON, guards=guards)
    assert (file.read_bytes(), file.stat().st_mode, file.stat().st_mtime_ns) == (
        b"gold",
        before.st_mode,
        before.st_mtime_ns,
    )


def test_secrets_in_the_environment_are_not_there(monkeypatch, guards):
    monkeypatch.setenv("LIKELY_SECRET", "hunter2")
    program = (
        "import os, glob\nfound = str(dict(os.environ))\n"
        "for p in glob.glob('/proc/*/environ'):\n    try: found += open(p).read()\n    except OSError: pass\n"
        "print('SECRET' in found, len(found) > 10)"
    )
    assert run_python(program, SOON, guards=guards).stdout == "False True\n"


def test_files_of_others_are_not_read(tmp_path):
    file = tmp_path / "key"
    file.write_text("hunter2")
    found = run_python(f"print(open({str(file)!r}).read())")
    if "landlock" not in found.guards:
        pytest.skip("no landlock on this kernel")
    assert found.stdout == "" and "PermissionError" in found.stderr


@pytest.mark.parametrize(
    "program",
    [
        "import os, signal; os.kill(os.getppid(), signal.SIGKILL)",
        "import os, signal; os.killpg(0, signal.SIGKILL)",
        f"import os, signal; os.kill({os.getpid()}, signal.SIGKILL)",
        f"import ctypes; print(ctypes.CDLL(None).kill({os.getpid()}, 9)); assert False",
        "import os, signal; os.kill(-1, signal.SIGKILL)",
    ],
    ids=["parent", "group", "this test", "this test, by libc", "everybody"],
)
def test_nobody_else_is_killed(program, guards):
    if "(-1," in program and not guards:
        pytest.skip("not dared: one hole in the last guard would end the whole session")
    found = run_python(program, SOON, guards=guards)
    assert found.status in ("failed", "killed")  # and we are still here


@pytest.mark.parametrize(
    "call",
    [
        "setsid()", "setpgid(0, 0)", "unshare(0x10000000)", "ptrace(16, 1, 0, 0)", "mount(0, b'/', 0, 32, 0)",
        "shmget(0, 4096, 0o1600)", "semget(0, 1, 0o1600)", "msgget(0, 0o1600)", "memfd_create(b'm', 0)",
        "prlimit(1, 7, 0, 0)", "setpriority(0, 0, 0)", "sched_setaffinity(0, 8, b'1' * 8)",
    ],
)  # fmt: skip
def test_kernel_doors_are_shut(call):
    program = f"import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\nprint(libc.{call}, ctypes.get_errno())"
    found = run_python(program)
    if "seccomp" not in found.guards:
        pytest.skip("no seccomp filter for this machine")
    assert found.stdout == "-1 1\n"


def test_a_program_may_lower_its_own_limits():
    found = run_python("import resource\nresource.setrlimit(7, (9, 9))\nprint(resource.getrlimit(7))")
    assert found.stdout == "(9, 9)\n"


def test_an_orphan_does_not_outlive_its_parent():
    """Whoever runs the sandbox may be killed: the program dies with it."""
    import subprocess

    code = (
        "import threading\nfrom likely.audit.code.sandbox import SandboxLimits, run_python\n"
        "print('up', flush=True)\n"
        "run_python('import time; time.sleep(98.7654)', SandboxLimits(wall_s=60))"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert parent.stdout.readline() == b"up\n"
    deadline = time.monotonic() + 20
    while not _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = _children()
    assert children
    parent.kill()
    parent.wait()
    while children & _children() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not children & _children()
    parent.stdout.close()


def _children() -> set[int]:
    """Processes whose parent or command is the sandbox child of this test."""
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    command = file.read()
            except OSError:
                continue
            if b"audit/code/child.py" in command or (b"program.py" in command and b"-I" in command):
                found.add(int(entry))
    return found
