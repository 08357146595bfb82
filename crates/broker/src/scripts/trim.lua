-- trim: evicts what was laid aside and is beyond its bounds by now; age comes without anything new.
-- ARGV: prefix, most messages in one call, queues.
-- Returns: how many were evicted.
local limit, gone = tonumber(ARGV[2]), 0
for at = 3, #ARGV do
  local kept = string.match(redis.call('HGET', U .. 'policy', ARGV[at]) or '', '^%d+|%d+|(%d+)')
  for _, kind in ipairs({ 'dead', 'quarantine' }) do
    if gone < limit then
      local most = tonumber(kept) or 10000
      -- A queue that keeps no more dead letters keeps those that it has until they are too old.
      if most == 0 then most = math.huge end
      local done, count = pcall(trim_aside, kind, ARGV[at], most, limit - gone)
      if done then gone = gone + count end -- A key of another type is told by whoever writes to it.
    end
  end
end
return gone
