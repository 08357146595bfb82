-- In front of every script. ARGV[1] is the key prefix (kombu's global_keyprefix, may be empty). Key names are computed,
-- not declared, which is fine where there is no cluster mode, as in kombu; only look declares them, for tracking.
-- Behind a zero byte the prefix names kombu's sep, where that is not the usual one.
local P, SEP = ARGV[1], '\6\22'
if string.find(P, '\0', 1, true) then P, SEP = string.match(P, '^(.-)%z(.*)$') end
local U = P .. 'umbel:'

-- Redis time in whole microseconds; below 2^53 until the year 2255, so Lua numbers hold it.
local function micros()
  local t = redis.call('TIME')
  return t[1] * 1000000 + t[2]
end
local function seconds(us) return string.format('%.6f', us / 1000000) end
-- A stored number. Whatever else stands there counts as none: what somebody broke must not stop everybody.
local function number(text)
  local n = tonumber(text or '0')
  if not n or n ~= n or math.abs(n) > 9007199254740991 then return 0 end
  return n
end

-- A record is '<length of list>:<list><raw>': where a message came from and its bytes, in one value.
local function record(list, raw) return #list .. ':' .. list .. raw end
-- What is no record counts as the raw of one from a list that nobody has; reclaim lays it aside.
local UNREADABLE = U .. 'unreadable'
local function unrecord(rec)
  local i = string.find(rec, ':', 1, true)
  local n = i and tonumber(string.match(string.sub(rec, 1, i - 1), '^%d+$') or '')
  if not n or i + n > #rec then return UNREADABLE, rec end
  return string.sub(rec, i + 1, i + n), string.sub(rec, i + n + 1)
end
-- The record of a message that was acknowledged before its run has a stub in place of its raw: a zero byte, then a message
-- without arguments that names it. Nobody puts it back into a list.
local function is_early(raw) return string.byte(raw, 1) == 0 end
-- A delayed member is a record whose raw is '<length of tag>:<tag><raw>': equal messages stay two members.
local function delayed_member(list, tag, raw) return record(list, record(tag, raw)) end

-- Queue of a list: without prefix and without the priority step.
local STEP = '^(.*)' .. string.gsub(SEP, '%p', '%%%0') .. '%d+$'
local function queue_of(list)
  local s = string.sub(list, #P + 1)
  return string.match(s, STEP) or s
end

-- A lease id is '<worker>|<list>:<token>', and under it stands the raw message: on their way the bytes go through one
-- Lua string, not two. Under an id without a list, '<worker>:<token>', stands a record.
local function worker_of(lid) return string.match(lid, '^([^|]*)|') or string.match(lid, '^(.*):%d+$') or '' end
local function list_of(lid) return string.match(lid, '^[^|]*|(.*):%d+$') end
-- List and raw message of what stands under a lease id.
local function place(lid, value)
  local list = list_of(lid)
  if list then return list, value end
  return unrecord(value)
end
-- Handed back, to be taken next: to the head of its list, and a suspect, whose id has no list, to the head of those.
local function hand_back(lid, list, raw)
  if list_of(lid) then return redis.call('RPUSH', list, raw) end
  redis.call('RPUSH', U .. 'suspect:' .. queue_of(list), record(list, raw))
end
-- What stands under a lease id for these.
local function stored(lid, list, raw) return list_of(lid) and raw or record(list, raw) end

-- A gate entry is '<state>|<epoch>|<term>|<n>', state one of new, open, closed@<seconds>.
local function gate(worker)
  local entry = redis.call('HGET', U .. 'workers', worker)
  if not entry then return nil end
  local state, epoch, term, n = string.match(entry, '^([^|]*)|(%d+)|(%d+)|(%d+)$')
  if not state then return nil end
  return { state = state, epoch = tonumber(epoch), term = tonumber(term), n = tonumber(n) }
end
local function set_gate(worker, g)
  redis.call('HSET', U .. 'workers', worker, string.format('%s|%.0f|%.0f|%.0f', g.state, g.epoch, g.term, g.n))
end

-- List and raw message of a lease that has both its parts, else nil.
local function leased(lid)
  local rec = redis.call('HGET', U .. 'unacked', lid)
  if not rec or not redis.call('ZSCORE', U .. 'lease', lid) then return nil end
  return place(lid, rec)
end
-- Concurrency keys: the leases that hold one lie in key:held:<key>, messages that wait for it in the delayed set of
-- their queue and, in their order, in key:wait:<key>; key:woken:<key> has those that were put back into their list
-- because it is their turn, until when that is kept for them. umbel:keyed has the key of each lease that holds one, and
-- umbel:called:<id>, for as long as its turn is kept, that of a message which was put back.
local function key_users(key, most)
  local held, woken = U .. 'key:held:' .. key, U .. 'key:woken:' .. key
  local users = redis.call('ZCARD', held) + redis.call('ZCARD', woken)
  if users < most then return users end
  for _, lid in ipairs(redis.call('ZRANGE', held, 0, -1)) do
    if not redis.call('ZSCORE', U .. 'lease', lid) then
      redis.call('ZREM', held, lid)
      redis.call('HDEL', U .. 'keyed', lid)
    end
  end
  redis.call('ZREMRANGEBYSCORE', woken, '-inf', seconds(micros()))
  -- None of ours lies further ahead: the clock of the server went back.
  redis.call('ZREMRANGEBYSCORE', woken, seconds(micros() + 32000000), '+inf')
  return redis.call('ZCARD', held) + redis.call('ZCARD', woken)
end
-- Puts messages whose turn it is back to the head of their list, while the key has room.
local function wake_key(key)
  local wait, at, woken = U .. 'key:wait:' .. key, U .. 'key:at:' .. key, U .. 'key:woken:' .. key
  local most = math.max(number(redis.call('HGET', U .. 'key:most', key)), 1)
  local free = most - key_users(key, most)
  for _ = 1, 1000 do
    if free <= 0 then return end
    local id = redis.call('ZRANGE', wait, 0, 0)[1]
    if not id then
      if free == most then redis.call('HDEL', U .. 'key:most', key) end
      return
    end
    local due, rec = string.match(redis.call('HGET', at, id) or '', '^([^|]*)|(.*)$')
    local tag, queue = unrecord(rec or '')
    redis.call('ZREM', wait, id)
    redis.call('HDEL', at, id)
    local delayed = due and U .. 'delayed:' .. queue
    for _, member in ipairs(due and redis.call('ZRANGEBYSCORE', delayed, due, due) or {}) do
      local list, rest = unrecord(member)
      local known, raw = unrecord(rest)
      -- What is not there was purged, or came back by itself.
      if known == tag and type(redis.pcall('RPUSH', list, raw)) == 'number' then
        redis.call('ZREM', delayed, member)
        redis.call('ZADD', woken, seconds(micros() + 30000000), id)
        redis.call('SET', U .. 'called:' .. id, key, 'EX', 30)
        free = free - 1
        break
      end
    end
  end
end
-- A message that was called by its key ends, or waits for something else, before it has asked: the turn is the next
-- one's.
local function give_turn(id)
  local key = id ~= '' and redis.call('GET', U .. 'called:' .. id)
  if not key then return end
  redis.call('DEL', U .. 'called:' .. id)
  redis.call('ZREM', U .. 'key:woken:' .. key, id)
  wake_key(key)
end
-- Leases of a queue have ended, so many of it are held now: who holds a concurrency key lets go of it, and where no more
-- than so many messages of the queue may be held, the workers that waited for room are woken. Both flags are there only
-- while anybody has such limits.
local function let_go(queue, after, lids)
  if redis.call('EXISTS', U .. 'keyed', U .. 'limited') == 0 then return end
  for i, key in ipairs(redis.call('HMGET', U .. 'keyed', unpack(lids))) do
    if key then
      redis.call('HDEL', U .. 'keyed', lids[i])
      redis.call('ZREM', U .. 'key:held:' .. key, lids[i])
      wake_key(key)
    end
  end
  local most = number(redis.call('HGET', U .. 'queue:' .. queue, 'max_in_flight'))
  if most > 0 and after < most and after + #lids >= most then
    redis.call('SET', U .. 'freed:' .. queue, '1', 'EX', 60)
  end
end
-- Takes a lease away: the last step of every script, so that an error before it leaves the message held.
local function end_lease(lid, list)
  redis.call('ZREM', U .. 'lease', lid)
  redis.call('HDEL', U .. 'unacked', lid)
  redis.call('HINCRBY', U .. 'held', 'w:' .. worker_of(lid), -1)
  local queue = queue_of(list)
  let_go(queue, redis.call('HINCRBY', U .. 'held', 'q:' .. queue, -1), { lid })
end

-- The wake-up of a result. An ACL without the channel must not undo an end whose result is stored: hello tells of it.
local function publish(key, doc) return redis.pcall('PUBLISH', key, doc) end

-- Does a document say SUCCESS? As Celery and we write it: JSON and msgpack begin with the status, YAML has its keys in
-- order and nothing else of a document at the beginning of a line. One that is compressed says nothing here.
local function is_final(doc)
  return string.find(doc, '^{"status": "SUCCESS"') or string.find(doc, '^[\128-\143]\166status\167SUCCESS')
    or string.find(doc, '^\222..\166status\167SUCCESS') or string.find(doc, '\nstatus: SUCCESS\n', 1, true)
end
-- A result document under Celery's key, with its wake-up. SUCCESS is final: only another SUCCESS replaces it.
local function store_result(key, ttl, doc, is_success)
  if not is_success then
    local old = redis.call('GET', key)
    if old and is_final(old) then return end
  end
  if tonumber(ttl) > 0 then redis.call('SET', key, doc, 'EX', ttl) else redis.call('SET', key, doc) end
  publish(key, doc)
end

-- A run (all messages of one slot) is active until each of its ids is settled: 'i:<id>' when it was sent. Where it has a plan,
-- 'p:<id>' is sent later, and 'e:<id>' tells how an id ended, when it was sent and when it ended.
local function settle_run(run, id, outcome)
  if run == '' then return end
  local key = U .. 'run:' .. run
  local sent = redis.call('HGET', key, 'i:' .. id)
  if sent then
    local now = seconds(micros())
    redis.call('HDEL', key, 'i:' .. id)
    redis.call('HINCRBY', key, outcome, 1)
    redis.call('HSET', key, 'settled_at', now)
    if redis.call('HEXISTS', key, 'plan') == 1 then
      redis.call('HSET', key, 'e:' .. id, outcome .. '|' .. sent .. '|' .. now)
    end
  end
end
-- An id of a run that will never be sent: 'skipped', or 'left_out' where another task has its unique key.
local function drop_of_run(key, id, why)
  redis.call('HDEL', key, 'p:' .. id)
  redis.call('HINCRBY', key, why, 1)
  redis.call('HSET', key, 'settled_at', seconds(micros()), 'e:' .. id, why .. '||')
end

-- What nobody will run lies in two streams a queue, umbel:dead:Q and umbel:quarantine:Q, bounded by number, bytes and
-- age. umbel:aside has the bytes of each, umbel:keep the bounds of a queue as '<bytes>|<seconds>' (0 = none), and
-- umbel:evicted how many messages each bound has cost: '<kind>|count', '<kind>|bytes', '<kind>|age', 'dead|disabled', each
-- followed by '|<queue>'. Nothing leaves these streams uncounted. umbel:died has when the last dead letter of a queue came.
local function size_of(fields)
  local n = 0
  for i = 2, #fields, 2 do n = n + #fields[i] end
  return n
end
local function took_out(kind, queue, bytes)
  if redis.call('HINCRBY', U .. 'aside', kind .. ':' .. queue, -bytes) <= 0 then
    redis.call('HDEL', U .. 'aside', kind .. ':' .. queue)
  end
end
-- Evicts what is beyond the bounds, the oldest first, at most `limit` messages and about a MiB. The last one stays,
-- unless it is too old. Returns how many.
local function trim_aside(kind, queue, most, limit)
  local key, field, gone, read = U .. kind .. ':' .. queue, kind .. ':' .. queue, 0, 0
  local bytes, age = string.match(redis.call('HGET', U .. 'keep', queue) or '', '^(%d+)|(%d+)$')
  bytes, age = number(bytes), number(age)
  local length = redis.call('XLEN', key)
  local held = bytes > 0 and number(redis.call('HGET', U .. 'aside', field)) or 0
  local old = age > 0 and string.format('%.0f', math.max(micros() / 1000 - age * 1000, 0))
  while gone < limit and read < 1048576 and length > 0 do
    local cause, entry
    if length > most then
      cause = 'count'
    elseif bytes > 0 and held > bytes and length > 1 then
      cause = 'bytes'
    elseif old then
      entry = redis.call('XRANGE', key, '-', old, 'COUNT', 1)[1]
      cause = entry and 'age'
    end
    if not cause then break end
    entry = entry or redis.call('XRANGE', key, '-', '+', 'COUNT', 1)[1]
    if not entry then break end
    local size = size_of(entry[2])
    redis.call('HINCRBY', U .. 'evicted', kind .. '|' .. cause .. '|' .. queue, 1)
    took_out(kind, queue, size)
    redis.call('XDEL', key, entry[1])
    gone, read, length, held = gone + 1, read + size, length - 1, held - size
  end
  return gone
end
-- Appends a message to one of them.
local function lay_aside(kind, list, raw, reason, id, task, attempts, maxlen)
  local queue = queue_of(list)
  local key, field = U .. kind .. ':' .. queue, kind .. ':' .. queue
  local most = tonumber(maxlen) or 10000
  if most == 0 then
    -- The queue keeps no dead letters. What could not be read is kept all the same: nobody knows what it was.
    if kind == 'dead' then
      redis.call('XLEN', key)
      return redis.call('HINCRBY', U .. 'evicted', kind .. '|disabled|' .. queue, 1)
    end
    most = 10000
  end
  local fields = { 'reason', reason, 'id', id, 'task', task, 'attempts', attempts, 'list', list, 'raw', raw }
  fields[8] = tostring(attempts)
  local length = redis.call('XLEN', key)
  if length == 0 then
    redis.call('HDEL', U .. 'aside', field)
  elseif redis.call('HEXISTS', U .. 'aside', field) == 0 then
    -- Filled before its bytes were counted: about so many, once.
    local used = redis.pcall('MEMORY', 'USAGE', key, 'SAMPLES', 0)
    redis.call('HSET', U .. 'aside', field, type(used) == 'number' and used or 0)
  end
  redis.call('XADD', key, '*', unpack(fields))
  redis.call('HINCRBY', U .. 'aside', field, size_of(fields))
  if kind == 'dead' then redis.call('HSET', U .. 'died', queue, seconds(micros())) end
  trim_aside(kind, queue, most, 500)
end

-- Bounds of what waits, where a queue has one: its lists (the most urgent first), how many messages wait there, how many
-- may, and whether it refuses more ('oldest': it loses the oldest instead). Otherwise nil.
local function bounds(queue)
  if redis.call('SISMEMBER', U .. 'limited', queue) == 0 then return nil end
  local policy = redis.call('HMGET', U .. 'queue:' .. queue, 'max_length', 'on_full', 'steps')
  local most = number(policy[1])
  if most <= 0 then return nil end
  local lists, waiting = {}, 0
  for step in string.gmatch(policy[3] or '0', '%d+') do
    local list = P .. queue .. (step == '0' and '' or SEP .. step)
    lists[#lists + 1] = list
    local length = redis.pcall('LLEN', list)
    waiting = waiting + (type(length) == 'number' and length or 0)
  end
  return lists, waiting, most, policy[2] ~= 'oldest'
end
-- How many more messages a queue takes; nil where it takes any number. And the most that may wait there.
local function room(queue)
  local lists, waiting, most, is_refusing = bounds(queue)
  if not lists or not is_refusing then return nil end
  return math.max(most - waiting, 0), most
end
-- A message that nobody took is gone from its list: its run is told, its unique key is free. `outcome` is the run's.
-- Returns its id and its task where they were read, and whether a run was told. It is read where somebody asks for that
-- or where its bytes have a header of ours: nothing but a key of an object reads like these, quotes inside of texts are
-- escaped.
local function taken_out(raw, outcome, is_read)
  if not (is_read or string.find(raw, '"umbel_run"', 1, true) or string.find(raw, '"umbel_unique"', 1, true)) then
    return '', '', false
  end
  local ok, message = pcall(cjson.decode, raw)
  local headers = ok and type(message) == 'table' and message.headers
  if type(headers) ~= 'table' or type(headers.id) ~= 'string' then return '', '', false end
  local is_member = type(headers.umbel_run) == 'string'
  if is_member then settle_run(headers.umbel_run, headers.id, outcome) end
  local unique = headers.umbel_unique
  if type(unique) == 'table' and type(unique.key) == 'string' then
    local taken = U .. 'unique:' .. unique.key
    if redis.pcall('GET', taken) == headers.id then redis.call('DEL', taken) end
  end
  return headers.id, type(headers.task) == 'string' and headers.task or '', is_member
end

local function term_of(install) return number(redis.call('GET', U .. 'term:' .. install)) end

-- Refuses, before anything is written, the end of which not all that follows can be done, by the keys that it concerns.
local function check_follow(at, last)
  local replaced = {} -- By then they have the type that they need.
  while at <= last do
    local op, key = ARGV[at], ARGV[at + 1]
    if op == 'push' then
      redis.call('LLEN', key)
    elseif op == 'count' then
      redis.call('HLEN', key)
    elseif op == 'set' or op == 'del' then
      replaced[key] = true
    elseif not replaced[key] then
      redis.call('STRLEN', key)
      -- A text that is no number is refused by this, and a number stays what it is.
      if op == 'incr' and redis.call('EXISTS', key) == 1 and redis.call('EXISTS', U .. 'once:' .. ARGV[at + 4]) == 0 then
        redis.call('INCRBY', key, 0)
      end
    end
    at = at + ((op == 'push' or op == 'free') and 3 or op == 'del' and 2 or op == 'incr' and 5 or 4)
  end
end

-- What follows an end beside its own message, as a flat list of operations between `at` and `last` of ARGV:
--   push list raw | store key ttl doc | set key ttl value | del key
--   free key token: it goes, if it holds the token
--   count key ttl field: one more in a hash
--   incr key ttl by token: once for each token, so that it may be repeated when nobody heard the answer
--   guard key token n: the next n arguments are followed only where the key holds the token, or nothing
-- Sets and stores come before pushes where order matters: the caller sees to it.
local function follow(at, last)
  while at <= last do
    local op, key = ARGV[at], ARGV[at + 1]
    if op == 'push' then
      redis.call('LPUSH', key, ARGV[at + 2])
      at = at + 3
    elseif op == 'store' then
      store_result(key, ARGV[at + 2], ARGV[at + 3], false)
      at = at + 4
    elseif op == 'set' then
      redis.call('SET', key, ARGV[at + 3], 'EX', ARGV[at + 2])
      at = at + 4
    elseif op == 'del' then
      redis.call('DEL', key)
      at = at + 2
    elseif op == 'count' then
      redis.call('HINCRBY', key, ARGV[at + 3], 1)
      redis.call('EXPIRE', key, ARGV[at + 2])
      at = at + 4
    elseif op == 'free' then
      if redis.call('GET', key) == ARGV[at + 2] then redis.call('DEL', key) end
      at = at + 3
    elseif op == 'incr' then
      local once = U .. 'once:' .. ARGV[at + 4]
      if redis.call('EXISTS', once) == 0 then
        redis.call('INCRBY', key, ARGV[at + 3])
        redis.call('EXPIRE', key, ARGV[at + 2])
        redis.call('SET', once, '1', 'EX', ARGV[at + 2])
      end
      at = at + 5
    else -- guard key token arguments
      -- A claim that ran out while this end could not be told is nobody's: what it guards is ours to do.
      local holder = redis.call('GET', key)
      local held = not holder or holder == ARGV[at + 2]
      local arguments = tonumber(ARGV[at + 3])
      at = at + 4
      if not held then at = at + arguments end
    end
  end
end

-- Messages in ARGV from `begin` on, each a list, task id, message, unique key or '' and seconds that this is kept at most:
-- where those begin that can be sent, the ids of those whose unique key another task has, and the answer that refuses all of
-- them. With `is_meant` only those of whose id it says so. Nothing is written.
local function pick_messages(begin, is_meant)
  local chosen, left_out, wanted = {}, {}, {}
  for at = begin, #ARGV, 5 do
    local list, id, key = ARGV[at], ARGV[at + 1], ARGV[at + 3]
    if not is_meant or is_meant(id) then
      local kind = redis.call('TYPE', list).ok
      if kind ~= 'list' and kind ~= 'none' then return nil, nil, { 'wrongtype', list } end
      local by = key ~= '' and redis.call('GET', U .. 'unique:' .. key)
      if by and by ~= id then
        left_out[#left_out + 1] = id
      else
        chosen[#chosen + 1] = at
        local queue = queue_of(list)
        wanted[queue] = (wanted[queue] or 0) + 1
        local free, most = room(queue)
        if free and wanted[queue] > free then return nil, nil, { 'full', list, most } end
      end
    end
  end
  return chosen, left_out
end
-- Sends the message that begins there.
local function send_message(at)
  redis.call('LPUSH', ARGV[at], ARGV[at + 2])
  if ARGV[at + 3] ~= '' then redis.call('SET', U .. 'unique:' .. ARGV[at + 3], ARGV[at + 1], 'EX', ARGV[at + 4]) end
end
