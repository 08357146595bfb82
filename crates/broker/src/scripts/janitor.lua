-- janitor: repairs what no script of ours leaves behind: a body without lease gets an expired one, a lease without
-- body goes, counts are recomputed, entries of long gone workers are removed. Touches umbel: keys only.
-- ARGV: prefix, '1' to look at every lease even where the totals agree, seconds after which a gone worker is forgotten,
--       seconds for which one call is enough, whoever made it.
-- Returns: leases given, leases removed, counts corrected, workers forgotten.
local given, removed, corrected, forgotten = 0, 0, 0, 0
local now = micros() / 1000000
local last = number(redis.call('HGET', U .. 'sweep', 'tidied'))
if last <= now and now - last < tonumber(ARGV[4]) then return { 0, 0, 0, 0 } end
redis.call('HSET', U .. 'sweep', 'tidied', string.format('%.0f', math.floor(now)))
local held = {}
local flat = redis.call('HGETALL', U .. 'held')
local total = 0
for i = 1, #flat, 2 do
  held[flat[i]] = tonumber(flat[i + 1]) or -1
  if string.sub(flat[i], 1, 2) == 'w:' then total = total + held[flat[i]] end
end
local bodies, leases = redis.call('HLEN', U .. 'unacked'), redis.call('ZCARD', U .. 'lease')
if ARGV[2] == '1' or bodies ~= leases or total ~= bodies then
  local count = {}
  for _, lid in ipairs(redis.call('ZRANGE', U .. 'lease', 0, -1)) do
    if redis.call('HEXISTS', U .. 'unacked', lid) == 0 then
      redis.call('ZREM', U .. 'lease', lid)
      removed = removed + 1
    end
  end
  local cursor = '0'
  repeat
    local page = redis.call('HSCAN', U .. 'unacked', cursor, 'COUNT', 500)
    cursor = page[1]
    for i = 1, #page[2], 2 do
      local lid, list = page[2][i], place(page[2][i], page[2][i + 1])
      if not redis.call('ZSCORE', U .. 'lease', lid) then
        redis.call('ZADD', U .. 'lease', 0, lid)
        given = given + 1
      end
      local w, q = 'w:' .. worker_of(lid), 'q:' .. queue_of(list)
      count[w] = (count[w] or 0) + 1
      count[q] = (count[q] or 0) + 1
    end
  until cursor == '0'
  for field, n in pairs(held) do
    if (count[field] or 0) ~= n then
      corrected = corrected + 1
      if count[field] then redis.call('HSET', U .. 'held', field, count[field]) else redis.call('HDEL', U .. 'held', field) end
    end
  end
  for field, n in pairs(count) do
    if not held[field] then
      corrected = corrected + 1
      redis.call('HSET', U .. 'held', field, n)
    end
  end
end
for _, worker in ipairs(redis.call('HKEYS', U .. 'workers')) do
  local w = 'w:' .. worker
  if redis.call('EXISTS', U .. 'hb:worker:' .. worker) == 1 or number(redis.call('HGET', U .. 'held', w)) ~= 0 then
    redis.call('HDEL', U .. 'gone', worker)
  else
    local since = redis.call('HGET', U .. 'gone', worker)
    if not since then
      redis.call('HSET', U .. 'gone', worker, string.format('%.0f', now))
    elseif now - number(since) > tonumber(ARGV[3]) then
      redis.call('HDEL', U .. 'gone', worker)
      redis.call('HDEL', U .. 'workers', worker)
      redis.call('HDEL', U .. 'held', w)
      forgotten = forgotten + 1
    end
  end
end
return { given, removed, corrected, forgotten }
