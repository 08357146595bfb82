-- overflow: moves what waits beyond the most that a queue may hold to its dead letters, from its least urgent list first:
-- the newest where the queue refuses more, the oldest where it does not. Told to runs as failed; stores no result.
-- ARGV: prefix, dead letters kept or '' (as the queue's workers say), queues.
-- Returns: for each queue how many were moved, and how many are beyond still. Reads about 256 KiB at most in all, so that
--          nobody waits.
local BYTES, CHUNK, LARGE = 262144, 64, 16384
local read, out, called = 0, {}, {}
local function relieve(queue)
  local lists, waiting, most, is_newest = bounds(queue)
  if not lists or waiting <= most then return 0, 0 end
  local kept = ARGV[2] ~= '' and ARGV[2] or string.match(redis.call('HGET', U .. 'policy', queue) or '', '^%d+|%d+|(%d+)')
  local reason = string.format('the queue was full: %.0f waited, %.0f may (the %s goes)', waiting, most,
    is_newest and 'newest' or 'oldest')
  local beyond, moved, chunk = waiting - most, 0, 1
  for at = #lists, 1, -1 do
    local list = lists[at]
    while moved < beyond and read < BYTES do
      local want = math.min(chunk, beyond - moved)
      local items = redis.pcall('LRANGE', list, is_newest and 0 or -want, is_newest and want - 1 or -1)
      if items.err or #items == 0 then break end
      chunk = math.min(2 * chunk, CHUNK)
      -- In the order in which they came, as far as one look goes.
      for k = #items, 1, -1 do
        local raw = items[k]
        read = read + #raw
        if #raw > LARGE then chunk = 1 end
        local id, task = taken_out(raw, 'failed', true)
        lay_aside('dead', list, raw, reason, id, task, 0, kept)
        called[#called + 1] = id
      end
      if is_newest then
        redis.call('LTRIM', list, #items, -1)
      else
        redis.call('LTRIM', list, 0, -1 - #items)
      end
      moved = moved + #items
    end
  end
  return moved, beyond - moved
end
for at = 3, #ARGV do
  local moved, beyond = relieve(ARGV[at])
  out[#out + 1] = moved
  out[#out + 1] = beyond
end
for _, id in ipairs(called) do give_turn(id) end
return out
