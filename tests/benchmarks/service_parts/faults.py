"""What is answered, refused and lost when parts are killed under load.

After every scenario the service is stopped, started again so that it replays what its journal
holds, and asked how many requests it has on its books; ``lost`` are answers that a client got whole
and that are on no book. PostgreSQL and Redis are servers of the benchmark's own, killed with
SIGKILL and started again; a scenario whose server is not installed is left out, and told.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from labelling_parts.machine import cores
from labelling_parts.table import Row

from service_parts.servers import free_port, module, run_load
from service_parts.site import SECRETS, Site, make_site

_SECONDS = 8.0
_RATE = 150.0


@dataclass(frozen=True)
class Outcome:
    """What clients got in one scenario, and what is missing on the books.

    Parameters
    ----------
    name : str
    whole, error, broken : int
        Answers; ``broken`` ones are neither, connections that were cut included.
    booked : int
        Answered requests in the store, those whose stream broke among them.
    may_break : bool
        Whether the scenario kills the service itself, so that connections are cut.
    note : str
    """

    name: str
    whole: int
    error: int
    broken: int
    booked: int
    may_break: bool = False
    note: str = ""

    @property
    def lost(self) -> int:
        """Whole answers that are on no book."""
        return max(0, self.whole - self.booked)


def rows(outcomes: Sequence[Outcome]) -> list[Row]:
    """Return two lines a scenario: what is on no book, and what clients could not read."""
    found = []
    for each in outcomes:
        told = f"{each.whole} ok"
        found.append(Row(f"{each.name}: answered, on no book", told, "", each.lost, 0, True))
        if not each.may_break:
            refused = f"{each.error} err"
            found.append(Row(f"{each.name}: broken answers", refused, "", each.broken, 0, True))
    return found


def notes(outcomes: Sequence[Outcome]) -> list[str]:
    """Return what the table does not say."""
    return [
        f"{e.name}: {e.whole} whole, {e.error} errors, {e.broken} broken or cut, {e.booked} booked"
        + (f"; {e.note}" if e.note else "")
        for e in outcomes
    ]


def run(artifact: Path, folder: Path) -> list[Outcome]:
    """Run all scenarios, one after another."""
    scenarios: dict[str, Callable[[Path, Path], Outcome]] = {
        "upstream killed mid-stream": _upstream_killed,
        "broken artifact reloaded": _broken_reload,
        "service ended by SIGTERM": partial(_service_killed, by=signal.SIGTERM),
        "service killed by SIGKILL": partial(_service_killed, by=signal.SIGKILL),
    }
    if _postgres_folder() is not None:
        scenarios["PostgreSQL killed, restarted"] = _postgres_killed
    if shutil.which("redis-server"):
        scenarios["Redis killed, restarted"] = _redis_killed
    found = []
    for number, scenario in enumerate(scenarios.values()):
        place = folder / str(number)
        place.mkdir(mode=0o755)
        found.append(scenario(artifact, place))
    return found


# --------------------------------------------------------------------------- scenarios


def _upstream_killed(artifact: Path, folder: Path) -> Outcome:
    with ExitStack() as stack:
        upstream = _Upstream(stack)
        site = _site(folder, artifact, upstream)
        with site.serving(core=cores()[0]):
            answers = _under_load(site, stream=True, then=lambda: upstream.restart(after_s=1.0))
        return _outcome("upstream killed mid-stream", site, answers)


def _broken_reload(artifact: Path, folder: Path) -> Outcome:
    copy = folder / "artifact"
    shutil.copytree(artifact, copy)
    with ExitStack() as stack:
        site = _site(folder, copy, _Upstream(stack))
        with site.serving(core=cores()[0]):
            told: list[str] = []

            def break_and_reload() -> None:
                for part in copy.glob("*.safetensors"):
                    part.write_bytes(part.read_bytes()[:-100])
                told.append(f"reload answered {_reload(site)}")

            answers = _under_load(site, then=break_and_reload)
        shutil.rmtree(copy)
        shutil.copytree(artifact, copy)
        return _outcome("broken artifact reloaded", site, answers, note=told[0])


def _service_killed(artifact: Path, folder: Path, *, by: signal.Signals) -> Outcome:
    with ExitStack() as stack:
        site = _site(folder, artifact, _Upstream(stack))
        with site.serving(core=cores()[0]) as server:
            answers = _under_load(site, then=lambda: os.kill(server.pid, by))
        name = "ended" if by == signal.SIGTERM else "killed"
        return _outcome(f"service {name} by {by.name}", site, answers, may_break=True)


def _postgres_killed(artifact: Path, folder: Path) -> Outcome:
    with ExitStack() as stack:
        database = _Postgres(folder / "pg")
        stack.callback(database.kill)
        database.start()
        store = {"url": f"postgresql+psycopg://postgres@127.0.0.1:{database.port}/postgres"}
        site = _site(folder, artifact, _Upstream(stack), store=store)

        def restart() -> None:
            database.kill()
            time.sleep(2)
            database.start()

        with site.serving(core=cores()[0]):
            answers = _under_load(site, then=restart)
        return _outcome("PostgreSQL killed, restarted", site, answers)


def _redis_killed(artifact: Path, folder: Path) -> Outcome:
    port = free_port()
    command = ["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"]
    with ExitStack() as stack:
        processes = [_quiet(command)]
        stack.callback(lambda: processes[-1].kill())
        service = {"redis_url": f"redis://127.0.0.1:{port}/0"}
        site = _site(folder, artifact, _Upstream(stack), service=service)

        def restart() -> None:
            processes[-1].kill()
            time.sleep(2)
            processes.append(_quiet(command))

        with site.serving(core=cores()[0]):
            answers = _under_load(site, then=restart)
        return _outcome("Redis killed, restarted", site, answers)


# --------------------------------------------------------------------------- parts


class _Upstream:
    """A provider of fixed answers that can be killed and started again at the same port."""

    def __init__(self, stack: ExitStack) -> None:
        self.port = free_port()
        self._start()
        stack.callback(self.kill)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def restart(self, *, after_s: float) -> None:
        """Kill it, wait, start it again."""
        self.kill()
        time.sleep(after_s)
        self._start()

    def _start(self) -> None:
        settings = {"port": self.port, "core": cores()[1], "delay_s": 0.02, "chunks": 50}
        self._process = _quiet(module("upstream", settings), stdin=subprocess.PIPE)


class _Postgres:
    """A PostgreSQL server of our own in a folder."""

    def __init__(self, folder: Path) -> None:
        binaries = _postgres_folder()
        assert binaries is not None
        self.port = free_port()
        self._folder = folder
        self._binaries = binaries
        folder.mkdir()
        self._as_postgres = []
        if os.geteuid() == 0:  # it refuses to run as root
            owner = pwd.getpwnam("postgres")
            for parent in [folder, *folder.parents][:3]:
                parent.chmod(0o755)
            os.chown(folder, owner.pw_uid, owner.pw_gid)
            self._as_postgres = ["runuser", "-u", "postgres", "--"]
        made = [*self._as_postgres, str(binaries / "initdb"), "-D", str(folder / "data")]
        subprocess.run(  # noqa: S603 - PostgreSQL's own program
            [*made, "-A", "trust", "-U", "postgres"], check=True, stdout=subprocess.DEVNULL
        )

    def start(self) -> None:
        """Start it and wait until it answers; after a kill it recovers first."""
        data = self._folder / "data"
        (data / "postmaster.pid").unlink(missing_ok=True)
        sockets = str(self._folder)
        command = [str(self._binaries / "postgres"), "-D", str(data), "-p", str(self.port)]
        self._process = _quiet([*self._as_postgres, *command, "-k", sockets])
        ready = [str(self._binaries / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port)]
        for _ in range(200):
            if subprocess.run(ready, stdout=subprocess.DEVNULL, check=False).returncode == 0:  # noqa: S603
                return
            time.sleep(0.1)
        raise RuntimeError("PostgreSQL did not start")

    def kill(self) -> None:
        """Kill all its processes at once."""
        subprocess.run(  # noqa: S603
            ["pkill", "-KILL", "-f", str(self._folder / "data")],  # noqa: S607
            check=False,
        )
        time.sleep(0.3)


def _postgres_folder() -> Path | None:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    return found[-1].parent if found else None


def _quiet(command: list[str], **options: Any) -> subprocess.Popen[bytes]:
    from service_parts.servers import environment

    return subprocess.Popen(  # noqa: S603 - our own commands
        command,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **options,
    )


def _site(
    folder: Path,
    artifact: Path,
    upstream: _Upstream,
    *,
    store: dict[str, Any] | None = None,
    service: dict[str, Any] | None = None,
) -> Site:
    return make_site(
        folder,
        artifact=artifact,
        base_url=f"http://127.0.0.1:{upstream.port}/v1",
        model="fixed",
        service={**(service or {}), "store": store or {}},
    )


def _under_load(site: Site, *, then: Callable[[], object], stream: bool = False) -> dict[str, Any]:
    """Send a load, do something after a third of it, and return what the clients got."""
    settings = {
        "host": "127.0.0.1",
        "port": site.port,
        "key": site.key,
        "model": "auto",
        "requests": int(_SECONDS * _RATE),
        "rate": _RATE,
        "warm_up": 0,
        "connections": 32,
        "stream": stream,
        "mixed": not stream,
        "core": cores()[1],
        "timeout_s": 120,
    }
    found: dict[str, Any] = {}
    thread = threading.Thread(target=lambda: found.update(run_load(settings)))
    thread.start()
    time.sleep(_SECONDS / 3)
    then()
    thread.join()
    return found


def _outcome(
    name: str, site: Site, answers: dict[str, Any], *, may_break: bool = False, note: str = ""
) -> Outcome:
    with site.serving(core=cores()[0], name="again"):
        time.sleep(3)  # the journal is replayed in the background
    lines = json.loads(site.ask("spend", "--json"))["lines"]
    booked = sum(line["requests"] for line in lines if not line["name"].startswith("("))
    kinds = answers["kinds"]
    return Outcome(
        name,
        whole=kinds.get("whole", 0),
        error=kinds.get("error", 0),
        broken=kinds.get("broken", 0) + answers["cut"],
        booked=booked,
        may_break=may_break,
        note=note,
    )


def _reload(site: Site) -> int:
    key = SECRETS["MODEL_ROUTER_ADMIN_KEY"]
    request = urllib.request.Request(
        f"http://127.0.0.1:{site.admin_port}/admin/reload",
        method="POST",
        headers={"authorization": f"Bearer {key}"},
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
