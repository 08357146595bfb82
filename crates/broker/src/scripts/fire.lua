-- fire: enqueues all messages of a slot and moves the schedule's mark, together or not at all.
-- ARGV: prefix, install, term, schedule uid, slot (ms), generation, run id or '', then (list, task id, message) each.
-- Returns: 'fired' | 'dup', ids | 'stale', stored term | 'notyet', Redis time (ms) | 'wrongtype', list
local term, uid, slot = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local stored = term_of(ARGV[2])
if stored ~= term then return { 'stale', stored } end
local now = math.floor(micros() / 1000)
if slot > now then return { 'notyet', now } end
local key = U .. 'slot:' .. ARGV[2] .. ':' .. uid
local last = redis.call('HGET', key, 'last')
if last and slot <= number(last) then return { 'dup', redis.call('HGET', key, 'ids'), last } end
for at = 8, #ARGV, 3 do
  local kind = redis.call('TYPE', ARGV[at]).ok
  if kind ~= 'list' and kind ~= 'none' then return { 'wrongtype', ARGV[at] } end
end
local ids = {}
for at = 8, #ARGV, 3 do
  redis.call('LPUSH', ARGV[at], ARGV[at + 2])
  ids[#ids + 1] = ARGV[at + 1]
end
if ARGV[7] ~= '' then
  local run = U .. 'run:' .. ARGV[7]
  redis.call('HSET', run, 'uid', uid, 'slot', ARGV[5], 'total', #ids)
  for _, id in ipairs(ids) do redis.call('HSET', run, 'i:' .. id, '') end
  redis.call('EXPIRE', run, 2592000)
end
redis.call('HSET', key, 'last', ARGV[5], 'ids', table.concat(ids, ','), 'generation', ARGV[6], 'run', ARGV[7])
return { 'fired' }
