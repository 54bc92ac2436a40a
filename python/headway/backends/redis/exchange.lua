-- One process tells what it holds of a bucket's limits, and asks for more: in one step of Redis.
--
-- KEYS  1 words (string): everything that is one number a limit or a resource
--       2 peers (hash): what each process holds, as it said last, and what it was granted since
--       3 deadlines (sorted set, µs since the epoch): until when a process is heard of again
--       4 leaving (sorted set, µs since the epoch): when what was counted leaves its window
--       5 counted (hash): how much that is
-- ARGV  1 message (JSON), 2 the instant in µs since the epoch; '' for the server's own clock
--
-- Amounts are units of a resource; spans are ns, instants ns since the words' base, or µs since the
-- epoch where that is exact enough. All are whole numbers below 2^53, where doubles are exact.
--
-- What a process says of itself is absolute: "so much I hold", never "so much more". Whatever was
-- lost on the way, the next message puts right: a grant whose answer was lost is not held by anybody
-- and is free again. What has been spent is said as a sum that only grows, for the same reason.
--
-- A limit is one of these:
--   bucket   one instant W, at which all that was granted will have been paid for. What is granted
--            and not yet spent (credit) may be spent at any time from now on, so W is taken to be no
--            earlier than if all of it was spent now: only then is it true that no interval sees more
--            than burst + rate * time.
--   cells    window and fixed: units used; those of calls that the provider has counted by a known
--            instant leave by themselves, all others are held by a process, and so is what is usable:
--            credit less that of those who are admitted and have not gone on, who are in cells already.
--   concurrency  units used, all of them held by a process.
local BUCKET, CELLS = 1, 2
local FREED_AT_ONCE = 512

local message = cjson.decode(ARGV[1])
local now_us
if ARGV[2] ~= '' then
  now_us = tonumber(ARGV[2])
else
  local time = redis.call('TIME')
  now_us = time[1] * 1e6 + time[2]
end

local function zeros(count)
  local out = {}
  for i = 1, count do out[i] = 0 end
  return out
end

local stored = redis.call('GET', KEYS[1])
-- A write that needs memory comes first: where there is none, the script ends here, with nothing done,
-- and not in the middle.
redis.call('SET', KEYS[1], stored or '', 'PX', message.ttl)
if stored == '' then stored = false end
local words
if stored then
  words = cmsgpack.unpack(stored)
else
  words = {
    epoch = message.fresh, base = now_us, seen = now_us, generation = 1, limits = message.limits,
    names = message.resources, used = zeros(#message.limits), credit = zeros(#message.resources),
  }
end

-- What there was is gone, or may be older than what was answered: another server is asked now, or
-- this one was started anew. Nothing is granted before all who held something have said so anew, or
-- have had the time to.
local function doubt(peers)
  words.epoch, words.server = message.fresh, message.server
  words.expects, words.expected_by = peers, now_us + message.heard
end
if not stored then
  words.server = message.server
  if message.epoch ~= '' then doubt(message.peers) end
elseif words.server ~= message.server and words.server ~= '' and message.server ~= '' then
  doubt(redis.call('HLEN', KEYS[2]))
end
local limits, used, credit = words.limits, words.used, words.credit

local function bucket(limit) return limit[1] == BUCKET end
local function resource(limit) return limit[2] end
local function amount(limit) return limit[3] end
local function period(limit) return limit[4] end
local function burst(limit) return limit[5] end
local function step(limit) return limit[6] end
local function guard(limit) return limit[7] end

-- The clock went back: everything goes back with it, or a word would lie ahead for as long as that.
if now_us < words.seen then
  local back = words.seen - now_us
  words.base = words.base - back
  if words.expects then words.expected_by = words.expected_by - back end
  for _, key in ipairs({KEYS[3], KEYS[4]}) do
    local all = redis.call('ZRANGE', key, 0, -1, 'WITHSCORES')
    for i = 1, #all, 2 do
      redis.call('ZADD', key, string.format('%.0f', all[i + 1] - back), all[i])
    end
  end
end
words.seen = now_us

local now = (now_us - words.base) * 1000
if now > 2 ^ 52 then
  for i, limit in ipairs(limits) do
    if bucket(limit) then used[i] = math.max(0, used[i] - now) end
  end
  words.base, now = now_us, 0
end

-- The instant of a bucket as if all credit was spent at `at`, which may be anywhere in its µs. Where
-- nothing else was owed, the provider may count what goes out a little later than we do, and its
-- refill begins then.
local function settle(i, limit, at)
  local owed = at + 1000 + credit[resource(limit)] * step(limit)
  if used[i] < owed then used[i] = owed + guard(limit) end
end

local function leaves(i, who, id, sum, at_us)
  local member = i .. '|' .. who .. '|' .. id
  local before = tonumber(redis.call('HGET', KEYS[5], member) or 0)
  if at_us <= now_us then
    if before > 0 then
      redis.call('ZREM', KEYS[4], member)
      redis.call('HDEL', KEYS[5], member)
      used[i] = used[i] - before
    end
    return
  end
  redis.call('ZADD', KEYS[4], string.format('%.0f', at_us), member)
  redis.call('HSET', KEYS[5], member, string.format('%.0f', sum))
  used[i] = used[i] + sum - before
end

-- What has left.
repeat
  local gone = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', string.format('%.0f', now_us), 'LIMIT', 0,
    FREED_AT_ONCE)
  for _, member in ipairs(gone) do
    local i = tonumber(string.match(member, '^%d+'))
    if used[i] then used[i] = used[i] - tonumber(redis.call('HGET', KEYS[5], member) or 0) end
    redis.call('HDEL', KEYS[5], member)
    redis.call('ZREM', KEYS[4], member)
  end
until #gone < FREED_AT_ONCE

-- What a process held is nobody's any more; what it held of a bucket may have been used by now.
local function forget(peer)
  for i, limit in ipairs(limits) do
    local r = resource(limit)
    if not bucket(limit) then
      used[i] = used[i] - peer.open[i] - peer.usable[r]
    elseif peer.credit[r] > 0 then
      settle(i, limit, now)
    end
  end
  for r = 1, #credit do credit[r] = credit[r] - peer.credit[r] end
end

-- Whoever was not heard of in time: what he held of rates may have been counted by now, what he held
-- open is not any more.
local function bury(who)
  local packed = redis.call('HGET', KEYS[2], who)
  redis.call('ZREM', KEYS[3], who)
  if not packed then return end
  redis.call('HDEL', KEYS[2], who)
  local peer = cmsgpack.unpack(packed)
  forget(peer)
  for i, limit in ipairs(limits) do
    local held = peer.open[i] + peer.usable[resource(limit)]
    if limit[1] == CELLS and held > 0 then
      leaves(i, who, 'left', held, now_us + math.ceil(period(limit) / 1000))
    end
  end
end
for _, who in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf',
    string.format('%.0f', now_us), 'LIMIT', 0, 16)) do
  bury(who)
end

-- Before each return from here on: of what has left and of the dead, some is written already.
local function keep()
  redis.call('SET', KEYS[1], cmsgpack.pack(words), 'PX', message.ttl)
  for i = 2, 5 do redis.call('PEXPIRE', KEYS[i], message.ttl) end
end

local function answer(out)
  out.epoch = words.epoch
  out.generation = words.generation
  if words.generation ~= message.generation then out.limits = limits end
  return cjson.encode(out)
end

-- Of other kinds, what he says is of other limits.
local same = #message.limits == #limits and #message.resources == #words.names
for r, name in ipairs(words.names) do
  same = same and message.resources[r] == name
end
for i, limit in ipairs(limits) do
  local his = message.limits[i]
  same = same and his[1] == limit[1] and his[2] == limit[2] and his[4] == limit[4]
end
if not same then
  keep()
  return answer({state = 'differs'})
end
local packed = redis.call('HGET', KEYS[2], message.who)
local peer = packed and cmsgpack.unpack(packed)
if peer and message.turn <= peer.turn then
  keep()
  return answer({state = 'late'})
end
if message.anew then
  -- He says all of it, whatever was known of him.
  if peer then forget(peer) end
  for i, limit in ipairs(limits) do
    if limit[1] == CELLS then leaves(i, message.who, 'left', 0, now_us) end
  end
  peer = {
    usable = zeros(#credit), credit = zeros(#credit), spent = zeros(#credit), refunded = zeros(#credit),
    open = zeros(#limits),
  }
  if words.expects and message.epoch ~= '' then words.expects = words.expects - 1 end
elseif not peer or message.epoch ~= words.epoch then
  -- He was taken for dead, or the words are not what they were: all that he holds is to be said anew.
  keep()
  return answer({state = 'unknown'})
end

if message.set then
  for _, i in ipairs(message.changed) do
    local limit = message.limits[i]
    if bucket(limit) then
      local owed = math.max(0, used[i] - now)
      local unit, becomes = step(limits[i]), step(limit)
      if message.set == 'proportional' then unit, becomes = period(limits[i]), period(limit) end
      if unit > 0 then used[i] = now + math.ceil(owed * becomes / unit) end
    end
    limits[i] = limit
  end
  words.generation = words.generation + 1
end

-- What he says he holds.
for i, limit in ipairs(limits) do
  local r = resource(limit)
  if bucket(limit) then
    local spent = message.spent[r] - peer.spent[r]
    if spent > 0 then settle(i, limit, now - message.age[r]) end
    local back = peer.credit[r] - spent - message.credit[r] + message.refunded[r] - peer.refunded[r]
    used[i] = used[i] - back * step(limit)
    if message.owed then used[i] = math.max(used[i], now + message.owed[i]) end
  else
    used[i] = used[i] + message.open[i] + message.usable[r] - peer.open[i] - peer.usable[r]
    peer.open[i] = message.open[i]
  end
end
for r = 1, #credit do
  credit[r] = credit[r] + message.credit[r] - peer.credit[r]
  peer.credit[r], peer.spent[r] = message.credit[r], message.spent[r]
  peer.refunded[r], peer.usable[r] = message.refunded[r], message.usable[r]
end
for _, cell in ipairs(message.counted) do
  leaves(cell[1], message.who, cell[2], cell[3], now_us + math.ceil(cell[4] / 1000))
end
peer.turn = message.turn

-- What he asks for.
local full = {}
for i, limit in ipairs(limits) do
  if bucket(limit) then
    local owed = now + credit[resource(limit)] * step(limit)
    if used[i] <= owed then full[i], used[i] = owed, owed end
  end
end

local function room(i, limit)
  if bucket(limit) then
    return now + burst(limit) * step(limit) - used[i], step(limit)
  end
  return amount(limit) - used[i], 1
end

local function give(run, count)
  for i, limit in ipairs(limits) do
    local each = run[resource(limit) + 1]
    used[i] = used[i] + count * each * (bucket(limit) and step(limit) or 1)
  end
  for r = 1, #credit do
    credit[r] = credit[r] + count * run[r + 1]
    peer.credit[r] = peer.credit[r] + count * run[r + 1]
    peer.usable[r] = peer.usable[r] + count * run[r + 1]
  end
end

-- When so much will have left one limit's window; -1: only those who hold it can tell.
local function wait(i, wanted)
  local all = redis.call('ZRANGE', KEYS[4], 0, 63, 'WITHSCORES')
  local freed = 0
  for k = 1, #all, 2 do
    if tonumber(string.match(all[k], '^%d+')) == i then
      freed = freed + tonumber(redis.call('HGET', KEYS[5], all[k]) or 0)
      if freed >= wanted then return (all[k + 1] - now_us) * 1000 end
    end
  end
  return -1
end

local asks = message.asks
local granted, blocked = {}, nil
if words.expects then
  if words.expects <= 0 or now_us >= words.expected_by then
    words.expects = nil
  elseif #asks > 0 then
    asks, blocked = {}, {0, -1}
  end
end
for _, run in ipairs(asks) do
  local most = run[1]
  for i, limit in ipairs(limits) do
    local each = run[resource(limit) + 1]
    if each > 0 then
      local left, unit = room(i, limit)
      if bucket(limit) then
        local unspent = (burst(limit) - credit[resource(limit)]) * unit
        left = math.min(left + message.horizon, unspent)
      end
      most = math.min(most, math.max(0, math.floor(left / (each * unit))))
    end
  end
  -- Whoever comes first of those who do not fit has an instant of his own, so nobody passes him.
  local count, ahead = most, true
  if most < run[1] then
    for i, limit in ipairs(limits) do
      local each = (most + 1) * run[resource(limit) + 1]
      if bucket(limit) then
        ahead = ahead and credit[resource(limit)] + each <= burst(limit)
      else
        ahead = ahead and used[i] + each <= amount(limit)
      end
    end
    if ahead then count = most + 1 end
  end
  -- When the first and each further one may go, by each bucket: ns from now.
  local when = {}
  for i, limit in ipairs(limits) do
    local each = run[resource(limit) + 1]
    if bucket(limit) and each > 0 then
      when[#when + 1] = {each * step(limit) - (room(i, limit)), each * step(limit)}
    end
  end
  give(run, count)
  granted[#granted + 1] = {count, when}
  if count < run[1] then
    blocked = {0, -1}
    for i, limit in ipairs(limits) do
      local each = run[resource(limit) + 1]
      local left, unit = room(i, limit)
      if bucket(limit) and each > 0 and credit[resource(limit)] + each > burst(limit) then
        blocked = {i, -1}
        break
      end
      if each > 0 and left < each * unit then
        local span = bucket(limit) and each * unit - left or wait(i, each - left)
        if blocked[2] == -1 or span == -1 or span > blocked[2] then blocked = {i, span} end
        if span == -1 then break end
      end
    end
    break
  end
end
for i, limit in ipairs(limits) do
  if full[i] and used[i] > full[i] then used[i] = used[i] + guard(limit) end
end

redis.call('HSET', KEYS[2], message.who, cmsgpack.pack(peer))
redis.call('ZADD', KEYS[3], string.format('%.0f', now_us + message.heard), message.who)
if message.leaves then bury(message.who) end
keep()

local holds = {}
for i, limit in ipairs(limits) do
  holds[i] = bucket(limit) and math.max(0, used[i] - now) or used[i]
end
return answer({
  state = 'done', granted = granted, blocked = blocked or cjson.null, used = holds,
  peers = redis.call('ZCARD', KEYS[3]),
})
