"""The accounts of `account.py` in Redis, for all replicas: one script a change, by its clock.

PREFIXquota:TENANT is a hash (at, requests, tokens, day, used), PREFIXquota:TENANT:HOLD what a
search holds. A replica that dies leaves what its searches held as taken: until the bucket has
drained, and until the end of the day.
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
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local today = math.floor(now / {DAY})
local had = redis.call('HMGET', KEYS[1], 'at', 'requests', 'tokens', 'day', 'used')
local minutes = math.max(0, now - tonumber(had[1] or now)) / 60
local requests = math.max(0, tonumber(had[2] or 0) - minutes * rpm)
local tokens = math.max(0, tonumber(had[3] or 0) - minutes * tpm)
local used = 0
if tonumber(had[4] or 0) == today then used = tonumber(had[5]) end

local function take(day, amount)
  if tpm > 0 then tokens = math.max(0, tokens + amount) end
  if day == today then used = math.max(0, used + amount) end
end

local function text(number)
  return string.format('%.6f', number)
end

local function keep()
  redis.call('HSET', KEYS[1], 'at', text(now), 'requests', text(requests),
    'tokens', text(tokens), 'day', today, 'used', string.format('%.0f', used))
  redis.call('EXPIRE', KEYS[1], {2 * DAY})
end
"""
HOLD = (
    ACCOUNT
    + f"""
local want = tonumber(ARGV[4])
local granted = redis.call('EXISTS', KEYS[2])
if granted == 0
  and (rpm == 0 or requests + 1 <= rpm + {SLACK})
  and (tpm == 0 or tokens + want <= tpm + {SLACK})
  and (tpd == 0 or used + want <= tpd) then
  granted = 1
  if rpm > 0 then requests = requests + 1 end
  take(today, want)
  keep()
  redis.call('SET', KEYS[2], today .. ':' .. string.format('%.0f', want), 'EX', {DAY})
end
return {{granted, text(requests), text(tokens), string.format('%.0f', used), text(now)}}
"""
)
SETTLE = (
    ACCOUNT
    + """
local spent, owed = tonumber(ARGV[4]), ARGV[5] == '1'
local held = redis.call('GET', KEYS[2])
if held == 'settled' or not (held or owed) then return 0 end
if held then
  local day, amount = string.match(held, '(%d+):(%d+)')
  take(tonumber(day), spent - tonumber(amount))
else
  take(today, spent)
end
keep()
redis.call('SET', KEYS[2], 'settled', 'EX', 3600)
return 1
"""
)


class RedisLedger:
    """All accounts, in Redis."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._hold, self._settle = (_script(connection.redis, text) for text in (HOLD, SETTLE))

    async def hold(self, tenant: str, quota: Quota, hold: str, tokens: int) -> Verdict:
        with self._connection.asking("a quota"):
            said = await self._hold(keys=self._keys(tenant, hold), args=[*_limits(quota), tokens])
        granted, *taken = said
        requests, of_minute, of_day, now = map(float, taken)
        return Verdict(bool(granted), Taken(requests, of_minute, int(of_day), now))

    async def settle(
        self, tenant: str, quota: Quota, hold: str, used: int, *, owed: bool = False
    ) -> None:
        args = [*_limits(quota), used, int(owed)]
        with self._connection.asking("a quota"):
            await self._settle(keys=self._keys(tenant, hold), args=args)

    def _keys(self, tenant: str, hold: str) -> list[str]:
        account = self._connection.key("quota", tenant)
        return [account, f"{account}:{hold}"]


def _script(redis: Redis, text: str) -> AsyncScript:
    script: Any = redis.register_script(text)
    assert isinstance(script, AsyncScript)
    return script


def _limits(quota: Quota) -> list[int]:
    limits = quota.requests_per_minute, quota.tokens_per_minute, quota.tokens_per_day
    return [limit or 0 for limit in limits]
