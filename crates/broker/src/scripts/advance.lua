-- advance: sends tasks of a run whose turn has come, and drops those that never will be sent; each once, whoever asks how often.
-- ARGV: prefix, install, term, run id, number of ids to drop, these, then each message as list, task id, message, unique key
--       or '', seconds that this is kept at most. One whose unique key another task has is dropped.
-- Returns: 'ok', messages sent | 'stale', stored term | 'wrongtype', list | 'full', list, most that may wait in its queue
local stored = term_of(ARGV[2])
if stored ~= tonumber(ARGV[3]) then return { 'stale', stored } end
local run, begin = U .. 'run:' .. ARGV[4], 6 + tonumber(ARGV[5])
local chosen, left_out, wanted = {}, {}, {}
for at = begin, #ARGV, 5 do
  if redis.call('HEXISTS', run, 'p:' .. ARGV[at + 1]) == 1 then
    local kind = redis.call('TYPE', ARGV[at]).ok
    if kind ~= 'list' and kind ~= 'none' then return { 'wrongtype', ARGV[at] } end
    local by = ARGV[at + 3] ~= '' and redis.call('GET', U .. 'unique:' .. ARGV[at + 3])
    if by and by ~= ARGV[at + 1] then
      left_out[#left_out + 1] = ARGV[at + 1]
    else
      chosen[#chosen + 1] = at
      local queue = queue_of(ARGV[at])
      wanted[queue] = (wanted[queue] or 0) + 1
      local free, most = room(queue)
      if free and wanted[queue] > free then return { 'full', ARGV[at], most } end
    end
  end
end
for at = 6, begin - 1 do
  if redis.call('HEXISTS', run, 'p:' .. ARGV[at]) == 1 then drop_of_run(run, ARGV[at], 'skipped') end
end
for _, id in ipairs(left_out) do drop_of_run(run, id, 'left_out') end
local sent = seconds(micros())
for _, at in ipairs(chosen) do
  redis.call('LPUSH', ARGV[at], ARGV[at + 2])
  if ARGV[at + 3] ~= '' then redis.call('SET', U .. 'unique:' .. ARGV[at + 3], ARGV[at + 1], 'EX', ARGV[at + 4]) end
  redis.call('HDEL', run, 'p:' .. ARGV[at + 1])
  redis.call('HINCRBY', run, 'total', 1)
  redis.call('HSET', run, 'i:' .. ARGV[at + 1], sent)
end
return { 'ok', #chosen }
