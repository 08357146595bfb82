-- close_self: a worker that stops closes its own gate for good.
-- ARGV: prefix, worker.
-- Returns: leases held, or -1 when it is unknown.
local g = gate(ARGV[2])
if not g then return -1 end
g.state = 'closed@' .. string.format('%.3f', micros() / 1000000)
set_gate(ARGV[2], g)
return number(redis.call('HGET', U .. 'held', 'w:' .. ARGV[2]))
