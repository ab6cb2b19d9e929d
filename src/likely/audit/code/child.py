"""The inside of the sandbox: a script of the standard library alone that gives up every right, then runs a program.

Not to be imported.  Settings and program come as JSON on standard input; what could be given up is told, as JSON, on
the file descriptor that is the first argument, before the program starts.  See code_sandbox.py.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from collections.abc import Callable

CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = (
    0x00020000, 0x08000000, 0x10000000, 0x20000000, 0x40000000,
)  # fmt: skip
PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 1, 38, 22
NOBODY = 65534
CPU_EXIT = 124  # the program was killed when its CPU time was used up

# what a calculation never needs: processes, signals to others, sockets, mounts, debuggers, keys, other kernel doors,
# and the rights, owners and times of files
REFUSED = {
    "x86_64": (
        0xC000003E,
        (41, 56, 57, 58, 62, 90, 91, 92, 93, 94, 101, 109, 112, 129, 132, 165, 166, 188, 189, 190, 197, 198, 199, 200,
         234, 235, 246, 248, 249, 250, 260, 261, 268, 272, 280, 297, 298, 304, 308, 310, 311, 321, 323, 424, 425, 428,
         429, 430, 434, 435, 438, 442, 452),
    ),
    "aarch64": (
        0xC00000B7,
        (5, 6, 7, 14, 15, 16, 39, 40, 52, 53, 54, 55, 88, 97, 104, 117, 129, 130, 131, 138, 154, 157, 198, 217, 218,
         219, 220, 240, 241, 265, 268, 270, 271, 280, 282, 424, 425, 428, 429, 430, 434, 435, 438, 442, 452),
    ),
}  # fmt: skip


def call(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def namespaces(libc: ctypes.CDLL, folder: str, folder_bytes: int) -> None:
    """A world without network and other processes, in which `folder` is a small file system in memory."""
    uid, gid = os.getuid(), os.getgid()
    call(libc.unshare(CLONE_NEWUSER | CLONE_NEWNET | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWNS))
    for name, text in (
        ("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1"),
    ):  # fmt: skip
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)
    private, nosuid, nodev = 1 << 18 | 1 << 14, 2, 4
    call(libc.mount(b"none", b"/", None, private, None))
    call(libc.mount(b"tmpfs", folder.encode(), b"tmpfs", nosuid | nodev, f"size={folder_bytes},mode=700".encode()))


def landlock(libc: ctypes.CDLL, folder: str, readable: list[str]) -> None:
    """Files: read the interpreter and its libraries, do everything in `folder`, nothing else anywhere."""
    create, add_rule, restrict = 444, 445, 446
    version = libc.syscall(create, None, 0, 1)
    if version < 1:
        raise OSError("no landlock")
    every = (1 << 13) - 1
    every |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    attributes = struct.pack("=QQQ", every, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = libc.syscall(create, attributes[:size], ctypes.c_size_t(size), 0)
    call(rules)
    look = 1 << 0 | 1 << 2 | 1 << 3  # execute, read file, read folder
    read_write = 1 << 1 | 1 << 2
    files = [(path, look) for path in readable] + [(folder, every)]
    files += [("/dev/null", read_write), ("/dev/zero", 1 << 2), ("/dev/urandom", 1 << 2), ("/dev/random", 1 << 2)]
    for path, rights in files:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
            if not os.path.isdir(path):
                rights &= read_write | 1 << 0
            call(libc.syscall(add_rule, rules, 1, struct.pack("=Qi", rights, fd), 0))
            os.close(fd)
    call(libc.syscall(restrict, rules, 0))
    os.close(rules)


def seccomp(libc: ctypes.CDLL) -> None:
    """System calls: those of REFUSED fail with EPERM."""
    arch, numbers = REFUSED[platform.machine()]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    code = [(load, 0, 0, 4), (equal, 1, 0, arch), (give, 0, 0, kill), (load, 0, 0, 0)]
    code.append((at_least, len(numbers) + 1, 0, 0x40000000))  # another numbering of x86-64's calls
    code += [(equal, len(numbers) - i, 0, n) for i, n in enumerate(numbers)]
    code += [(give, 0, 0, allow), (give, 0, 0, refuse)]
    filters = b"".join(struct.pack("=HBBI", *line) for line in code)
    buffer = ctypes.create_string_buffer(filters, len(filters))
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    call(libc.prctl(PR_SET_SECCOMP, 2, program, 0, 0))


def limits(given: dict) -> None:
    for name, value in (
        ("RLIMIT_CPU", given["cpu_s"]),
        ("RLIMIT_AS", given["memory_bytes"]),
        ("RLIMIT_FSIZE", given["file_bytes"]),
        ("RLIMIT_NOFILE", 64),
        ("RLIMIT_CORE", 0),
        ("RLIMIT_NPROC", 0),
    ):
        with contextlib.suppress(ValueError, OSError, AttributeError):
            resource.setrlimit(getattr(resource, name), (value, value))


# for machines with no better means: Python's own hook, which a determined program gets around
AUDIT = """
import sys as _sys
def _guard(event, args, _folder=%r, _no=PermissionError, _path=__import__("os").path):
    if event.startswith(("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn", "os.spawn", "os.kill",
                         "os.system", "os.putenv", "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link",
                         "os.symlink", "os.chmod", "os.chown", "os.utime", "os.setxattr", "os.truncate", "ctypes.",
                         "shutil.", "pty.", "signal.pthread_kill")):
        raise _no(event + " is not allowed here")
    if event == "open" and isinstance(args[0], (str, bytes)):
        mode, flags = args[1] or "", args[2] or 0
        name = args[0].decode("utf-8", "replace") if isinstance(args[0], bytes) else args[0]
        name = _path.realpath(name)
        if name.startswith("/proc/"):
            raise _no("looking at processes is not allowed here")
        if (any(c in str(mode) for c in "wax+") or flags & 0o1103) and not name.startswith(_folder + "/"):
            raise _no("writing outside the working folder is not allowed here")
_sys.addaudithook(_guard)
del _guard, _sys
"""


def main() -> None:
    report = int(sys.argv[1])
    given = json.loads(sys.stdin.buffer.read())
    folder, wanted = given["folder"], given["guards"]
    libc = ctypes.CDLL(None, use_errno=True)
    linux = sys.platform == "linux"
    guards = ["limits"]

    def attempt(name: str, action: Callable[..., None], *arguments: object) -> None:
        if linux and name in wanted:
            with contextlib.suppress(OSError, KeyError, AttributeError):
                action(*arguments)
                guards.append(name)

    if linux:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    attempt("namespaces", namespaces, libc, folder, given["folder_bytes"])
    child = os.fork()
    if child:
        os.close(report)
        _, status, used = os.wait4(child, 0)
        if os.WIFSIGNALED(status):
            late = used.ru_utime + used.ru_stime >= 0.5 * given["cpu_s"]  # the kernel's two clocks differ
            os._exit(CPU_EXIT if late else 128 + os.WTERMSIG(status))
        os._exit(os.WEXITSTATUS(status))
    if linux:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        call(libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
    os.chdir(folder)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    python = os.path.realpath(sys.executable)
    readable = [python, sys.base_prefix, sys.base_exec_prefix, "/lib", "/lib64", "/usr/lib", "/usr/lib64",
                "/usr/local/lib", "/etc/ld.so.cache", "/usr/share/zoneinfo"]  # fmt: skip
    attempt("landlock", landlock, libc, folder, readable)
    attempt("seccomp", seccomp, libc)
    audit = "seccomp" not in guards or "landlock" not in guards
    if audit:
        guards.append("audit hook")
    with open("program.py", "w", encoding="utf-8") as file:
        file.write((AUDIT % os.path.realpath(folder) if audit else "") + given["program"])
    os.write(report, json.dumps(guards).encode())
    os.close(report)
    limits(given)
    environment = {"HOME": folder, "TMPDIR": folder, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0"}
    os.execve(python, [python, "-s", "-S", "-P", "-B", "-X", "utf8", "program.py"], environment)


if __name__ == "__main__":
    main()
