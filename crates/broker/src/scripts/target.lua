-- target: what all workers know of a target cluster together: its budget of requests, the turns of tasks, its circuit.
-- The hash umbel:target:<cluster> holds tokens, at, factor, slowed, blocked (the bucket) and state, failures, since, until,
-- pause (the circuit), times in microseconds; the set umbel:target:turns:<cluster> the turns by their end. Both end by
-- themselves. The hash umbel:targets:<namespace> is the operator's: '<uid>' that the cluster must have, '-' while nobody
-- knows it, or '!<seconds>' since when its TargetCluster is gone.
-- ARGV: prefix, namespace, cluster, verb, turn, qps, burst, tasks, tokens wanted or not used or microseconds of a pause, then
--   the rules: longest wait, turn, same, longest pause (microseconds), halved, least, recovery; threshold, first, longest,
--   probe (microseconds).
-- Verbs: begin, take, renew, end, slow, answered, silent, facts.
-- Returns: word, tokens, microseconds to wait, circuit state, failures, microseconds since and until, pause, what the operator
--   says. Words: go, wait, busy, open, gone; opened (silent: this opened it), ok.
local now = micros()
local namespace, cluster, verb, turn = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local qps, burst, tasks, amount = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), tonumber(ARGV[9])
local WAIT, TURN, SAME, PAUSE = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12]), tonumber(ARGV[13])
local HALVED, LEAST, RECOVERY = tonumber(ARGV[14]), tonumber(ARGV[15]), tonumber(ARGV[16])
local THRESHOLD, FIRST, LONGEST, PROBE = tonumber(ARGV[17]), tonumber(ARGV[18]), tonumber(ARGV[19]), tonumber(ARGV[20])
local id = namespace .. '/' .. cluster
local key, turns = U .. 'target:' .. id, U .. 'target:turns:' .. id
local said = redis.call('HGET', U .. 'targets:' .. namespace, cluster) or ''

local names = { 'tokens', 'at', 'factor', 'slowed', 'blocked', 'state', 'failures', 'since', 'until', 'pause' }
local stored = redis.call('HMGET', key, unpack(names))
local t = {}
for i, name in ipairs(names) do t[name] = stored[i] end
local is_new = not t.at
for _, name in ipairs({ 'at', 'slowed', 'blocked', 'failures', 'since', 'until', 'pause' }) do t[name] = number(t[name]) end
-- What is new, or broken by somebody, is a full bucket at its whole rate. Calls that know no limits leave it as it is.
local function within(text, least, most)
  local n = tonumber(text or '')
  return n and n >= least and n <= most and n or most
end
t.tokens = within(t.tokens, -1000000, 1000000)
t.factor = within(t.factor, LEAST, 1)
for _, name in ipairs({ 'failures', 'since', 'until', 'pause', 'blocked' }) do t[name] = math.max(t[name], 0) end
t.failures, t.pause = math.floor(math.min(t.failures, 1000000)), math.min(t.pause, LONGEST)
if t.state ~= 'Open' and t.state ~= 'HalfOpen' then t.state = 'Closed' end
-- The clock of the server went back: nothing of ours lies further ahead than it can.
t.at, t.slowed, t.since = math.min(t.at, now), math.min(t.slowed, now), math.min(t.since, now)
t.blocked, t['until'] = math.min(t.blocked, now + PAUSE), math.min(t['until'], now + math.max(LONGEST, PROBE))

local function answer(word, tokens, wait)
  local since = t.since > 0 and now - t.since or -1
  local left = t.state ~= 'Closed' and math.max(t['until'] - now, 0) or -1
  return { word, tokens or 0, string.format('%.0f', wait or 0), t.state, t.failures, string.format('%.0f', since),
    string.format('%.0f', left), string.format('%.0f', t.pause), said }
end
local function keep(word, tokens, wait)
  redis.call('HSET', key, 'tokens', string.format('%.3f', t.tokens), 'at', string.format('%.0f', t.at),
    'factor', string.format('%.6f', t.factor), 'slowed', string.format('%.0f', t.slowed),
    'blocked', string.format('%.0f', t.blocked), 'state', t.state, 'failures', t.failures,
    'since', string.format('%.0f', t.since), 'until', string.format('%.0f', t['until']),
    'pause', string.format('%.0f', t.pause))
  redis.call('EXPIRE', key, 86400)
  return answer(word, tokens, wait)
end

local function advance()
  local passed = is_new and 0 or (now - t.at) / 1000000
  t.at = now
  t.factor = math.min(1, t.factor + RECOVERY * passed)
  local rate = qps * t.factor
  t.tokens = math.min(burst, t.tokens + rate * passed)
  return rate
end
-- Up to so many tokens, or one on credit; nothing where that takes too long.
local function take(want)
  local rate = advance()
  local own = t.tokens >= 1 and 0 or (1 - t.tokens) / rate * 1000000
  local wait = math.max(own, t.blocked - now)
  if wait > WAIT then return 0, wait end
  local tokens = math.max(1, math.min(math.floor(t.tokens), want))
  t.tokens = t.tokens - tokens
  return tokens, wait
end
local function renew()
  redis.call('ZADD', turns, string.format('%.0f', now + TURN), turn)
  redis.call('PEXPIRE', turns, math.ceil(TURN / 1000) + 1000)
end

if verb == 'facts' then return answer('ok') end
if verb == 'renew' then
  renew()
  return answer('ok')
end
if verb == 'begin' then
  if string.sub(said, 1, 1) == '!' then return answer('gone') end
  if t.state ~= 'Closed' and now < t['until'] then return answer('open') end
  redis.call('ZREMRANGEBYSCORE', turns, '-inf', string.format('(%.0f', now))
  if redis.call('ZCARD', turns) >= tasks then return answer('busy') end
  local tokens, wait = take(amount)
  if tokens == 0 then return answer('wait', 0, wait) end
  renew()
  if t.state ~= 'Closed' then t.state, t.since, t['until'] = 'HalfOpen', now, now + PROBE end
  return keep('go', tokens, wait)
end
if verb == 'take' then
  local tokens, wait = take(amount)
  renew()
  return keep(tokens == 0 and 'wait' or 'go', tokens, wait)
end
if verb == 'end' then
  redis.call('ZREM', turns, turn)
  if amount == 0 or is_new then return answer('ok') end
  t.tokens = math.min(burst, t.tokens + amount)
  return keep('ok')
end
if verb == 'slow' then
  advance()
  if now - t.slowed >= SAME then
    t.factor, t.tokens, t.slowed = math.max(LEAST, t.factor * HALVED), math.min(t.tokens, 0), now
  end
  t.blocked = math.max(t.blocked, now + math.min(amount, PAUSE))
  return keep('ok')
end
if verb == 'answered' then
  if t.state == 'Closed' and t.failures == 0 then return answer('ok') end
  if t.state ~= 'Closed' then t.since = now end
  t.state, t.failures, t['until'], t.pause = 'Closed', 0, 0, 0
  if is_new then t.at = now end
  return keep('ok')
end
if verb == 'silent' then
  if is_new then t.at = now end
  if t.state == 'Open' then return answer('ok') end
  t.failures = t.failures + 1
  if t.state == 'Closed' and t.failures < THRESHOLD then return keep('ok') end
  t.pause = t.state == 'Closed' and FIRST or math.min(t.pause * 2, LONGEST)
  t.state, t.since, t['until'] = 'Open', now, now + t.pause
  return keep('opened')
end
return redis.error_reply('no verb ' .. verb)
