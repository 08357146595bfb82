-- purge: removes messages that wait, the oldest first, settles them for their runs, frees their unique keys and passes on
-- their turns at concurrency keys. Stores no result, as Celery.
-- ARGV: prefix, 'list' | 'delayed' | 'suspect', key, most messages.
-- Returns: messages removed, ids settled for a run. Reads about 256 KiB at most, so that nobody waits.
local kind, key, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local BYTES, CHUNK, LARGE = 262144, 64, 16384
local removed, settled, read, chunk, called = 0, 0, 0, 1, {}
-- While concurrency keys are in use, each message may be one that was called by its key.
local has_keys = redis.call('EXISTS', U .. 'key:most') == 1

while removed < most and read < BYTES do
  local want = math.min(chunk, most - removed)
  local items
  if kind == 'delayed' then
    items = redis.call('ZRANGE', key, 0, want - 1)
  else
    items = redis.call('LRANGE', key, -want, -1)
  end
  if #items == 0 then break end
  chunk = math.min(2 * chunk, CHUNK)
  for _, item in ipairs(items) do
    read = read + #item
    if #item > LARGE then chunk = 1 end
    local raw = item
    if kind ~= 'list' then _, raw = unrecord(item) end
    if kind == 'delayed' then _, raw = unrecord(raw) end
    local id, _, is_member = taken_out(raw, 'revoked', has_keys)
    if is_member then settled = settled + 1 end
    called[#called + 1] = id
  end
  if kind == 'delayed' then
    redis.call('ZREM', key, unpack(items))
  else
    redis.call('RPOP', key, #items)
  end
  removed = removed + #items
end
-- Last: the next one goes to the head of a list, perhaps of this one.
if has_keys then
  for _, id in ipairs(called) do give_turn(id) end
end
return { removed, settled }
