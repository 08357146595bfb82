-- fire: enqueues all messages of a slot and moves the schedule's mark, together or not at all.
-- ARGV: prefix, install, term, schedule uid, slot (ms), generation, run id or '', slots fired and missed before, the run's plan
--       or '', number of tasks that are sent later and their ids, number of those that never are and their ids, then each
--       message as list, task id, message, unique key or '', seconds that this is kept at most. One whose unique key another
--       task has is left out.
-- Returns: 'fired', how many were left out | 'dup', ids | 'stale', stored term | 'notyet', Redis time (ms)
--          | 'wrongtype', list | 'full', list, most that may wait in its queue
local term, uid, slot = tonumber(ARGV[3]), ARGV[4], tonumber(ARGV[5])
local stored = term_of(ARGV[2])
if stored ~= term then return { 'stale', stored } end
local now = math.floor(micros() / 1000)
if slot > now then return { 'notyet', now } end
local key = U .. 'slot:' .. ARGV[2] .. ':' .. uid
local last = redis.call('HGET', key, 'last')
if last and slot <= number(last) then return { 'dup', redis.call('HGET', key, 'ids'), last } end
local plan = ARGV[10]
local first = 12 + tonumber(ARGV[11])
local last_later = first - 1
local begin = first + 1 + tonumber(ARGV[first])
-- All or none: a slot is one thing.
local chosen, left_out, refusal = pick_messages(begin)
if refusal then return refusal end
local ids = {}
for _, at in ipairs(chosen) do
  send_message(at)
  ids[#ids + 1] = ARGV[at + 1]
end
if ARGV[7] ~= '' then
  local run = U .. 'run:' .. ARGV[7]
  redis.call('HSET', run, 'uid', uid, 'slot', ARGV[5], 'total', #ids)
  local sent = seconds(micros())
  for _, id in ipairs(ids) do redis.call('HSET', run, 'i:' .. id, sent) end
  if plan ~= '' then
    redis.call('HSET', run, 'plan', plan)
    for at = 12, last_later do redis.call('HSET', run, 'p:' .. ARGV[at], '') end
    for at = first + 1, begin - 1 do drop_of_run(run, ARGV[at], 'skipped') end
    for _, id in ipairs(left_out) do drop_of_run(run, id, 'left_out') end
  end
  redis.call('EXPIRE', run, 2592000)
end
redis.call('HSET', key, 'last', ARGV[5], 'ids', table.concat(ids, ','), 'generation', ARGV[6], 'run', ARGV[7],
  'runs', ARGV[8] + (#ids > 0 and 1 or 0), 'missed', ARGV[9] + (#ids > 0 and 0 or 1))
-- Longer than between two slots of nearly all schedules, and not for ever: objects go without a word here.
redis.call('EXPIRE', key, 34560000)
return { 'fired', #left_out }
