-- lead: the leader's heartbeat; a predecessor's is refused.
-- ARGV: prefix, install, term, body.
-- Returns: 'ok' | 'stale', stored term.
local stored = term_of(ARGV[2])
if stored ~= tonumber(ARGV[3]) then return { 'stale', stored } end
redis.call('SET', U .. 'hb:operator:' .. ARGV[2], string.format('%.3f', micros() / 1000000) .. '|' .. ARGV[4], 'EX', 60)
return { 'ok', stored }
