-- ack: the plain acknowledgement, many at once, all of one worker.
-- ARGV: prefix, worker, number of counted ids, the ids to clear from umbel:att,
--       then for each queue: queue, number of leases, lease ids.
-- Returns: the lease ids that were lost; for those nothing was changed.
local lost, at = {}, 4 + tonumber(ARGV[3])
local done = 0
if at > 4 then redis.call('HDEL', U .. 'att', unpack(ARGV, 4, at - 1)) end
while at <= #ARGV do
  local queue, n = ARGV[at], tonumber(ARGV[at + 1])
  local held = {}
  local scores = redis.call('ZMSCORE', U .. 'lease', unpack(ARGV, at + 2, at + 1 + n))
  for i = 1, n do
    local lid = ARGV[at + 1 + i]
    if scores[i] then held[#held + 1] = lid else lost[#lost + 1] = lid end
  end
  if #held > 0 then
    redis.call('ZREM', U .. 'lease', unpack(held))
    redis.call('HDEL', U .. 'unacked', unpack(held))
    redis.call('HINCRBY', U .. 'held', 'q:' .. queue, -#held)
    done = done + #held
  end
  at = at + 2 + n
end
if done > 0 then redis.call('HINCRBY', U .. 'held', 'w:' .. ARGV[2], -done) end
return lost
