-- turns: may messages that were taken run now? Asked once for all messages of a batch that have a limit of their own.
-- A message that may not goes, uncharged, to the delayed set: for a rate until its promised time, for a concurrency key
-- until a holder of the key ends, and if nobody wakes it for a minute or more.
-- ARGV: prefix, microseconds that a worker may hold a message before its start, then for each message:
--   lease id, task id, '' or what is to run once, seconds that this is remembered,
--   '' or concurrency key, how many may hold it, '' or name of the rate, microseconds between starts, burst.
-- Returns for each: 'go', microseconds to wait | 'parked', seconds until due | 'duplicate' | 'lost' | 'fault', error.
-- Asked again after a lost reply it answers the same, but for the turns of a rate, which are then taken twice.
local now, HOLD = micros(), tonumber(ARGV[2])
-- Promised times reach so far ahead; what is beyond comes back to ask again in a third to two thirds of that.
local LINE = 300 * 1000000
-- A number in 0..1 that is a text's own: scripts have no randomness.
local function spread(text) return tonumber(string.sub(redis.sha1hex(text), 1, 6), 16) / 16777216 end

-- A rate is a hash: tat, when the next start would be without bursts; line, where the promises to waiting messages end;
-- back, the same for those whose promise could not be kept. All in microseconds.
local function start_of(m, queue)
  local key, step, tau = U .. 'rate:' .. m.rate, m.every, m.every * (m.burst - 1)
  local stored = redis.call('HMGET', key, 'tat', 'line', 'back', 'every')
  local tat, line, back = number(stored[1]), number(stored[2]), number(stored[3])
  local lined = U .. 'lined:' .. m.rate
  if stored[4] ~= tostring(step) or redis.call('ZCARD', U .. 'delayed:' .. queue) == 0 then line, back = 0, 0 end
  -- No state of ours lies further ahead: the clock of the server went back, or the rate was another one.
  tat = math.min(tat, now + HOLD + tau + step)
  line, back = math.min(line, now + LINE + step), math.min(back, now + LINE + step)
  local start = math.max(tat - tau, now)
  local is_lined = redis.call('HEXISTS', lined, m.id) == 1
  local slot = is_lined and start or math.max(line, start)
  local due
  if slot <= now + HOLD then
    tat = math.max(tat, now) + step
    redis.call('HDEL', lined, m.id)
  else
    if is_lined then slot = math.max(back, start) end
    if slot <= now + LINE then
      if is_lined then back = slot + step else line = slot + step end
      due = math.max(slot - HOLD / 2, now + 1000)
      redis.call('HSET', lined, m.id, '')
      redis.call('EXPIRE', lined, 86400)
    else
      due = now + LINE * (1 + spread(m.id)) / 3
    end
  end
  redis.call('HSET', key, 'tat', string.format('%.0f', tat), 'line', string.format('%.0f', line),
    'back', string.format('%.0f', back), 'every', tostring(step))
  redis.call('PEXPIRE', key, math.ceil((LINE + HOLD + tau + step) / 1000) + 60000)
  return start - now, due
end

local function park(m, list, raw, due)
  redis.call('ZADD', U .. 'delayed:' .. queue_of(list), due, delayed_member(list, m.lid, raw))
  end_lease(m.lid, list)
end

-- May it hold its key? Holders are leases, so a holder that died lets go when its lease ends.
local function may_hold(m)
  local held, woken, wait = U .. 'key:held:' .. m.key, U .. 'key:woken:' .. m.key, U .. 'key:wait:' .. m.key
  if redis.call('ZSCORE', held, m.lid) then return true end
  redis.call('HSET', U .. 'key:most', m.key, m.most)
  local is_called = redis.call('ZREM', woken, m.id) == 1
  if is_called then redis.call('DEL', U .. 'called:' .. m.id) end
  local free = m.most - key_users(m.key, m.most)
  if free <= 0 then return false end
  if is_called then return true end
  local rank = redis.call('ZRANK', wait, m.id)
  return (rank or redis.call('ZCARD', wait)) < free
end

local function wait_for_key(m, list, raw)
  local wait, at = U .. 'key:wait:' .. m.key, U .. 'key:at:' .. m.key
  -- Woken by whoever lets go of the key; the time is for the case that nobody does.
  local after = math.min(math.max(redis.call('ZCARD', wait) / 50, 60), 600) * (1 + spread(m.lid) / 2)
  local due = seconds(now + after * 1000000)
  local queue = queue_of(list)
  -- In the order in which they were taken, whoever asks first.
  redis.call('ZADD', wait, 'NX', string.match(m.lid, '(%d+)$') or string.format('%.0f', now), m.id)
  redis.call('HSET', at, m.id, due .. '|' .. record(m.lid, queue))
  redis.call('EXPIRE', wait, 604800)
  redis.call('EXPIRE', at, 604800)
  park(m, list, raw, due)
  wake_key(m.key)
  return { 'parked', string.format('%.6f', after), 'key' }
end

local function turn(m)
  local list, raw = leased(m.lid)
  if not list then return { 'lost' } end
  local once = m.once ~= '' and U .. 'copy:' .. m.once
  if once then
    local by = redis.call('GET', once)
    if by == 'done' or (by and by ~= m.lid and redis.call('ZSCORE', U .. 'lease', by)) then
      give_turn(m.id)
      return { 'duplicate' }
    end
  end
  if m.key ~= '' and not may_hold(m) then return wait_for_key(m, list, raw) end
  local wait = 0
  if m.rate ~= '' then
    local due
    wait, due = start_of(m, queue_of(list))
    if due then
      park(m, list, raw, seconds(due))
      -- A turn at the key that is not used now is the next one's.
      if m.key ~= '' then wake_key(m.key) end
      return { 'parked', string.format('%.6f', (due - now) / 1000000), 'rate' }
    end
  end
  if m.key ~= '' then
    redis.call('ZADD', U .. 'key:held:' .. m.key, string.format('%.0f', now), m.lid)
    redis.call('HSET', U .. 'keyed', m.lid, m.key)
    redis.call('ZREM', U .. 'key:wait:' .. m.key, m.id)
    redis.call('HDEL', U .. 'key:at:' .. m.key, m.id)
  end
  if once then redis.call('SET', once, m.lid, 'EX', m.kept) end
  return { 'go', string.format('%.0f', wait) }
end

local out = {}
for at = 3, #ARGV, 9 do
  local ok, answer = pcall(turn, { lid = ARGV[at], id = ARGV[at + 1], once = ARGV[at + 2], kept = ARGV[at + 3],
    key = ARGV[at + 4], most = tonumber(ARGV[at + 5]) or 1, rate = ARGV[at + 6], every = tonumber(ARGV[at + 7]) or 0,
    burst = tonumber(ARGV[at + 8]) or 1 })
  -- One that the server refuses (a key of another type) must not hold up its neighbours.
  if not ok then answer = { 'fault', type(answer) == 'table' and answer.err or tostring(answer) } end
  out[#out + 1] = answer
end
return out
