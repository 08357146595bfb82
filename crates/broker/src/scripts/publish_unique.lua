-- publish_unique: enqueues a message unless one with its unique key is queued, waits or runs.
-- ARGV: prefix, unique key, task id, seconds that the key is kept at most, list, message.
-- Returns: the id of the task that has the key: this one's if it was enqueued; the most that may wait in the queue where
--          it takes no more.
local key, sent = U .. 'unique:' .. ARGV[2], U .. 'sent:' .. ARGV[3]
-- Sent again by a sender that heard no answer: by now the task may have ended and let go of its key.
if redis.call('EXISTS', sent) == 1 then return ARGV[3] end
local by = redis.call('GET', key)
if by then return by end
local free, most = room(queue_of(ARGV[5]))
if free == 0 then return most end
-- First what the server may refuse: a key without its message would keep others out for nothing.
redis.call('LPUSH', ARGV[5], ARGV[6])
redis.call('SET', sent, '1', 'EX', 600)
redis.call('SET', key, ARGV[3], 'EX', ARGV[4])
return ARGV[3]
