-- look: what there is to do, without taking anything. It declares no keys: on a connection with CLIENT TRACKING, Redis 7.0
-- would remember all of them again with each read.
-- ARGV: prefix, worker, number of queues, queues, then their lists.
-- Returns: waiting, suspects, next due time in seconds or '', Redis time in seconds, state of the gate or '', workers.
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
local g = gate(ARGV[2])
return { waiting, suspects, due and string.format('%.6f', due) or '', seconds(micros()), g and g.state or '',
  redis.call('HLEN', U .. 'workers') }
