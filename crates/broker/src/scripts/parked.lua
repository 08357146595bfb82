-- parked: when delayed messages are due that name a task id. Reads about a MiB at most, so that nobody waits.
-- ARGV: prefix, queue, rank to begin at, task id as it stands in a message.
-- Returns: rank to go on from or '' at the end, then due times (s).
local key, at, read, out = U .. 'delayed:' .. ARGV[2], tonumber(ARGV[3]), 0, { '' }
local chunk, stop = 1, at + 4096
while true do
  local members = redis.call('ZRANGE', key, at, at + chunk - 1, 'WITHSCORES')
  for i = 1, #members, 2 do
    read = read + #members[i]
    if string.find(members[i], ARGV[4], 1, true) then out[#out + 1] = members[i + 1] end
  end
  at = at + #members / 2
  if #members < 2 * chunk then return out end
  chunk = read > 262144 and 1 or math.min(2 * chunk, 128)
  if read > 1048576 or at >= stop then
    out[1] = tostring(at)
    return out
  end
end
