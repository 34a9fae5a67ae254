"""Limits of keys, counted in Redis, so that several replicas share them.

Each step is one script, which Redis runs as a whole: no two replicas can both take the last place
or the last cent. A request that is admitted holds a lease of ``lease_s``, renewed while its process
lives; so what a killed replica had taken comes back.

Four keys hold what is known of one API key, named with ``{key_id}`` so that a Redis cluster keeps
them together: ``rate`` (requests and tokens by second), ``leases`` (request -> end of its lease),
``held`` (request -> nano-dollars reserved) and ``money`` (spent by period, the sum that is
reserved, and whether the store was asked). Redis must not evict keys (``maxmemory-policy
noeviction``, its default); what it forgets as a whole, in a restart, is asked of the store again.

Errors of Redis pass through; ``limits_shared`` decides what then.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from router_runtime.errors import ConfigError
from router_runtime.service.budgets import (
    Period,
    budget_exceeded,
    from_nano,
    limits_nano,
    periods_at,
    to_nano,
)
from router_runtime.service.limits import (
    CONCURRENCY_RETRY_S,
    SEED_RETRY_S,
    Spent,
    ask_spent,
    has_budget,
    has_rates,
    rate_exceeded,
)
from router_runtime.service.values import Caller, Lease

UNREACHABLE = (RedisError, OSError, TimeoutError)
"""What is raised where Redis cannot be reached, or cannot do what it is asked."""

_PRELUDE = """
local rate, leases, held, money = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local now = tonumber(ARGV[1])
if now < 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end
local function number(key, field)
  return tonumber(redis.call('HGET', key, field) or '0')
end
local function keep()
  for _, key in ipairs({leases, held, money}) do redis.call('EXPIRE', key, 3456000) end
end
local function give_back(token)
  local nano = number(held, token)
  if nano > 0 then redis.call('HINCRBY', money, 'held', -nano) end
  redis.call('HDEL', held, token)
  redis.call('ZREM', leases, token)
end
local function sweep()
  for _, token in ipairs(redis.call('ZRANGEBYSCORE', leases, '-inf', now)) do give_back(token) end
end
"""

_ADMIT = """
local most_requests, most_tokens = tonumber(ARGV[2]), tonumber(ARGV[3])
local most_leases, tokens = tonumber(ARGV[4]), tonumber(ARGV[5])
sweep()
if most_leases >= 0 and redis.call('ZCARD', leases) >= most_leases then return {1, 0} end
local second = math.floor(now / 1000)
local counts = {r = {}, t = {}}
local totals = {r = 0, t = 0}
local seconds = {}
local all = redis.call('HGETALL', rate)
for i = 1, #all, 2 do
  local kind, at = string.sub(all[i], 1, 1), tonumber(string.sub(all[i], 2))
  local n = tonumber(all[i + 1])
  if at < second - 60 then
    redis.call('HDEL', rate, all[i])
  else
    if kind == 'r' then seconds[#seconds + 1] = at end
    counts[kind][at] = n
    totals[kind] = totals[kind] + n
  end
end
local function wait(kind, excess)
  table.sort(seconds)
  for _, at in ipairs(seconds) do
    excess = excess - (counts[kind][at] or 0)
    if excess <= 0 then return math.max((at + 61) * 1000 - now, 0) end
  end
  return 60000
end
if most_requests >= 0 and totals.r + 1 > most_requests then
  return {2, wait('r', totals.r + 1 - most_requests)}
end
if most_tokens >= 0 and totals.t + tokens > most_tokens then
  if tokens > most_tokens then return {3, -1} end
  return {3, wait('t', totals.t + tokens - most_tokens)}
end
redis.call('HINCRBY', rate, 'r' .. second, 1)
redis.call('HINCRBY', rate, 't' .. second, tokens)
redis.call('EXPIRE', rate, 120)
redis.call('ZADD', leases, now + tonumber(ARGV[7]), ARGV[6])
keep()
return {0, second}
"""

_RESERVE = """
local token, wanted = ARGV[2], tonumber(ARGV[4])
sweep()
local before = number(held, token)
local reserved = math.max(number(money, 'held'), 0) - before
local left = {false, false}
for i = 1, 2 do
  local limit = tonumber(ARGV[6 + i])
  if limit >= 0 then
    local known = tonumber(redis.call('HGET', money, 'known:' .. ARGV[4 + i]) or '-1')
    if known ~= 0 and known <= now then return {2, i} end
    left[i] = limit - number(money, 'spent:' .. ARGV[4 + i]) - reserved
    if wanted > before and wanted > left[i] then return {1, i, left[i]} end
    left[i] = left[i] - math.max(wanted, 0)
  end
end
if wanted >= 0 then
  redis.call('HINCRBY', money, 'held', wanted - before)
  redis.call('HSET', held, token, wanted)
  redis.call('ZADD', leases, now + tonumber(ARGV[3]), token)
  keep()
end
return {0, left[1], left[2]}
"""

_SEED = """
local period, spent, retry = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local known = redis.call('HGET', money, 'known:' .. period)
if known == '0' then return 0 end
if spent < 0 then
  redis.call('HSET', money, 'known:' .. period, now + retry)
else
  local counted = number(money, 'spent:' .. period)
  if known then spent = math.max(spent, counted) else spent = spent + counted end
  redis.call('HSET', money, 'spent:' .. period, spent, 'known:' .. period, 0)
end
for _, name in ipairs(redis.call('HKEYS', money)) do
  local of = string.match(name, '^%a+:(.+)$')
  if of and of ~= ARGV[5] and of ~= ARGV[6] then redis.call('HDEL', money, name) end
end
keep()
return 1
"""

_SETTLE = """
local second, more, spent = ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])
give_back(ARGV[2])
if more ~= 0 and redis.call('HEXISTS', rate, 't' .. second) == 1 then
  redis.call('HINCRBY', rate, 't' .. second, more)
end
for i = 6, 7 do
  local known = ARGV[8] == '0' or redis.call('HEXISTS', money, 'known:' .. ARGV[i]) == 1
  if ARGV[i] ~= '' and spent > 0 and known then
    redis.call('HINCRBY', money, 'spent:' .. ARGV[i], spent)
    keep()
  end
end
return 0
"""

_RENEW = """
for i = 3, #ARGV do redis.call('ZADD', leases, 'XX', now + tonumber(ARGV[2]), ARGV[i]) end
keep()
return 0
"""


@dataclass(slots=True)
class RedisLease(Lease):
    """A lease of ``RedisCounter``: where the request is counted."""

    second: int = -1
    counted: bool = False
    day: Period | None = None
    month: Period | None = None


@dataclass(frozen=True, slots=True)
class Settlement:
    """What ``settle`` tells Redis, kept to be told again where it could not be.

    Parameters
    ----------
    key_id, token : str
    second, more_tokens : int
        Where tokens were counted, and how many more (or fewer) they were.
    spent_nano : int
    day, month : str
        Names of the periods; empty where the key has no budget.
    elsewhere : bool
        The call was counted while Redis was away: where Redis has forgotten the period as well,
        the store will be asked and knows of it.
    """

    key_id: str
    token: str
    second: int = -1
    more_tokens: int = 0
    spent_nano: int = 0
    day: str = ""
    month: str = ""
    elsewhere: bool = False


class RedisCounter:
    """The four steps of a request as scripts; raises ``UNREACHABLE`` where Redis fails.

    Parameters
    ----------
    url : str
        ``redis://`` or ``rediss://``.
    spent : callable
        What a key has spent since a time according to the store; may block.
    prefix : str
        Begins the name of every key in Redis.
    lease_s : float
        How long what a request holds outlives its process.
    timeout_s : float
        The longest wait for Redis.
    clock : callable
        Seconds since the epoch; decides which day it is.
    redis_clock : callable or None
        Seconds that rates and leases are counted in; None: the time of Redis, which replicas share.
    """

    def __init__(
        self,
        url: str,
        *,
        spent: Spent,
        prefix: str = "model-router:",
        lease_s: float = 30.0,
        timeout_s: float = 0.5,
        clock: Callable[[], float] = time.time,
        redis_clock: Callable[[], float] | None = None,
    ) -> None:
        try:
            self.redis: Redis = Redis.from_url(
                url,
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
                retry=Retry(NoBackoff(), 0),  # a step that may have been done is not done again
                max_connections=4096,
            )
        except ValueError:  # its message may quote the password
            raise ConfigError(
                "service.redis_url is no URL of Redis, such as redis://127.0.0.1:6379/0."
            ) from None
        self.lease_s = lease_s
        self.seed_failures = 0
        self._spent = spent
        self._prefix = prefix
        self._clock = clock
        self._redis_clock = redis_clock
        self._now = periods_at(clock())
        self._admit = self._script(_ADMIT)
        self._reserve = self._script(_RESERVE)
        self._seed = self._script(_SEED)
        self._settle = self._script(_SETTLE)
        self._renew = self._script(_RENEW)

    async def admit(self, caller: Caller, *, tokens: int) -> RedisLease:
        """See ``values.Limiter.admit``; a key without rates asks Redis nothing."""
        lease = RedisLease(caller, tokens, token=secrets.token_hex(8))
        limits = caller.limits
        if has_budget(limits):
            lease.day, lease.month = self._periods()
        if not has_rates(limits):
            return lease
        most = (limits.requests_per_minute, limits.tokens_per_minute, limits.max_concurrency)
        code, value = await self._run(
            self._admit, caller.key_id, *map(_or_none, most), tokens, lease.token, self._lease_ms
        )
        if code == 1:
            raise rate_exceeded(
                "requests at a time", most[2] or 0, retry_after_s=CONCURRENCY_RETRY_S
            )
        if code:
            noun = "requests per minute" if code == 2 else "tokens per minute"
            wait_s = None if value < 0 else value / 1000
            raise rate_exceeded(noun, most[code - 2] or 0, retry_after_s=wait_s)
        lease.second, lease.counted = value, True
        return lease

    async def reserve(self, lease: RedisLease, *, cost_usd: Decimal) -> Decimal | None:
        """See ``values.Limiter.reserve``; return what is then left of the tightest budget."""
        if lease.day is None or lease.month is None or lease.settled:
            return None
        periods = (lease.day, lease.month)
        left = await self._ask(lease.caller, periods, token=lease.token, wanted=to_nano(cost_usd))
        lease.reserved_usd = cost_usd
        return left

    async def remaining_usd(self, caller: Caller) -> Decimal | None:
        """See ``values.Limiter.remaining_usd``."""
        if not has_budget(caller.limits):
            return None
        return await self._ask(caller, self._periods(), token="", wanted=-1)

    def settlement(self, lease: RedisLease, *, tokens: int, cost_usd: Decimal) -> Settlement | None:
        """Return what ``apply`` shall tell Redis of a request that ended; None: nothing."""
        if lease.day is None and not lease.counted:
            return None
        limits = lease.caller.limits
        return Settlement(
            key_id=lease.caller.key_id,
            token=lease.token,
            second=lease.second,
            more_tokens=tokens - lease.tokens if lease.counted else 0,
            spent_nano=to_nano(cost_usd),
            day=lease.day.name if lease.day and limits.usd_per_day is not None else "",
            month=lease.month.name if lease.month and limits.usd_per_month is not None else "",
        )

    async def apply(self, settlement: Settlement) -> None:
        """Replace what a request holds by what it used."""
        await self._run(
            self._settle,
            settlement.key_id,
            settlement.token,
            settlement.second,
            settlement.more_tokens,
            settlement.spent_nano,
            settlement.day,
            settlement.month,
            int(settlement.elsewhere),
        )

    async def renew(self, leases: Iterable[RedisLease]) -> None:
        """Prolong the leases of requests that still run."""
        by_key: dict[str, list[str]] = {}
        for lease in leases:
            by_key.setdefault(lease.caller.key_id, []).append(lease.token)
        for key_id, tokens in by_key.items():
            for start in range(0, len(tokens), 1000):  # Lua takes some thousand arguments
                chunk = tokens[start : start + 1000]
                await self._run(self._renew, key_id, self._lease_ms, *chunk)

    async def ping(self) -> None:
        """Find out whether Redis answers, on a new connection."""
        await self.redis.connection_pool.disconnect(inuse_connections=False)
        await self.redis.execute_command("PING")  # type: ignore[no-untyped-call]

    async def close(self) -> None:
        """Close all connections."""
        await self.redis.aclose()

    async def _ask(
        self, caller: Caller, periods: tuple[Period, Period], *, token: str, wanted: int
    ) -> Decimal | None:
        """Reserve ``wanted`` nano-dollars, or look only (-1); ask the store first if need be."""
        limits = limits_nano(caller.limits)
        names = (periods[0].name, periods[1].name)
        while True:
            code, *found = await self._run(
                self._reserve,
                caller.key_id,
                token,
                self._lease_ms,
                wanted,
                *names,
                *map(_or_none, limits),
            )
            if code != 2:
                break
            await self._seed_from_store(caller.key_id, periods[found[0] - 1], names)
        if code == 1:
            number = found[0] - 1
            raise budget_exceeded(
                periods[number],
                limit_nano=limits[number] or 0,
                left_nano=found[1],
                wanted_nano=wanted,
            )
        left = [nano for nano in found if nano is not None]
        return from_nano(max(min(left), 0)) if left else None

    async def _seed_from_store(self, key_id: str, period: Period, names: tuple[str, str]) -> None:
        spent = await ask_spent(self._spent, key_id, period.start_s)
        if spent is None:
            self.seed_failures += 1
        retry_ms = int(SEED_RETRY_S * 1000)
        await self._run(
            self._seed, key_id, period.name, -1 if spent is None else spent, retry_ms, *names
        )

    def _periods(self) -> tuple[Period, Period]:
        now_s = self._clock()
        day = self._now[0]
        if not day.start_s <= now_s < day.end_s:
            self._now = periods_at(now_s)
        return self._now

    @property
    def _lease_ms(self) -> int:
        return int(self.lease_s * 1000)

    def _script(self, body: str) -> Any:
        return self.redis.register_script(_PRELUDE + body)

    async def _run(self, script: Any, key_id: str, *arguments: object) -> Sequence[Any]:
        keys = [f"{self._prefix}{{{key_id}}}:{n}" for n in ("rate", "leases", "held", "money")]
        now_ms = -1 if self._redis_clock is None else int(self._redis_clock() * 1000)
        reply: Sequence[Any] = await script(keys=keys, args=[now_ms, *arguments])
        return reply


def _or_none(limit: int | None) -> int:
    """Return a limit as scripts know it: -1 for none."""
    return -1 if limit is None else limit
