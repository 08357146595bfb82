-- release_unique: a task lets go of its unique key, if it has it still.
-- ARGV: prefix, unique key, task id.
-- Returns: 1 if it had it.
local key = U .. 'unique:' .. ARGV[2]
if redis.call('GET', key) ~= ARGV[3] then return 0 end
return redis.call('DEL', key)
