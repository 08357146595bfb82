-- held: which of these leases are on messages of a queue. Reads about a MiB at most, so that nobody waits.
-- ARGV: prefix, queue, lease ids.
-- Returns: how many were looked at, then for each of the queue: lease id, deadline (s), list, message.
local queue, read, out = ARGV[2], 0, { 0 }
for at = 3, #ARGV do
  if read > 1048576 then break end
  out[1] = out[1] + 1
  local list, raw = leased(ARGV[at])
  if list then
    read = read + #raw
    if queue_of(list) == queue then
      for _, value in ipairs({ ARGV[at], redis.call('ZSCORE', U .. 'lease', ARGV[at]), list, raw }) do
        out[#out + 1] = value
      end
    end
  end
end
return out
