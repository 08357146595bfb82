-- renew: a new deadline for the leases that still exist.
-- ARGV: prefix, lease (s), lease ids.
-- Returns: the ids that are lost.
local lids, lost, renewed = {}, {}, {}
for i = 3, #ARGV do lids[#lids + 1] = ARGV[i] end
if #lids == 0 then return lost end
local deadline = seconds(micros() + tonumber(ARGV[2]) * 1000000)
local scores = redis.call('ZMSCORE', U .. 'lease', unpack(lids))
for i, lid in ipairs(lids) do
  if scores[i] then
    renewed[#renewed + 1] = deadline
    renewed[#renewed + 1] = lid
  else
    lost[#lost + 1] = lid
  end
end
if #renewed > 0 then redis.call('ZADD', U .. 'lease', 'XX', unpack(renewed)) end
return lost
