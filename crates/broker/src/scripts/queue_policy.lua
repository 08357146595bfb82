-- queue_policy: what a queue allows all its workers together, and the wake-up of those that waited for a change of it.
-- ARGV: prefix, queue, then (field, value) each; an empty value removes the field. Without fields it only answers.
-- Returns: the fields and values of the queue's hash.
local queue = ARGV[2]
local key = U .. 'queue:' .. queue
if #ARGV > 2 then
  for at = 3, #ARGV, 2 do
    if ARGV[at + 1] == '' then
      redis.call('HDEL', key, ARGV[at])
    else
      redis.call('HSET', key, ARGV[at], ARGV[at + 1])
    end
  end
  -- Who reserves reads the hashes only while this set is there.
  redis.call(redis.call('EXISTS', key) == 1 and 'SADD' or 'SREM', U .. 'limited', queue)
  redis.call('SET', U .. 'freed:' .. queue, '1', 'EX', 60)
end
return redis.call('HGETALL', key)
