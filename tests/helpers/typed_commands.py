"""An environment in which a page's commands run as typed, all by one process that has imported what they import.

`likely` on its PATH is a small client: it hands its arguments, folder, environment and standard streams to a server,
which forks, so that each command is a process of its own that ends as `likely` ends. What a start itself does, and
what is imported for which verb, has tests of its own.
"""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from private_cache import private_cache

from likely.errors import CapabilityError
from likely.io.hashes import cache_dir, file_sha256
from likely.models.catalog import find_model
from likely.models.load import load_local
from likely.runtimes.native.weights import packed_path

SERVER = """
import importlib, os, select, shutil, socket, sys
for name in ("likely.cli.app", "likely.lm.model", "likely.runtimes.native.runtime", "likely.runtimes.llamacpp.runtime",
             "torch", "transformers"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
from likely.cli import main
from likely.cli.app import command
command()
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen()
print("ready", flush=True)
leave = os._exit
while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:  # which ends with whoever started this
    connection = listener.accept()[0]
    if os.fork():
        connection.close()
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        continue
    listener.close()
    said, streams, *_ = socket.recv_fds(connection, 1 << 20, 3)
    while more := connection.recv(1 << 20):
        said += more
    folder, count, *rest = said.decode(errors="surrogateescape").split("\\0")
    sys.argv = ["likely", *rest[: int(count)]]
    os.environ.clear()
    os.environ.update(pair.split("=", 1) for pair in rest[int(count) :])
    os.chdir(folder)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os._exit = lambda code: (connection.sendall(str(code).encode()), leave(code))
    main()
shutil.rmtree(os.path.dirname(sys.argv[1]))
"""
CLIENT = """#!{python} -IS
import os, socket, sys
words = [os.getcwd(), str(len(sys.argv) - 1), *sys.argv[1:], *map("=".join, os.environ.items())]
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    said = "\\0".join(words).encode(errors="surrogateescape")
    sent = socket.send_fds(server, [said], [0, 1, 2])
    server.sendall(said[sent:])
    server.shutdown(socket.SHUT_WR)
    sys.exit(int(server.recv(8) or 1))
"""


@functools.cache
def _server() -> str:
    """The address of the server, which ends with the run of the tests."""
    folder = tempfile.mkdtemp()
    address = f"{folder}/likely"
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )

    def stop() -> None:
        assert server.stdin is not None
        server.stdin.close()
        server.wait()

    atexit.register(stop)
    assert server.stdout is not None and server.stdout.readline() == "ready\n"
    return address


def typed_commands(folder: Path) -> dict[str, str]:
    """The environment in which `likely` and `python` are those of this checkout, with a cache of the folder's own.

    The digest of smollm2 and its packed weights come from, and stay in, the cache of whoever runs the tests: what is
    done without them has tests of its own.
    """
    likely, python = folder / "bin" / "likely", folder / "bin" / "python"
    likely.parent.mkdir()
    likely.write_text(CLIENT.format(python=sys.executable, address=_server()))
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    for program in (likely, python):
        program.chmod(0o755)
    cache = private_cache(folder / "cache")
    with suppress(CapabilityError):
        packed = packed_path(file_sha256(find_model("smollm2")), "int8")
        if not packed.exists():
            load_local("smollm2", runtime="native", dtype="int8").runtime.shutdown()
        (folder / "cache" / "native" / packed.name).symlink_to(packed)
    shutil.copy(cache_dir() / "hashes.json", cache)
    return {
        **os.environ, "PATH": f"{likely.parent}:{os.environ['PATH']}", "LIKELY_CACHE": cache,
        "LIKELY_CALIBRATORS": str(folder / "calibrators"), "LIKELY_CONFIG": str(folder / "config.toml"),
    }  # fmt: skip
