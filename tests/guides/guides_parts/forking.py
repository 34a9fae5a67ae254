"""A process that has imported a command line, and forks for each call of it.

A guide calls ``model-router`` and ``router-train`` dozens of times, and each start costs half a
second to two seconds of imports. Here they are paid once: the page's ``model-router`` is a small
program that hands its arguments, folder, environment and open files to the process below, which
forks. In the fork runs the real ``main``, as a process of its own whose status is the program's.

Run as ``python forking.py SOCKET MODULE...``, ``main`` being in the first module; it ends with its
standard input.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

PORTS = "GUIDE_PORTS"
"""The variable of ports (JSON): who would listen at one, being its default, takes the other."""

STUB = """#!{python} -SEI
import json, os, signal, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({socket!r})
call = json.dumps([[{name!r}, *sys.argv[1:]], os.getcwd(), dict(os.environ)]).encode()
socket.send_fds(link, [len(call).to_bytes(8, "big")], [0, 1, 2])
link.sendall(call)
told = link.makefile("r")
pid = int(told.readline())
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, lambda n, _: os.kill(pid, n))
sys.exit(int(told.readline() or 1))
"""
"""The program in the page's PATH."""


def _received(link: socket.socket) -> tuple[list[int], list[str], str, dict[str, str]]:
    head, files, _, _ = socket.recv_fds(link, 8, 3)
    length = int.from_bytes(head, "big")
    body = b""
    while len(body) < length:
        body += link.recv(length - len(body))
    argv, folder, environment = json.loads(body)
    return files, argv, folder, environment


def _become(files: list[int], argv: list[str], folder: str, environment: dict[str, str]) -> None:
    """Turn this fork into what a shell would have started."""
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        number = ("stdin", "stdout", "stderr").index(name)
        setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))
    ports = {int(a): int(b) for a, b in json.loads(environment.pop(PORTS, "{}")).items()}
    bind = socket.socket.bind

    def moved(self: socket.socket, address: tuple[Any, ...]) -> None:
        bind(self, (address[0], ports.get(address[1], address[1]), *address[2:]))

    if ports:
        socket.socket.bind = moved  # type: ignore[method-assign]
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.setsid()
    sys.argv = argv


def _serve(listener: socket.socket) -> bool:
    """Fork for every call; True in a fork that is to run it, False when all is over."""
    watch = selectors.DefaultSelector()
    watch.register(listener, selectors.EVENT_READ)
    watch.register(sys.stdin, selectors.EVENT_READ)
    running: dict[int, tuple[int, socket.socket]] = {}  # by the descriptor of its process
    while True:
        for key, _ in watch.select():
            if key.fileobj is sys.stdin:
                for process, _ in running.values():
                    os.kill(process, signal.SIGKILL)
                return False
            if key.fileobj is listener:
                link, _ = listener.accept()
                call = _received(link)
                process = os.fork()
                if process == 0:
                    for inherited in (listener, link, watch, *(o for _, o in running.values())):
                        inherited.close()
                    _become(*call)
                    return True
                for file in call[0]:
                    os.close(file)
                link.sendall(f"{process}\n".encode())
                descriptor = os.pidfd_open(process)
                running[descriptor] = (process, link)
                watch.register(descriptor, selectors.EVENT_READ)
                watch.register(link, selectors.EVENT_READ, process)
            elif isinstance(key.fileobj, int):  # it ended
                process, link = running.pop(key.fileobj)
                status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
                watch.unregister(key.fileobj)
                os.close(key.fileobj)
                if link in {entry.fileobj for entry in watch.get_map().values()}:
                    watch.unregister(link)
                    with suppress(OSError):  # who called was killed just now
                        link.sendall(f"{status if status >= 0 else 128 - status}\n".encode())
                link.close()
            elif key.fd in watch.get_map():  # who called was killed
                watch.unregister(key.fileobj)
                os.kill(key.data, signal.SIGKILL)


def _status_of(call: Callable[[], None]) -> int:
    """Return the exit status that Python would end with."""
    try:
        call()
    except SystemExit as left:
        if left.code is None or isinstance(left.code, int):
            return left.code or 0
        sys.stderr.write(f"{left.code}\n")
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _end_with(status: int) -> NoReturn:
    """End as Python does, but without taking every imported module apart, which takes a second."""
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def main() -> None:
    """Import, listen, and in a fork run the command line."""
    place, *modules = sys.argv[1:]
    command_line, *_ = [importlib.import_module(module) for module in modules]
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(place)
    listener.listen(32)
    Path(f"{place}.ready").touch()
    gc.freeze()  # what is imported is not looked at again, and so stays shared
    if _serve(listener):
        _end_with(_status_of(command_line.main))


if __name__ == "__main__":
    main()
