-- sweep: which leases are overdue, if it is safe to say so now.
-- ARGV: prefix, lease (s), longest reconnect back-off (s), least time between two sweeps (s), limit,
--       run id of the server, this sweeper's last Redis time (s, or '') and the seconds of its own clock since.
-- Returns: 'skip' | 'grace', until, reason | 'ok', now, then lease id and record of each overdue lease.
-- Grace: nobody swept for half a lease, the server or its data was replaced, or its clock jumped: leases may look
-- overdue although their holders are alive and only could not renew.
local now = micros() / 1000000
local lease, backoff = tonumber(ARGV[2]), tonumber(ARGV[3])
local key = U .. 'sweep'
local last = tonumber(redis.call('HGET', key, 'last') or '-1')
local until_ = tonumber(redis.call('HGET', key, 'grace') or '0')
local run = redis.call('HGET', key, 'run')
local reason
if last < 0 then
  reason = 'first sweep of this data set'
elseif now < last - 2 then
  reason = 'the clock of the server went back'
elseif now - last > math.max(lease / 2, 1) then
  reason = 'nobody swept for half a lease'
elseif run ~= ARGV[6] then
  reason = 'the server was restarted or replaced'
elseif ARGV[7] ~= '' and math.abs(now - tonumber(ARGV[7]) - tonumber(ARGV[8])) > 2 then
  reason = 'the clock of the server jumped'
end
if not reason and now - last < tonumber(ARGV[4]) then return { 'skip' } end
redis.call('HSET', key, 'last', string.format('%.6f', now), 'run', ARGV[6])
if reason then
  until_ = now + lease + backoff
  redis.call('HSET', key, 'grace', string.format('%.6f', until_), 'reason', reason)
end
if now < until_ then return { 'grace', string.format('%.6f', until_), reason or '', string.format('%.6f', now) } end
local out = { 'ok', string.format('%.6f', now) }
local lids = redis.call('ZRANGEBYSCORE', U .. 'lease', '-inf', string.format('%.6f', now), 'LIMIT', 0, tonumber(ARGV[5]))
for _, lid in ipairs(lids) do
  out[#out + 1] = lid
  out[#out + 1] = redis.call('HGET', U .. 'unacked', lid) or ''
end
return out
