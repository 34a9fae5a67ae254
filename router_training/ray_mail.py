"""Messages between the process that runs a stage and its workers on a Ray cluster.

What there must be one of (an open file, a limit, a budget) stays where the stage was started. Its
``Server`` answers the workers' requests; a ``Client`` is a worker's end. An actor, the ``Mailbox``,
keeps the messages in between: workers need to reach it and nothing else, and whatever gathers while
a message is on its way goes with the next one.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from types import ModuleType, TracebackType
from typing import Any, Final, TypeAlias

from router_runtime.errors import RouterError

Box: TypeAlias = str
Handle: TypeAlias = Callable[[str, int | None, str, tuple[Any, ...]], Awaitable[Any]]

SERVER: Final[Box] = "server"

_WAIT_S: Final = 20.0
_LOG = logging.getLogger(__name__)


class Mailbox:
    """Boxes of messages by name; an actor, made by ``open_mailbox``."""

    def __init__(self) -> None:
        self._boxes: dict[Box, list[Any]] = {}
        self._arrived: dict[Box, asyncio.Event] = {}

    async def send(self, boxes: Mapping[Box, Sequence[Any]]) -> None:
        """Put messages into boxes."""
        for box, messages in boxes.items():
            self._boxes.setdefault(box, []).extend(messages)
            self._arrived.setdefault(box, asyncio.Event()).set()

    async def receive(self, box: Box) -> list[Any]:
        """Take all messages out of a box, after waiting a while for the first."""
        arrived = self._arrived.setdefault(box, asyncio.Event())
        with suppress(TimeoutError):
            async with asyncio.timeout(_WAIT_S):
                await arrived.wait()
        arrived.clear()
        return self._boxes.pop(box, [])


def open_mailbox(ray: ModuleType, node: str) -> Any:
    """Return a new mailbox on a node, which lives as long as somebody holds it."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    near = NodeAffinitySchedulingStrategy(node_id=node, soft=True)
    actor = ray.remote(num_cpus=0, max_concurrency=10_000)(Mailbox)
    return actor.options(scheduling_strategy=near).remote()


class _Post:
    """Sends what gathers, and hears what comes, until it is closed."""

    def __init__(
        self, mailbox: Any, box: Box, *, hear: Callable[[Any], None], lost: Callable[[], None]
    ) -> None:
        self._mailbox = mailbox
        self._box = box
        self._hear = hear
        self._lost = lost
        self._outgoing: dict[Box, list[Any]] = {}
        self._some = asyncio.Event()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []

    def send(self, box: Box, message: Any) -> None:
        self._outgoing.setdefault(box, []).append(message)
        self._some.set()

    def open(self) -> None:
        self._tasks = [
            asyncio.create_task(self._guarded(work)) for work in (self._sending, self._receiving)
        ]

    async def close(self) -> None:
        """Send what is left, and end."""
        sending, receiving = self._tasks
        self._closing = True
        self._some.set()
        try:
            await sending
        finally:
            receiving.cancel()
            await asyncio.gather(sending, receiving, return_exceptions=True)

    async def _sending(self) -> None:
        while not (self._closing and not self._outgoing):
            await self._some.wait()
            self._some.clear()
            while self._outgoing:
                boxes, self._outgoing = self._outgoing, {}
                await self._mailbox.send.remote(boxes)

    async def _receiving(self) -> None:
        while True:
            for message in await self._mailbox.receive.remote(self._box):
                self._hear(message)

    async def _guarded(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception:  # whatever Ray says: the mailbox is gone
            self._lost()


class Client:
    """A worker's end: asks the server, and hears its notices.

    An async context manager. Its requests fail where the server is gone.

    Parameters
    ----------
    mailbox : actor
    notice : callable
        Called with whatever the server notifies of.
    """

    def __init__(self, mailbox: Any, *, notice: Callable[[Any], None]) -> None:
        self.name = uuid.uuid4().hex
        self._notice = notice
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._gone = False
        self._post = _Post(mailbox, self.name, hear=self._hear, lost=self._lost)

    async def request(self, name: str, *values: Any) -> Any:
        """Return the server's answer.

        Raises
        ------
        RouterError
            As the server raised it; it is gone.
        """
        if self._gone:
            raise _gone()
        number = next(self._numbers)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        self._post.send(SERVER, (self.name, number, name, values))
        try:
            return await self._waiting[number]
        finally:
            del self._waiting[number]

    def tell(self, name: str, *values: Any) -> None:
        """Have the server do something, without an answer; in order with requests."""
        self._post.send(SERVER, (self.name, None, name, values))

    async def __aenter__(self) -> Client:
        self._post.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._post.close()

    def _hear(self, message: tuple[int | None, Any]) -> None:
        number, value = message
        if number is None:
            self._notice(value)
            return
        waiting = self._waiting.get(number)
        if waiting is None or waiting.done():  # who asked has given up, or wants no answer
            return
        if isinstance(value, Exception):
            waiting.set_exception(value)
        else:
            waiting.set_result(value)

    def _lost(self) -> None:
        self._gone = True
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(_gone())


class Server:
    """Answers clients, each request in a task of its own; they begin in order.

    An async context manager.

    Parameters
    ----------
    mailbox : actor
    handle : callable
        Called with a client's name, the request's number (None: no answer is wanted), its name
        and its values.
    """

    def __init__(self, mailbox: Any, handle: Handle) -> None:
        self._handle = handle
        self._tasks: set[asyncio.Task[None]] = set()
        self._post = _Post(mailbox, SERVER, hear=self._hear, lost=self._unheard)

    def notify(self, client: str, value: Any) -> None:
        """Send a client a notice."""
        self._post.send(client, (None, value))

    async def __aenter__(self) -> Server:
        self._post.open()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._post.close()

    def _hear(self, message: tuple[str, int | None, str, tuple[Any, ...]]) -> None:
        task = asyncio.create_task(self._answer(*message))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(
        self, client: str, number: int | None, name: str, values: tuple[Any, ...]
    ) -> None:
        value: Any
        try:
            value = await self._handle(client, number, name, values)
        except RouterError as error:
            value = error
        except Exception as error:  # a worker must not wait for ever for what failed here
            value = RouterError(f"'{name}' failed: {type(error).__name__}: {error}")
        if number is not None:
            self._post.send(client, (number, value))
        elif isinstance(value, Exception):
            _LOG.warning("%s", value)

    def _unheard(self) -> None:
        _LOG.warning("The workers cannot be reached any more.")


def _gone() -> RouterError:
    return RouterError("The run that this worker belongs to is gone.")
