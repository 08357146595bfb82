-- publish_unique: enqueues a message unless one with its unique key is queued, waits or runs.
-- ARGV: prefix, unique key, task id, seconds that the key is kept at most, list, message.
-- Returns: the id of the task that has the key: this one's if it was enqueued.
local key = U .. 'unique:' .. ARGV[2]
local by = redis.call('GET', key)
-- Sent again by a sender that heard no answer it has its own key.
if by then return by end
redis.call('LPUSH', ARGV[5], ARGV[6])
redis.call('SET', key, ARGV[3], 'EX', ARGV[4])
return ARGV[3]
