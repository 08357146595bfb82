-- step: asked before each DELETE or lowering. For 90 s nobody of the pool admits itself.
-- ARGV: prefix, install, term, n, pool uid, workers.
-- Returns: 'stale', stored term | 'ok', then state ('' if unknown) and leases held of each worker.
local term, n = tonumber(ARGV[3]), tonumber(ARGV[4])
local stored = term_of(ARGV[2])
if stored ~= term then return { 'stale', stored } end
local key = U .. 'step:' .. ARGV[5]
local t, m = string.match(redis.call('GET', key) or '', '^(%d+)|(%d+)$')
if t and (term < tonumber(t) or (term == tonumber(t) and n <= tonumber(m))) then return { 'stale', stored } end
redis.call('SET', key, string.format('%.0f|%.0f', term, n), 'EX', 90)
local out = { 'ok' }
for i = 6, #ARGV do
  local g = gate(ARGV[i])
  out[#out + 1] = g and g.state or ''
  out[#out + 1] = number(redis.call('HGET', U .. 'held', 'w:' .. ARGV[i]))
end
return out
