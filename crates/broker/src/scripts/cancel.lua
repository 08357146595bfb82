-- cancel: a run is ended before its time. What was not sent never will be, and why is written down with it: a leader that comes
-- between this and the revocation of the rest knows how the run ended. One that is over stays as it is.
-- ARGV: prefix, install, term, run id, why.
-- Returns: 'ok', ids that were sent and have not ended, how many were dropped | 'stale', stored term
local stored = term_of(ARGV[2])
if stored ~= tonumber(ARGV[3]) then return { 'stale', stored } end
local run, open, later = U .. 'run:' .. ARGV[4], {}, {}
for _, field in ipairs(redis.call('HKEYS', run)) do
  local kind, id = string.sub(field, 1, 2), string.sub(field, 3)
  if kind == 'i:' then open[#open + 1] = id elseif kind == 'p:' then later[#later + 1] = id end
end
if #open + #later > 0 then redis.call('HSET', run, 'cancelled', ARGV[5]) end
for _, id in ipairs(later) do drop_of_run(run, id, 'skipped') end
return { 'ok', open, #later }
