-- early: acknowledges deliveries before they run (at most once). The message goes, its lease stays until the run has
-- ended: it counts for drain and demand, and tells when its worker dies.
-- ARGV: prefix, then for each: lease id, a message that names it without its arguments.
-- Returns: the lease ids that were lost.
local lost = {}
for at = 2, #ARGV, 2 do
  local lid = ARGV[at]
  local list = leased(lid)
  if list then
    redis.call('HSET', U .. 'unacked', lid, stored(lid, list, '\0' .. ARGV[at + 1]))
  else
    lost[#lost + 1] = lid
  end
end
return lost
