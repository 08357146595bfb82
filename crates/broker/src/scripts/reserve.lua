-- reserve: takes up to n messages and remembers them under fresh leases, in one step. Pops last: an error anywhere
-- earlier leaves every message queued.
-- ARGV: prefix, worker, epoch, n, lease (s), largest message (bytes), install, dead letters kept,
--       then for each queue: messages that are its own share (0 = an equal one), number of its lists, the lists in
--       priority order.
-- Returns: 'ok', term, first token, size of umbel:att, messages, runs of them as list index and count each, faults,
--          Redis time in seconds, what the limits of a queue kept from being taken: '' nothing, seconds until they may
--          allow more, or '0' until somebody says so in umbel:freed:<queue>; or 'epoch' | 'gate', state | 'unknown'.
-- The token of the i-th message is first + i - 1, its lease id '<worker>|<list>:<token>'.
local worker, epoch, n, lease, largest = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
-- The entry of a gate, and not its parts: this is the most frequent call of all.
local entry, open = redis.call('HGET', U .. 'workers', worker), 'open|' .. epoch .. '|'
if not entry or string.sub(entry, 1, #open) ~= open then
  local g = gate(worker)
  if not g then return { 'unknown' } end
  if g.epoch ~= tonumber(epoch) then return { 'epoch' } end
  if g.state ~= 'open' then return { 'gate', g.state } end
end

-- At most a chunk is read at a time, one message at first and after a large one: nobody knows the size of what he has
-- not read, and a copy of 32 oversized ones would be gigabytes. A reply holds about so many bytes.
local CHUNK, LARGE, BYTES = 32, 64 * 1024, 8 * 1024 * 1024
local groups, lists, at = {}, {}, 9
while at <= #ARGV do
  local count = tonumber(ARGV[at + 1])
  groups[#groups + 1] = { share = tonumber(ARGV[at]), first = #lists + 1, last = #lists + count, got = 0 }
  for i = 1, count do lists[#lists + 1] = ARGV[at + 1 + i] end
  at = at + count + 2
end

-- What queues allow all their workers together, where any has limits: messages that may be taken now, nil = all.
local rates, blocked = {}, nil
if redis.call('EXISTS', U .. 'limited') == 1 then
  local at_once = micros()
  for i, group in ipairs(groups) do
    local queue = queue_of(lists[group.first])
    local policy = redis.call('HMGET', U .. 'queue:' .. queue, 'paused', 'max_in_flight', 'rate')
    local most = tonumber(policy[2] or '')
    if policy[1] == '1' then
      group.allowed = 0
    elseif most then
      group.allowed = math.max(most - number(redis.call('HGET', U .. 'held', 'q:' .. queue)), 0)
    end
    local count, period, burst = string.match(policy[3] or '', '^(%d+)/(%d+)/(%d+)$')
    count, period, burst = tonumber(count), tonumber(period), tonumber(burst)
    if count and count > 0 and period > 0 and burst > 0 and group.allowed ~= 0 then
      local key, every = U .. 'rate:q:' .. queue, period * 1000 / count
      local tau = every * (burst - 1)
      -- No state of ours lies further ahead: the clock of the server went back, or the rate was another one.
      local tat = math.min(number(redis.call('HGET', key, 'tat')), at_once + tau + every)
      local tokens = tat - tau <= at_once and math.floor((at_once + tau - math.max(tat, at_once)) / every) + 1 or 0
      group.allowed = math.min(group.allowed or tokens, tokens)
      -- Worth asking again when half a burst is there.
      rates[i] = { key = key, every = every, tat = math.max(tat, at_once), now = at_once,
        some = math.max(math.floor(burst / 2), 1) - burst }
    end
  end
end

local raws, count, total = {}, 0, 0
local runs, faults, oversized, taken = {}, {}, {}, {}
local function take(index, quota)
  local list, got, chunk = lists[index], 0, 1
  local before = taken[index] or 0
  while got < quota and total < BYTES and not oversized[index] do
    local want = math.min(quota - got, chunk)
    local items = redis.pcall('LRANGE', list, -(before + got + want), -(before + got + 1))
    if items.err then
      -- Of a list of another type nothing was taken before, either.
      faults[#faults + 1] = list
      faults[#faults + 1] = items.err
      break
    end
    local read = #items
    chunk = math.min(2 * chunk, CHUNK)
    for k = read, 1, -1 do
      local raw = items[k]
      local size = #raw
      if size > largest or is_early(raw) then
        -- A zero byte begins what stands for a message that was acknowledged early, and no message.
        oversized[index] = raw
        break
      end
      if size > LARGE then chunk = 1 end
      count, got, total = count + 1, got + 1, total + size
      raws[count] = raw
    end
    if read < want then break end
  end
  if got > 0 then
    taken[index] = before + got
    runs[#runs + 1] = index
    runs[#runs + 1] = got
  end
  return got
end
-- Each queue gets its share first, what is left goes to whoever has more: nobody starves behind a flooded queue.
local equal = math.ceil(n / math.max(#groups, 1))
for round = 1, 2 do
  for _, group in ipairs(groups) do
    local quota = math.min(round == 2 and n or group.share > 0 and group.share or equal, n - count)
    local room = group.allowed and group.allowed - group.got
    if room and room < quota then
      quota = room
      blocked = blocked or 0
    end
    for index = group.first, group.last do
      if quota <= 0 then break end
      local got = take(index, quota)
      quota = quota - got
      group.got = group.got + got
    end
  end
  if #groups == 1 then break end
end
for i, rate in pairs(rates) do
  rate.tat = rate.tat + groups[i].got * rate.every
  if blocked then
    local wait = math.max((rate.tat + rate.some * rate.every - rate.now) / 1000000, 0.001)
    if blocked == 0 or wait < blocked then blocked = wait end
  end
end

-- All that can be refused comes before anything is written: what is taken without its worker hearing of it costs the
-- message a delivery, and what cannot be popped would be taken again and again.
local term = ARGV[7] ~= '' and redis.call('GET', U .. 'term:' .. ARGV[7]) or '0'
local deaths = redis.call('HLEN', U .. 'att')
for index, list in ipairs(lists) do
  if taken[index] or oversized[index] then redis.call('LTRIM', list, 0, -1) end
end
for _, rate in pairs(rates) do
  redis.call('HSET', rate.key, 'tat', string.format('%.0f', rate.tat))
  redis.call('PEXPIRE', rate.key, math.ceil((rate.tat - rate.now) / 1000) + 60000)
end

-- Into the quarantine before anything is taken: one that is of another type leaves the message where it is.
for index, raw in pairs(oversized) do
  local list = lists[index]
  faults[#faults + 1] = list
  local what, reason = 'oversized message', 'oversized: ' .. #raw .. ' bytes, largest allowed ' .. largest
  if #raw <= largest then what, reason = 'message', 'begins with a zero byte, as no message does' end
  local laid, err = pcall(lay_aside, 'quarantine', list, raw, reason, '', '', 0, ARGV[8])
  if laid then
    faults[#faults + 1] = what .. ' of ' .. #raw .. ' bytes moved to the quarantine'
    taken[index] = (taken[index] or 0) + 1
  else
    oversized[index] = nil
    faults[#faults + 1] = what .. ' of ' .. #raw .. ' bytes, and no quarantine for it: '
      .. (type(err) == 'table' and err.err or tostring(err))
  end
end

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local first = math.max(number(redis.call('GET', U .. 'fence')) + 1, now)
if count > 0 then
  -- In whole seconds, rounded up, where these count for little: a number with a fraction takes the server longer to
  -- read and to write than all else about a lease.
  local deadline = now / 1000000 + lease
  deadline = string.format(lease < 10 and '%.6f' or '%.0f', lease < 10 and deadline or math.ceil(deadline))
  local bodies, leases, held, token, at = {}, {}, {}, first, 0
  for run = 1, #runs, 2 do
    local list, tens = lists[runs[run]], nil
    local queue = queue_of(list)
    held[queue] = (held[queue] or 0) + runs[run + 1]
    for _ = 1, runs[run + 1] do
      local digit = token % 10
      if digit == 0 or not tens then
        -- Once for ten of them: formatting a number is slow.
        tens = worker .. '|' .. list .. ':' .. string.format('%.0f', (token - digit) / 10)
      end
      local lid = tens .. digit
      token, at = token + 1, at + 1
      bodies[2 * at - 1], bodies[2 * at] = lid, raws[at]
      leases[2 * at - 1], leases[2 * at] = deadline, lid
    end
  end
  -- The bodies last: a key of another type ends this before there is a second copy of a message, and what was written
  -- (counts, leases without a body) is the janitor's to take away.
  redis.call('HINCRBY', U .. 'held', 'w:' .. worker, count)
  for queue, by in pairs(held) do redis.call('HINCRBY', U .. 'held', 'q:' .. queue, by) end
  redis.call('SET', U .. 'fence', string.format('%.0f', token - 1))
  redis.call('ZADD', U .. 'lease', unpack(leases))
  redis.call('HSET', U .. 'unacked', unpack(bodies))
end
-- Not RPOP: that would hand the bytes over once more.
for index, gone in pairs(taken) do redis.call('LTRIM', lists[index], 0, -1 - gone) end
return { 'ok', term or '0', first, deaths, raws, runs, faults,
  time[1] .. '.' .. string.sub('000000', #time[2] + 1) .. time[2], blocked and string.format('%.6f', blocked) or '' }
