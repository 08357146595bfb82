-- discard: removes what was laid aside, for good.
-- ARGV: prefix, 'dead' | 'quarantine', queue, stream ids.
-- Returns: how many were there.
local kind, queue, gone = ARGV[2], ARGV[3], 0
local key = U .. kind .. ':' .. queue
for at = 4, #ARGV do
  local entry = redis.call('XRANGE', key, ARGV[at], ARGV[at])[1]
  if entry then
    took_out(kind, queue, size_of(entry[2]))
    redis.call('XDEL', key, entry[1])
    gone = gone + 1
  end
end
return gone
