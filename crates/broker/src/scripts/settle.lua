-- settle: ends deliveries with everything that belongs to the end, in one step each: result, follow-up messages, run
-- record, and where the message goes. A lease that is gone changes nothing.
-- ARGV: prefix, dead letters kept, then for each delivery:
--   action      ack | later (a message of its own, due) | park (the stored bytes, due) | bury | quarantine
--               | release (to the head of its list, or of the suspects) | charge (the same, counted as a delivery)
--               | requeue (to its end)
--   lease id, task id, task name, key in umbel:att, run id or '', run outcome (succeeded | failed | expired | revoked)
--   result key or '', its TTL (s, 0 = for ever), document, '1' if SUCCESS
--   x           later, park: due (s); bury, quarantine: reason
--   raw         later: the message; bury of one that was acknowledged early: its bytes; otherwise ''
--   number of arguments of what follows, then these (see follow)
-- Returns: the lease ids that were lost.
local kept, at, lost = ARGV[2], 3, {}
while at <= #ARGV do
  local action, lid, id, task, att = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4]
  local run, outcome, key, ttl, doc = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7], ARGV[at + 8], ARGV[at + 9]
  local success, x, fresh, followed = ARGV[at + 10] == '1', ARGV[at + 11], ARGV[at + 12], tonumber(ARGV[at + 13])
  local list, raw = leased(lid)
  if not list then
    lost[#lost + 1] = lid
  else
    if is_early(raw) then
      -- Its bytes are those that the worker still has, or nothing: it was promised to run at most once.
      raw = fresh
      if raw == '' and action ~= 'later' then action = 'ack' end
    end
    -- Before the first write: the server takes nothing back when it refuses the next one.
    check_follow(at + 14, at + 13 + followed)
    if run ~= '' then redis.call('HLEN', U .. 'run:' .. run) end
    if key ~= '' then store_result(key, ttl, doc, success) end
    local attempts = att ~= '' and redis.call('HGET', U .. 'att', att) or '0'
    local is_back = action == 'release' or action == 'charge'
    if action ~= 'park' and not is_back and att ~= '' then redis.call('HDEL', U .. 'att', att) end
    if action == 'later' then
      if run ~= '' and redis.call('HEXISTS', U .. 'run:' .. run, 'i:' .. id) == 1 then
        redis.call('HINCRBY', U .. 'run:' .. run, 'retries', 1)
      end
      redis.call('ZADD', U .. 'delayed:' .. queue_of(list), x, delayed_member(list, lid, fresh))
    elseif action == 'park' then
      redis.call('ZADD', U .. 'delayed:' .. queue_of(list), x, delayed_member(list, lid, raw))
    elseif action == 'bury' then
      lay_aside('dead', list, raw, x, id, task, attempts or '0', kept)
    elseif action == 'quarantine' then
      lay_aside('quarantine', list, raw, x, id, task, attempts or '0', kept)
    elseif is_back then
      hand_back(lid, list, raw)
      if action == 'charge' and att ~= '' then
        redis.call('HSET', U .. 'att', att, string.format('%.0f', number(attempts) + 1))
        redis.call('EXPIRE', U .. 'att', 604800)
      end
    elseif action == 'requeue' then
      -- Who takes it next may ask whether it was delivered before; a day is longer than anybody waits to.
      if id ~= '' then redis.call('SET', U .. 'back:' .. id, '1', 'EX', 86400) end
      redis.call('LPUSH', list, raw)
    end
    -- Without an outcome the task goes on: as another message, or as what replaced it.
    if outcome ~= '' and (action == 'ack' or action == 'bury' or action == 'quarantine') then settle_run(run, id, outcome) end
    -- After everything that the server may refuse, so that a repetition does not send it again.
    follow(at + 14, at + 13 + followed)
    end_lease(lid, list)
    -- At the head of its list it is the next that asks.
    if not is_back then give_turn(id) end
  end
  at = at + 14 + followed
end
return lost
