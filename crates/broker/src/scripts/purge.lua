-- purge: removes messages that wait, the oldest first, settles them for their runs and frees their unique keys. Stores no
-- result, as Celery.
-- ARGV: prefix, 'list' | 'delayed' | 'suspect', key, most messages.
-- Returns: messages removed, ids settled for a run. Reads about 256 KiB at most, so that nobody waits.
local kind, key, most = ARGV[2], ARGV[3], tonumber(ARGV[4])
local BYTES, CHUNK, LARGE = 262144, 64, 16384
local removed, settled, read, chunk = 0, 0, 0, 1

local function settle_purged(raw)
  -- Only ours have these, and nothing but a key of an object reads like this: quotes inside of texts are escaped.
  if not (string.find(raw, '"umbel_run"', 1, true) or string.find(raw, '"umbel_unique"', 1, true)) then return end
  local ok, message = pcall(cjson.decode, raw)
  local headers = ok and type(message) == 'table' and message.headers
  if type(headers) ~= 'table' or type(headers.id) ~= 'string' then return end
  if type(headers.umbel_run) == 'string' then
    settle_run(headers.umbel_run, headers.id, 'revoked')
    settled = settled + 1
  end
  local unique = headers.umbel_unique
  if type(unique) == 'table' and type(unique.key) == 'string' then
    local taken = U .. 'unique:' .. unique.key
    if redis.pcall('GET', taken) == headers.id then redis.call('DEL', taken) end
  end
end

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
    settle_purged(raw)
  end
  if kind == 'delayed' then
    redis.call('ZREM', key, unpack(items))
  else
    redis.call('RPOP', key, #items)
  end
  removed = removed + #items
end
return { removed, settled }
