-- revoke_result: REVOKED for tasks whose result is still what it was when it was looked at, so that no end of a run is
-- overwritten that came in between.
-- ARGV: prefix, then for each: key, the document looked at or '', TTL (s), document.
-- Returns: how many were stored.
local stored = 0
for at = 2, #ARGV, 4 do
  if (redis.call('GET', ARGV[at]) or '') == ARGV[at + 1] then
    store_result(ARGV[at], ARGV[at + 2], ARGV[at + 3], false)
    stored = stored + 1
  end
end
return stored
