-- look: what there is to do, without taking anything. Run on a connection with CLIENT TRACKING it also arms the
-- wake-up: every declared key, also a missing one, is reported once when it changes.
-- KEYS: the lists, suspects and delayed sets of the queues; umbel:workers while the gate is not open; umbel:freed of
--       each queue while a limit keeps messages from being taken.
-- ARGV: prefix, worker, number of queues, queues, then their lists.
-- Returns: waiting, suspects, next due time in seconds or '', Redis time in seconds, state of the gate or ''.
local queues = tonumber(ARGV[3])
local waiting, suspects, due = 0, 0, nil
for i = 4, 3 + queues do
  local n = redis.pcall('LLEN', U .. 'suspect:' .. ARGV[i])
  if type(n) == 'number' then suspects = suspects + n end
  local head = redis.pcall('ZRANGE', U .. 'delayed:' .. ARGV[i], 0, 0, 'WITHSCORES')
  if not head.err and head[2] then
    local at = tonumber(head[2])
    if not due or at < due then due = at end
  end
end
for i = 4 + queues, #ARGV do
  local n = redis.pcall('LLEN', ARGV[i])
  if type(n) == 'number' then waiting = waiting + n end
end
-- Newer servers track what is read.
for _, key in ipairs(KEYS) do
  if string.sub(key, 1, #U + 6) == U .. 'freed:' then redis.call('EXISTS', key) end
end
local g = gate(ARGV[2])
return { waiting, suspects, due and string.format('%.6f', due) or '', seconds(micros()), g and g.state or '' }
