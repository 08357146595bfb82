-- depth: the state of many queues, and of all workers where that is asked, in one round trip.
-- ARGV: prefix, seconds that count as due soon, '1' for the workers, then for each queue: queue, number of its lists, the lists.
-- Returns: Redis time (s), id of the data set or '', kombu's unacked, last token; worker, entry, leases held, heartbeat or '' of
--   each worker; pool, runs handed back of each pool; then for each queue either
--   'fault', key, error or 'ok', in flight, delayed, due soon, suspects, dead, quarantined, tail hash, tail sent at, lengths,
--   '1' where it is paused, what its object has said of it or '', when its last dead letter came (s) or ''
local now = micros() / 1000000
local function size(command, key, bad)
  local n = redis.pcall(command, key)
  if type(n) == 'number' then return n end
  bad.key, bad.err = bad.key or key, bad.err or n.err
  return 0
end
local workers, hand_backs = {}, {}
if ARGV[3] == '1' then
  local entries = redis.call('HGETALL', U .. 'workers')
  for i = 1, #entries, 2 do
    local beat = redis.pcall('GET', U .. 'hb:worker:' .. entries[i])
    workers[2 * i - 1], workers[2 * i] = entries[i], entries[i + 1]
    workers[2 * i + 1] = string.format('%.0f', number(redis.call('HGET', U .. 'held', 'w:' .. entries[i])))
    workers[2 * i + 2] = type(beat) == 'string' and beat or ''
  end
  hand_backs = redis.call('HGETALL', U .. 'handed-back')
end
local out = { string.format('%.6f', now), redis.call('GET', U .. 'gen') or '', size('HLEN', P .. 'unacked', {}),
  string.format('%.0f', number(redis.call('GET', U .. 'fence'))), workers, hand_backs }
local at = 4
while at <= #ARGV do
  local queue, n = ARGV[at], tonumber(ARGV[at + 1])
  local bad, lengths, tail = {}, {}, nil
  for i = 1, n do
    local list = ARGV[at + 1 + i]
    lengths[i] = size('LLEN', list, bad)
    if lengths[i] > 0 and not tail then tail = redis.call('LINDEX', list, -1) end
  end
  local soon = redis.pcall('ZCOUNT', U .. 'delayed:' .. queue, '-inf', string.format('%.6f', now + tonumber(ARGV[2])))
  local said = redis.call('HMGET', U .. 'queue:' .. queue, 'paused', 'said')
  local row = { 'ok', number(redis.call('HGET', U .. 'held', 'q:' .. queue)),
    size('ZCARD', U .. 'delayed:' .. queue, bad), type(soon) == 'number' and soon or 0,
    size('LLEN', U .. 'suspect:' .. queue, bad), size('XLEN', U .. 'dead:' .. queue, bad),
    size('XLEN', U .. 'quarantine:' .. queue, bad), '', '', lengths,
    said[1] or '', said[2] or '', redis.call('HGET', U .. 'died', queue) or '' }
  if tail then
    row[8] = redis.sha1hex(tail)
    -- One that had to wait for its time says nothing of how long it has waited since.
    local is_late = string.find(tail, '"eta": ?"')
    row[9] = not is_late and string.match(tail, '"umbel_sent_at": ?([%d%.]+)') or ''
  end
  if bad.err then row = { 'fault', bad.key, bad.err } end
  out[#out + 1] = row
  at = at + 2 + n
end
return out
