-- ack: successful ends, many at once, all of one worker: an acknowledgement, with the result where one is stored.
-- ARGV: prefix, worker, TTL of results (s, 0 = for ever), '1' where deliveries are counted somewhere, then for each group:
--       queue, number of leases, '1' if the group has results, lease ids, if counted as many task ids whose count is
--       cleared, if it has results as many (result key, document).
-- Returns: the lease ids that were lost; for those nothing was changed.
local lost, done, ttl, counted, at = {}, 0, tonumber(ARGV[3]), ARGV[4] == '1', 5
while at <= #ARGV do
  local queue, n, has_results = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  local first = at + 3
  local results = first + (counted and 2 * n or n)
  local held, ids = {}, {}
  local scores = redis.call('ZMSCORE', U .. 'lease', unpack(ARGV, first, first + n - 1))
  for i = 1, n do
    local lid = ARGV[first + i - 1]
    if scores[i] then
      held[#held + 1] = lid
      if counted then ids[#ids + 1] = ARGV[first + n + i - 1] end
      if has_results then
        local key, doc = ARGV[results + 2 * i - 2], ARGV[results + 2 * i - 1]
        if ttl > 0 then redis.call('SET', key, doc, 'EX', ttl) else redis.call('SET', key, doc) end
        publish(key, doc)
      end
    else
      lost[#lost + 1] = lid
    end
  end
  if #held > 0 then
    if counted then redis.call('HDEL', U .. 'att', unpack(ids)) end
    redis.call('ZREM', U .. 'lease', unpack(held))
    redis.call('HDEL', U .. 'unacked', unpack(held))
    let_go(queue, redis.call('HINCRBY', U .. 'held', 'q:' .. queue, -#held), held)
    done = done + #held
  end
  at = results + (has_results and 2 * n or 0)
end
if done > 0 then redis.call('HINCRBY', U .. 'held', 'w:' .. ARGV[2], -done) end
return lost
