-- reserve: takes up to n messages and remembers them under fresh leases, in one step. Pops last: an error anywhere
-- earlier leaves every message queued.
-- ARGV: prefix, worker, epoch, n, lease (s), largest message (bytes), install, dead letters kept,
--       then for each queue: messages that are its own share (0 = an equal one), number of its lists, the lists in priority order.
-- Returns: 'ok', term, first token, size of umbel:att, list index of each message, messages, faults, Redis time in
--          seconds, what the limits of a queue kept from being taken: '' nothing, seconds until they may allow more, or
--          '0' until somebody says so in umbel:freed:<queue>; or 'epoch' | 'gate', state | 'unknown'.
-- The token of the i-th message is first + i - 1, its lease id '<worker>:<token>'.
local worker, n, lease, largest, kept = ARGV[2], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[8]
local g = gate(worker)
if not g then return { 'unknown' } end
if g.epoch ~= tonumber(ARGV[3]) then return { 'epoch' } end
if g.state ~= 'open' then return { 'gate', g.state } end

-- At most a chunk is read at a time, one message at first and after a large one: nobody knows the size of what he has
-- not read, and a copy of 32 oversized ones would be gigabytes. A reply holds about so many bytes.
local CHUNK, LARGE, BYTES = 32, 64 * 1024, 8 * 1024 * 1024
local groups, shares, at = {}, {}, 9
while at <= #ARGV do
  local lists = {}
  shares[#groups + 1] = tonumber(ARGV[at])
  for i = 1, tonumber(ARGV[at + 1]) do lists[i] = ARGV[at + 1 + i] end
  groups[#groups + 1] = lists
  at = at + #lists + 2
end

-- What queues allow all their workers together, where any has limits: messages that may be taken now, nil = all.
local allowed, rates, blocked = {}, {}, nil
if redis.call('EXISTS', U .. 'limited') == 1 then
  local at_once = micros()
  for i, lists in ipairs(groups) do
    local queue = queue_of(lists[1])
    local policy = redis.call('HMGET', U .. 'queue:' .. queue, 'paused', 'max_in_flight', 'rate')
    local most = tonumber(policy[2] or '')
    if policy[1] == '1' then
      allowed[i] = 0
    elseif most then
      allowed[i] = math.max(most - number(redis.call('HGET', U .. 'held', 'q:' .. queue)), 0)
    end
    local count, period, burst = string.match(policy[3] or '', '^(%d+)/(%d+)/(%d+)$')
    count, period, burst = tonumber(count), tonumber(period), tonumber(burst)
    if count and count > 0 and period > 0 and burst > 0 and allowed[i] ~= 0 then
      local key, every = U .. 'rate:q:' .. queue, period * 1000 / count
      local tau = every * (burst - 1)
      -- No state of ours lies further ahead: the clock of the server went back, or the rate was another one.
      local tat = math.min(number(redis.call('HGET', key, 'tat')), at_once + tau + every)
      local tokens = tat - tau <= at_once and math.floor((at_once + tau - math.max(tat, at_once)) / every) + 1 or 0
      allowed[i] = math.min(allowed[i] or tokens, tokens)
      -- Worth asking again when half a burst is there.
      rates[i] = { key = key, every = every, tat = math.max(tat, at_once), now = at_once,
        some = math.max(math.floor(burst / 2), 1) - burst }
    end
  end
end

local raws, from, faults, oversized = {}, {}, {}, {}
local taken, total, index = {}, 0, 0
local function take(list, i, quota)
  local got, chunk = 0, 1
  while got < quota and total < BYTES and not oversized[list] do
    local skip = taken[list] or 0
    local want = math.min(quota - got, chunk)
    local items = redis.pcall('LRANGE', list, -(skip + want), -(skip + 1))
    if items.err then
      faults[#faults + 1] = list
      faults[#faults + 1] = items.err
      taken[list] = nil
      return got
    end
    if #items == 0 then return got end
    chunk = math.min(2 * chunk, CHUNK)
    for k = #items, 1, -1 do
      local raw = items[k]
      -- A zero byte begins what stands for a message that was acknowledged early, and no message.
      if #raw > largest or is_early(raw) then
        oversized[list] = raw
        return got
      end
      raws[#raws + 1] = raw
      from[#from + 1] = i
      total = total + #raw
      if #raw > LARGE then chunk = 1 end
      got = got + 1
      taken[list] = (taken[list] or 0) + 1
    end
    if #items < want then return got end
  end
  return got
end
-- Each queue gets its share first, what is left goes to whoever has more: nobody starves behind a flooded queue.
local from_queue, equal = {}, math.ceil(n / math.max(#groups, 1))
for round = 1, 2 do
  index = 0
  for g, lists in ipairs(groups) do
    local quota = math.min(round == 2 and n or shares[g] > 0 and shares[g] or equal, n - #raws)
    local room = allowed[g] and allowed[g] - (from_queue[g] or 0)
    if room and room < quota then
      quota = room
      blocked = blocked or 0
    end
    for _, list in ipairs(lists) do
      index = index + 1
      if quota > 0 then
        local got = take(list, index, quota)
        quota = quota - got
        from_queue[g] = (from_queue[g] or 0) + got
      end
    end
  end
  if #groups == 1 then break end
end
for g, rate in pairs(rates) do
  rate.tat = rate.tat + (from_queue[g] or 0) * rate.every
  if blocked then
    local wait = math.max((rate.tat + rate.some * rate.every - rate.now) / 1000000, 0.001)
    if blocked == 0 or wait < blocked then blocked = wait end
  end
end

-- Into the quarantine before anything is taken: one that is of another type leaves the message where it is.
for list, raw in pairs(oversized) do
  faults[#faults + 1] = list
  local what, reason = 'oversized message', 'oversized: ' .. #raw .. ' bytes, largest allowed ' .. largest
  if #raw <= largest then what, reason = 'message', 'begins with a zero byte, as no message does' end
  local laid, err = pcall(lay_aside, 'quarantine', list, raw, reason, '', '', 0, kept)
  if laid then
    faults[#faults + 1] = what .. ' of ' .. #raw .. ' bytes moved to the quarantine'
  else
    oversized[list] = nil
    faults[#faults + 1] = what .. ' of ' .. #raw .. ' bytes, and no quarantine for it: '
      .. (type(err) == 'table' and err.err or tostring(err))
  end
end

local now = micros()
local first = math.max(number(redis.call('GET', U .. 'fence')) + 1, now)
if #raws > 0 then
  local deadline = seconds(now + lease * 1000000)
  local bodies, leases, queues, order = {}, {}, {}, {}
  local lists = {}
  for _, group in ipairs(groups) do
    for _, list in ipairs(group) do lists[#lists + 1] = list end
  end
  for i, raw in ipairs(raws) do
    local lid = worker .. ':' .. string.format('%.0f', first + i - 1)
    local list = lists[from[i]]
    bodies[2 * i - 1], bodies[2 * i] = lid, record(list, raw)
    leases[2 * i - 1], leases[2 * i] = deadline, lid
    if not queues[list] then order[#order + 1] = list end
    queues[list] = (queues[list] or 0) + 1
  end
  redis.call('HSET', U .. 'unacked', unpack(bodies))
  redis.call('ZADD', U .. 'lease', unpack(leases))
  redis.call('HINCRBY', U .. 'held', 'w:' .. worker, #raws)
  redis.call('SET', U .. 'fence', string.format('%.0f', first + #raws - 1))
  for _, list in ipairs(order) do redis.call('HINCRBY', U .. 'held', 'q:' .. queue_of(list), queues[list]) end
  for _, list in ipairs(order) do redis.call('RPOP', list, queues[list]) end
end
for list in pairs(oversized) do redis.call('RPOP', list) end
for _, rate in pairs(rates) do
  redis.call('HSET', rate.key, 'tat', string.format('%.0f', rate.tat))
  redis.call('PEXPIRE', rate.key, math.ceil((rate.tat - rate.now) / 1000) + 60000)
end
local term = ARGV[7] ~= '' and redis.call('GET', U .. 'term:' .. ARGV[7]) or '0'
return { 'ok', term or '0', string.format('%.0f', first), redis.call('HLEN', U .. 'att'), from, raws, faults, seconds(now),
  blocked and string.format('%.6f', blocked) or '' }
