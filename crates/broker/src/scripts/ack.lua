-- ack: successful ends, many at once, all of one worker: an acknowledgement, with the result where one is stored.
-- ARGV: prefix, worker, TTL of results (s, 0 = for ever), '1' where deliveries are counted somewhere, then for each group:
--       queue, number of leases, '1' if the group has results, lease ids, if counted as many task ids whose count is
--       cleared, if it has results as many (result key, document).
-- Returns: how many leases were lost; for those nothing was changed.
local lost, done, ttl, counted, at = 0, 0, ARGV[3], ARGV[4] == '1', 5
local leases, bodies = U .. 'lease', U .. 'unacked'
while at <= #ARGV do
  local queue, n, has_results = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2] == '1'
  local first, last = at + 3, at + 2 + n
  at = last + (counted and n or 0)
  local held, ended
  if not counted and not has_results then
    -- Nothing hangs on which of them are held: whatever is, goes.
    held = redis.call('ZREM', leases, unpack(ARGV, first, last))
    redis.call('HDEL', bodies, unpack(ARGV, first, last))
  else
    local lids, ids = {}, {}
    ended = lids
    local scores = redis.call('ZMSCORE', leases, unpack(ARGV, first, last))
    held = 0
    for i = 1, n do
      if scores[i] then
        held = held + 1
        lids[held] = ARGV[first + i - 1]
        if counted then ids[held] = ARGV[last + i] end
        if has_results then
          local key, doc = ARGV[at + 2 * i - 1], ARGV[at + 2 * i]
          if ttl ~= '0' then redis.call('SETEX', key, ttl, doc) else redis.call('SET', key, doc) end
          publish(key, doc)
        end
      end
    end
    if held > 0 then
      if counted then redis.call('HDEL', U .. 'att', unpack(ids)) end
      redis.call('ZREM', leases, unpack(lids))
      redis.call('HDEL', bodies, unpack(lids))
    end
    at = at + (has_results and 2 * n or 0)
  end
  at = at + 1
  if held > 0 then
    let_go(queue, redis.call('HINCRBY', U .. 'held', 'q:' .. queue, -held), ended or { unpack(ARGV, first, last) })
  end
  done, lost = done + held, lost + n - held
end
if done > 0 then redis.call('HINCRBY', U .. 'held', 'w:' .. ARGV[2], -done) end
return lost
