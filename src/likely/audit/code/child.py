"""The child process of `sandbox.run_python`: gives up its rights, then becomes the interpreter of the program.

A script of the standard library alone, not to be imported.  Settings and program come as JSON on standard input; the
guards that hold are written, as JSON, to the file descriptor given as first argument, before the program starts.
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

# Linux: name -> numbers on x86-64 and arm64 (None: arm64 has no such call).  What a calculation never needs:
AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
REFUSED = {
    # processes, signals, and the limits, priorities and memory of others
    "fork": (57, None), "vfork": (58, None), "clone": (56, 220), "clone3": (435, 435), "setpgid": (109, 154),
    "setsid": (112, 157), "unshare": (272, 97), "setns": (308, 268), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "setpriority": (141, 140),
    "ioprio_set": (251, 30), "sched_setparam": (142, 118), "sched_setscheduler": (144, 119),
    "sched_setaffinity": (203, 122), "sched_setattr": (314, 274), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "process_mrelease": (448, 448),
    # memory that no limit counts and that outlives the process
    "shmget": (29, 194), "shmctl": (31, 195), "shmat": (30, 196), "semget": (64, 190), "semctl": (66, 191),
    "msgget": (68, 186), "msgctl": (71, 187), "memfd_create": (319, 279), "memfd_secret": (447, 447),
    # network, mounts, keys, and large doors of the kernel
    "socket": (41, 198), "mount": (165, 40), "umount2": (166, 39), "mount_setattr": (442, 442),
    "move_mount": (429, 429), "open_tree": (428, 428), "fsopen": (430, 430), "open_by_handle_at": (304, 265),
    "kexec_load": (246, 104), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "perf_event_open": (298, 241), "bpf": (321, 280), "userfaultfd": (323, 282), "io_uring_setup": (425, 425),
    # rights, owners, attributes and times of files
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16),
}  # fmt: skip
PRLIMIT64 = {"x86_64": 302, "aarch64": 261}  # refused unless its process is 0, the caller: libc itself asks so


def call(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def namespaces(libc: ctypes.CDLL, folder: str, folder_bytes: int) -> None:
    """Own user, network, process and mount namespaces; `folder` becomes a small file system in memory."""
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
    """A filter of system calls (classic BPF): those of REFUSED fail with EPERM."""
    machine = platform.machine()
    column = list(AUDIT_ARCH).index(machine)
    numbers = [number for pair in REFUSED.values() if (number := pair[column]) is not None]
    load, equal, at_least, give = 0x20, 0x15, 0x35, 0x06  # (code, jump if true, jump if false, value)
    allow, refuse, kill = 0x7FFF0000, 0x00050001, 0x80000000
    architecture, called, argument = 4, 0, 16  # offsets in the kernel's struct seccomp_data
    code = [(load, 0, 0, architecture), (equal, 1, 0, AUDIT_ARCH[machine]), (give, 0, 0, kill), (load, 0, 0, called)]
    code.append((at_least, len(numbers) + 4, 0, 0x40000000))  # x86-64's second numbering of the calls (x32)
    code += [(equal, len(numbers) - i + 3, 0, n) for i, n in enumerate(numbers)]
    code += [(equal, 0, 2, PRLIMIT64[machine]), (load, 0, 0, argument), (equal, 0, 1, 0)]
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
                         "shutil.", "pty.", "resource.", "signal.pthread_kill")):
        raise _no(event + " is not allowed here")
    if event == "open" and isinstance(args[0], (str, bytes)):
        mode, flags = args[1] or "", args[2] or 0
        name = args[0].decode("utf-8", "replace") if isinstance(args[0], bytes) else args[0]
        name = _path.realpath(name)
        if name.startswith("/proc/"):
            raise _no("looking at processes is not allowed here")
        if (any(c in str(mode) for c in "wax+") or flags & 0o1103) and not name.startswith(_folder + "/"):
            raise _no("writing outside the working folder is not allowed here")
import os as _os, posix as _posix
for _name in ("setpriority", "sched_setaffinity", "sched_setparam", "sched_setscheduler"):
    for _module in (_os, _posix):
        if hasattr(_module, _name):
            delattr(_module, _name)  # these act on other processes and tell no hook
_sys.addaudithook(_guard)
del _guard, _sys, _os, _posix, _name, _module
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
            with contextlib.suppress(OSError, ValueError, AttributeError):
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
            os._exit(given["cpu_exit"] if late else 128 + os.WTERMSIG(status))
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
