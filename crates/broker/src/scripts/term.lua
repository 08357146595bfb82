-- term: a new leader announces its term; only a higher one than ever seen here is accepted, or its own again.
-- ARGV: prefix, install, term, holder.
-- Returns: 'accepted' | 'higher', stored term.
local key, term = U .. 'term:' .. ARGV[2], tonumber(ARGV[3])
local stored = number(redis.call('GET', key))
local holder = redis.call('HGET', U .. 'leaders', ARGV[2])
if stored > term or (stored == term and holder ~= ARGV[4]) then return { 'higher', stored } end
redis.call('SET', key, string.format('%.0f', term))
redis.call('HSET', U .. 'leaders', ARGV[2], ARGV[4])
return { 'accepted', term }
