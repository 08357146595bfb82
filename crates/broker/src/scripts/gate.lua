-- gate: the controller closes (drain) or opens a worker's gate. Closing answers how many leases are held: the
-- linearisation point of scale-down.
-- ARGV: prefix, install, term, n, 'closed' | 'open', worker.
-- Returns: 'done', leases held | 'stale', stored term | 'unknown'.
local term, n, worker = tonumber(ARGV[3]), tonumber(ARGV[4]), ARGV[6]
local stored = term_of(ARGV[2])
if stored ~= term then return { 'stale', stored } end
local g = gate(worker)
if not g then return { 'unknown' } end
if term < g.term or (term == g.term and n <= g.n) then return { 'stale', stored } end
g.term, g.n = term, n
g.state = ARGV[5] == 'open' and 'open' or ('closed@' .. string.format('%.3f', micros() / 1000000))
set_gate(worker, g)
return { 'done', number(redis.call('HGET', U .. 'held', 'w:' .. worker)) }
