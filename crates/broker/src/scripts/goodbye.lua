-- goodbye: a worker that holds nothing leaves no trace.
-- ARGV: prefix, worker.
-- Returns: 1 if it is gone, 0 if it still holds leases.
if number(redis.call('HGET', U .. 'held', 'w:' .. ARGV[2])) > 0 then return 0 end
redis.call('HDEL', U .. 'held', 'w:' .. ARGV[2])
redis.call('HDEL', U .. 'workers', ARGV[2])
redis.call('HDEL', U .. 'gone', ARGV[2])
redis.call('DEL', U .. 'hb:worker:' .. ARGV[2])
return 1
