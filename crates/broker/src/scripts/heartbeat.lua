-- heartbeat: a worker lives.
-- ARGV: prefix, worker, what it says of itself, seconds until it counts as gone.
-- Returns: 'OK'.
return redis.call('SET', U .. 'hb:worker:' .. ARGV[2], ARGV[3], 'EX', ARGV[4])
