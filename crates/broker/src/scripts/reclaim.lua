-- reclaim: overdue leases go back to the head of their list, counted. From the second death on the message is a
-- suspect and is kept apart; the last allowed one sends it to the dead letters. One that was acknowledged before its run
-- is not run again: it goes, and its caller is told.
-- ARGV: prefix, then for each: lease id, key in umbel:att, task id, task name, run id,
--       result key or '', document for the dead letter.
-- Returns: number reclaimed, suspected, given up, then the task ids of these.
local now, back, suspected, buried, ids = micros() / 1000000, 0, 0, 0, {}
local function take_back(at, lid, list, raw)
  local att, id, task = ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  if list == UNREADABLE then
    lay_aside('quarantine', list, raw, 'no record of ours stood under this lease', id, task, 0, '10000')
    return end_lease(lid, list)
  end
  local queue = queue_of(list)
  local policy = redis.call('HGET', U .. 'policy', queue) or ''
  local most, ttl, kept = string.match(policy, '^(%d+)|(%d+)|(%d+)$')
  if is_early(raw) then
    if ARGV[at + 5] ~= '' then store_result(ARGV[at + 5], ttl or '86400', ARGV[at + 6], false) end
    settle_run(ARGV[at + 4], id, 'failed')
    end_lease(lid, list)
    buried = buried + 1
    ids[#ids + 1] = id
    return
  end
  -- Counted after the message has a place: one that could not be moved has not died once more.
  local deaths = number(redis.call('HGET', U .. 'att', att)) + 1
  if deaths >= (tonumber(most) or 3) then
    lay_aside('dead', list, raw, 'killed its worker ' .. deaths .. ' times', id, task, deaths, kept or '10000')
    redis.call('HDEL', U .. 'att', att)
    end_lease(lid, list)
    buried = buried + 1
    ids[#ids + 1] = id
    if ARGV[at + 5] ~= '' then store_result(ARGV[at + 5], ttl or '86400', ARGV[at + 6], false) end
    settle_run(ARGV[at + 4], id, 'failed')
    return
  elseif deaths >= 2 then
    redis.call('LPUSH', U .. 'suspect:' .. queue, record(list, raw))
    suspected = suspected + 1
  else
    redis.call('RPUSH', list, raw)
    back = back + 1
  end
  redis.call('HSET', U .. 'att', att, deaths)
  -- Counts of messages that were purged meanwhile go a week after the last death of any.
  redis.call('EXPIRE', U .. 'att', 604800)
  end_lease(lid, list)
end
for at = 2, #ARGV, 7 do
  local lid = ARGV[at]
  local score = redis.call('ZSCORE', U .. 'lease', lid)
  if score and tonumber(score) <= now then -- renewed in between: not ours to take
    local list, raw = leased(lid)
    -- A queue whose key has another type must not hold up the recovery of all others: its leases are put off.
    if list and not pcall(take_back, at, lid, list, raw) then
      redis.call('ZADD', U .. 'lease', 'XX', seconds((now + 60) * 1000000), lid)
    end
  end
end
return { back, suspected, buried, ids }
