-- advance: sends tasks of a run whose turn has come, and drops those that never will be sent; each once, whoever asks how often.
-- ARGV: prefix, install, term, run id, number of ids to drop, these, then each message as list, task id, message, unique key
--       or '', seconds that this is kept at most. One whose unique key another task has is dropped.
-- Returns: 'ok', messages sent | 'stale', stored term | 'wrongtype', list | 'full', list, most that may wait in its queue
local stored = term_of(ARGV[2])
if stored ~= tonumber(ARGV[3]) then return { 'stale', stored } end
local run, begin = U .. 'run:' .. ARGV[4], 6 + tonumber(ARGV[5])
local function is_due(id) return redis.call('HEXISTS', run, 'p:' .. id) == 1 end
local chosen, left_out, refusal = pick_messages(begin, is_due)
if refusal then return refusal end
for at = 6, begin - 1 do
  if is_due(ARGV[at]) then drop_of_run(run, ARGV[at], 'skipped') end
end
for _, id in ipairs(left_out) do drop_of_run(run, id, 'left_out') end
local sent = seconds(micros())
for _, at in ipairs(chosen) do
  send_message(at)
  redis.call('HDEL', run, 'p:' .. ARGV[at + 1])
  redis.call('HINCRBY', run, 'total', 1)
  redis.call('HSET', run, 'i:' .. ARGV[at + 1], sent)
end
return { 'ok', #chosen }
