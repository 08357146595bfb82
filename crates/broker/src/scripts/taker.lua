-- taker: at most one busy worker a queue stops reserving, to take the queue's next suspect when its last task ends.
-- ARGV: prefix, worker, queue, seconds.
-- Returns: 1 if this worker is it.
local key = U .. 'taker:' .. ARGV[3]
if redis.call('LLEN', U .. 'suspect:' .. ARGV[3]) == 0 then return 0 end
local holder = redis.call('GET', key)
if holder and holder ~= ARGV[2] then return 0 end
redis.call('SET', key, ARGV[2], 'EX', ARGV[4])
return 1
