-- ack: the plain acknowledgement, many at once, all of one worker.
-- ARGV: prefix, worker, '1' where deliveries are counted somewhere, then for each queue: queue, number of leases, lease
--       ids and, if counted, as many task ids whose count is cleared.
-- Returns: the lease ids that were lost; for those nothing was changed.
local lost, done, counted, at = {}, 0, ARGV[3] == '1', 4
while at <= #ARGV do
  local queue, n = ARGV[at], tonumber(ARGV[at + 1])
  local held, ids = {}, {}
  local scores = redis.call('ZMSCORE', U .. 'lease', unpack(ARGV, at + 2, at + 1 + n))
  for i = 1, n do
    local lid = ARGV[at + 1 + i]
    if scores[i] then
      held[#held + 1] = lid
      if counted then ids[#ids + 1] = ARGV[at + 1 + n + i] end
    else
      lost[#lost + 1] = lid
    end
  end
  if #held > 0 then
    if counted then redis.call('HDEL', U .. 'att', unpack(ids)) end
    redis.call('ZREM', U .. 'lease', unpack(held))
    redis.call('HDEL', U .. 'unacked', unpack(held))
    redis.call('HINCRBY', U .. 'held', 'q:' .. queue, -#held)
    done = done + #held
  end
  at = at + 2 + (counted and 2 * n or n)
end
if done > 0 then redis.call('HINCRBY', U .. 'held', 'w:' .. ARGV[2], -done) end
return lost
