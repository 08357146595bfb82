-- recover: hands leases back to the head of their lists, uncharged, because somebody asked for it.
-- ARGV: prefix, queue, '1' also of workers that live, '1' to count only, lease ids, those to be taken first last.
-- Returns: how many were looked at, handed back, left with workers that live, acknowledged before their run (these are
--          not run again: they end with their lease), left because their list is of another type.
-- Reads about a MiB at most, so that nobody waits.
local queue, is_all, is_dry = ARGV[2], ARGV[3] == '1', ARGV[4] == '1'
local looked, back, alive, early, stuck, read, lives = 0, 0, 0, 0, 0, 0, {}
for at = 5, #ARGV do
  if read > 1048576 then break end
  looked = looked + 1
  local lid = ARGV[at]
  local list, raw = leased(lid)
  if list then read = read + #raw end
  if list and queue_of(list) == queue then
    local worker = worker_of(lid)
    if lives[worker] == nil then lives[worker] = redis.call('EXISTS', U .. 'hb:worker:' .. worker) == 1 end
    if lives[worker] and not is_all then
      alive = alive + 1
    elseif is_early(raw) then
      early = early + 1
    elseif is_dry then
      back = back + 1
    elseif pcall(redis.call, 'RPUSH', list, raw) then
      end_lease(lid, list)
      back = back + 1
    else
      stuck = stuck + 1
    end
  end
end
return { looked, back, alive, early, stuck }
