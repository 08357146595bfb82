-- reclaim: overdue leases go back to the head of their list, counted. From the second death on the message is a
-- suspect and is kept apart. One whose last allowed delivery has ended so, or that was acknowledged before its run, is
-- given up: it goes to the sweeper under a lease of the sweeper's own, who ends it with all that follows such an end. If
-- the sweeper dies before, the next one is given it again, and it is counted no further. Workers of other queues leave it
-- for one lease to those of its own, who know where its results go.
-- ARGV: prefix, lease (s), then for each: lease id, key in umbel:att, '1' where its queue is the sweeper's.
-- Returns: number put back, number suspected, then for each that is given up: its place among the arguments (1 is the
--          first), its new lease id, the token in it, deaths; 0 deaths: it was acknowledged before its run.
local now, back, suspected, given = micros(), 0, 0, {}
-- Not of a worker: no hello hands these back, and they hold up nobody's drain.
local SWEEPER = 'sweep:'
local function give_up(place, lid, list, raw, deaths)
  local token = math.max(number(redis.call('GET', U .. 'fence')) + 1, now)
  local name = string.format('%.0f', token)
  local mine = SWEEPER .. name
  redis.call('SET', U .. 'fence', name)
  redis.call('HSET', U .. 'unacked', mine, stored(mine, list, raw))
  redis.call('ZADD', U .. 'lease', seconds(now + tonumber(ARGV[2]) * 1000000), mine)
  redis.call('HINCRBY', U .. 'held', 'w:' .. worker_of(mine), 1)
  redis.call('HINCRBY', U .. 'held', 'q:' .. queue_of(list), 1)
  end_lease(lid, list)
  for _, value in ipairs({ place, mine, name, deaths }) do given[#given + 1] = value end
end
-- The next sweep comes without a pause: it may be of one of those.
local function leave() redis.call('HSET', U .. 'sweep', 'left', seconds(now)) end
local function take_back(at, lid, list, raw, score)
  if list == UNREADABLE then
    lay_aside('quarantine', list, raw, 'no record of ours stood under this lease', '', '', 0, '10000')
    return end_lease(lid, list)
  end
  if raw == '' then -- There is nothing in it that anybody could read or run.
    lay_aside('quarantine', list, raw, 'the message is empty', '', '', 0, '10000')
    return end_lease(lid, list)
  end
  local place = at / 3
  local is_left = ARGV[at + 2] ~= '1' and now / 1000000 - score <= tonumber(ARGV[2])
  if is_early(raw) then
    if is_left then return leave() end
    return give_up(place, lid, list, raw, 0)
  end
  local queue, att = queue_of(list), ARGV[at + 1]
  local policy = redis.call('HGET', U .. 'policy', queue) or ''
  local most = tonumber(string.match(policy, '^(%d+)|')) or 3
  -- Counted after the message has a place: one that could not be moved has not died once more.
  local deaths = number(redis.call('HGET', U .. 'att', att)) + 1
  if string.sub(lid, 1, #SWEEPER) == SWEEPER then deaths = math.max(deaths - 1, most) end -- Nobody ran it again.
  if deaths >= most then
    if is_left then return leave() end
    redis.call('HSET', U .. 'att', att, deaths)
    give_up(place, lid, list, raw, deaths)
  else
    if deaths >= 2 then
      redis.call('LPUSH', U .. 'suspect:' .. queue, record(list, raw))
      suspected = suspected + 1
    else
      redis.call('RPUSH', list, raw)
      back = back + 1
    end
    redis.call('HSET', U .. 'att', att, deaths)
    end_lease(lid, list)
  end
  -- Counts of messages that were purged meanwhile go a week after the last death of any.
  redis.call('EXPIRE', U .. 'att', 604800)
end
for at = 3, #ARGV, 3 do
  local lid = ARGV[at]
  local score = tonumber(redis.call('ZSCORE', U .. 'lease', lid) or nil)
  if score and score <= now / 1000000 then -- renewed in between: not ours to take
    local list, raw = leased(lid)
    -- A queue whose key has another type must not hold up the recovery of all others: its leases are put off.
    if not list then
      -- Without a body it would come with every sweep; the counts are the janitor's.
      redis.call('ZREM', U .. 'lease', lid)
    elseif not pcall(take_back, at, lid, list, raw, score) then
      redis.call('ZADD', U .. 'lease', 'XX', seconds(now + 60 * 1000000), lid)
    end
  end
end
return { back, suspected, given }
