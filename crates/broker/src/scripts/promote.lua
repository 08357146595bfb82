-- promote: delayed messages that are due go to the head of their list, the earliest first in line.
-- ARGV: prefix, limit, queues.
-- Returns: how many were moved, next due time in seconds or '', Redis time in seconds.
local now, moved, due = seconds(micros()), 0, nil
for i = 3, #ARGV do
  local key = U .. 'delayed:' .. ARGV[i]
  local is_stuck = false
  local members = redis.pcall('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, tonumber(ARGV[2]))
  if not members.err then
    for k = #members, 1, -1 do
      local list, rest = unrecord(members[k])
      local _, raw = unrecord(rest)
      -- Push, then remove: a list of the wrong type leaves the message where it is.
      local pushed
      if list == UNREADABLE then
        pushed = pcall(lay_aside, 'quarantine', P .. ARGV[i], raw, 'no delayed message of ours', '', '', 0, '10000') and 1
      else
        pushed = redis.pcall('RPUSH', list, raw)
      end
      if type(pushed) == 'number' then
        redis.call('ZREM', key, members[k])
        moved = moved + 1
      else
        is_stuck = true
      end
    end
    local head = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
    local at = head[2] and tonumber(head[2])
    -- What cannot be moved is tried again in a while, not at once for ever.
    if at and is_stuck then at = math.max(at, tonumber(now) + 5) end
    if at and (not due or at < due) then due = at end
  end
end
return { moved, due and string.format('%.6f', due) or '', now }
