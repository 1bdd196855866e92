"""The accounts of `account.py` in Redis, for all replicas: one script a change, by its clock.

PREFIXquota:TENANT is a hash (at, requests, tokens, held, day, used), PREFIXquota:TENANT:holds a
sorted set of what is held, by the second in which its replica is taken for dead, and
PREFIXquota:TENANT:HOLD what one search holds of a day, or for a day that it has settled.
"""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from server.state.account import DAY, SLACK, Taken, Verdict
from server.state.connection import Connection
from server.state.settings import Quota

# What both scripts begin with: the account as it stands now. No limit is 0.
ACCOUNT = f"""
local rpm, tpm, tpd = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local account, holds, hold = KEYS[1], KEYS[2], KEYS[3]
local name = ARGV[4]
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local today = math.floor(now / {DAY})
local had = redis.call('HMGET', account, 'at', 'requests', 'tokens', 'held', 'day', 'used')
local minutes = math.max(0, now - tonumber(had[1] or now)) / 60
local requests = math.max(0, tonumber(had[2] or 0) - minutes * rpm)
local tokens = math.max(0, tonumber(had[3] or 0) - minutes * tpm)
local held = tonumber(had[4] or 0)
local used = 0
if tonumber(had[5] or 0) == today then used = tonumber(had[6]) end

local function take(amount)
  if tpm > 0 then tokens = tokens + amount end
end

-- Held by replicas that died, as far as we know.
for _, dead in ipairs(redis.call('ZRANGEBYSCORE', holds, '-inf', now)) do
  local amount = tonumber(string.match(dead, ':(%d+)$'))
  redis.call('ZREM', holds, dead)
  held = held - amount
  take(amount)
end

local function text(number)
  return string.format('%.6f', number)
end

local function whole(number)
  return string.format('%.0f', number)
end

local function keep()
  redis.call('HSET', account, 'at', text(now), 'requests', text(requests), 'tokens', text(tokens),
    'held', whole(held), 'day', today, 'used', whole(used))
  redis.call('EXPIRE', account, {2 * DAY})
  redis.call('EXPIRE', holds, {2 * DAY})
end
"""
HOLD = (
    ACCOUNT
    + f"""
local want, seconds = tonumber(ARGV[5]), tonumber(ARGV[6])
local granted = redis.call('EXISTS', hold)
if granted == 0
  and (rpm == 0 or requests + 1 <= rpm + {SLACK})
  and (tpm == 0 or tokens + held + want <= tpm + {SLACK})
  and (tpd == 0 or used + want <= tpd) then
  granted = 1
  if rpm > 0 then requests = requests + 1 end
  held = held + want
  used = used + want
  redis.call('SET', hold, today .. ':' .. whole(want), 'EX', {DAY})
  redis.call('ZADD', holds, now + seconds, name .. ':' .. whole(want))
end
keep()
return {{granted, text(requests), text(tokens + held), whole(used), text(now)}}
"""
)
SETTLE = (
    ACCOUNT
    + f"""
local spent = tonumber(ARGV[5])
local had = redis.call('GET', hold)
if had == 'settled' then return 0 end
if had then
  local day, amount = string.match(had, '(%d+):(%d+)')
  if redis.call('ZREM', holds, name .. ':' .. amount) == 1 then
    held = held - tonumber(amount)
    take(spent)
  end
  if tonumber(day) == today then used = used + spent - tonumber(amount) end
else
  take(spent)
  used = used + spent
end
keep()
redis.call('SET', hold, 'settled', 'EX', {DAY})
return 1
"""
)


class RedisLedger:
    """All accounts, in Redis."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._hold, self._settle = (_script(connection.redis, text) for text in (HOLD, SETTLE))

    @property
    def up(self) -> bool:
        """Whether Redis is asked at all, or known to be away."""
        return self._connection.up

    async def hold(
        self, tenant: str, quota: Quota, hold: str, tokens: int, seconds: float
    ) -> Verdict:
        said = await self._run(self._hold, tenant, quota, hold, tokens, seconds)
        granted, *taken = said
        requests, of_minute, of_day, now = map(float, taken)
        return Verdict(bool(granted), Taken(requests, of_minute, int(of_day), now))

    async def settle(self, tenant: str, quota: Quota, hold: str, used: int) -> None:
        await self._run(self._settle, tenant, quota, hold, used)

    async def _run(
        self, script: AsyncScript, tenant: str, quota: Quota, hold: str, *args: float
    ) -> Any:
        account = self._connection.key("quota", tenant)
        keys = [account, f"{account}:holds", f"{account}:{hold}"]
        with self._connection.asking("a quota"):
            return await script(keys=keys, args=[*_limits(quota), hold, *args])


def _script(redis: Redis, text: str) -> AsyncScript:
    script: Any = redis.register_script(text)
    assert isinstance(script, AsyncScript)
    return script


def _limits(quota: Quota) -> list[int]:
    limits = quota.requests_per_minute, quota.tokens_per_minute, quota.tokens_per_day
    return [limit or 0 for limit in limits]
