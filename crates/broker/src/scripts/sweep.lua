-- sweep: which leases are overdue, if it is safe to say so now.
-- ARGV: prefix, lease (s), longest reconnect back-off (s), least time between two sweeps (s), limit,
--       this sweeper's last Redis time (s, or '') and the seconds of its own clock since.
-- Returns: 'skip' | 'grace', until, reason | 'ok', now, then lease id and record of each overdue lease.
-- Grace: nobody swept for half a lease, the server or its data was replaced, or its clock jumped: leases may look
-- overdue although their holders are alive and only could not renew.
-- The server is asked for its run id here and not by the sweepers: one that missed a restart (its connection was
-- re-established by somebody else's call) would go on contradicting the others, and the grace would never end.
local now = micros() / 1000000
local lease, backoff = tonumber(ARGV[2]), tonumber(ARGV[3])
local key, BEAT = U .. 'sweep', 15000 -- A heartbeat's time to live, in milliseconds.
local last = number(redis.call('HGET', key, 'last') or '-1')
local until_ = number(redis.call('HGET', key, 'grace'))
-- The longest lease that anybody gives who sweeps here; one of whom nothing was heard for so long counts no more.
local longest, told = number(redis.call('HGET', key, 'longest')), number(redis.call('HGET', key, 'told'))
if lease >= longest or now - told > longest + backoff then
  longest = lease
  redis.call('HSET', key, 'longest', longest, 'told', string.format('%.0f', now))
end
local reason
if last < 0 then
  reason = 'first sweep of this data set'
elseif now < last - 2 then
  reason = 'the clock of the server went back'
  -- Until then there may be leases that were given by the clock as it was.
  redis.call('HSET', key, 'back', string.format('%.6f', last + longest), 'left', '0', 'told', string.format('%.0f', now))
  -- Heartbeats of before live on by as much. Who lives replaces his own.
  for _, worker in ipairs(redis.call('HKEYS', U .. 'workers')) do
    local beat = U .. 'hb:worker:' .. worker
    if redis.call('PTTL', beat) > BEAT then redis.call('PEXPIRE', beat, BEAT) end
  end
elseif ARGV[6] ~= '' and math.abs(now - tonumber(ARGV[6]) - tonumber(ARGV[7])) > 2 then
  -- Before the gap: after a jump ahead it looks as if nobody had swept.
  reason = 'the clock of the server jumped'
elseif now - last > math.max(lease / 2, 1) then
  reason = 'nobody swept for half a lease'
end
-- What the sweep before has left to workers of other queues, one of these may have come for.
local is_left = number(redis.call('HGET', key, 'left')) >= last
if not reason and not is_left and now - last < tonumber(ARGV[4]) then return { 'skip' } end
-- Only now, as it costs more than all else: whoever skips takes nothing back.
local info = redis.pcall('INFO', 'server') -- An ACL may refuse it: restarts are then seen by the gap between sweeps only.
local server, run = type(info) == 'string' and string.match(info, 'run_id:(%x+)'), redis.call('HGET', key, 'run')
if not reason and server and run and run ~= server then reason = 'the server was restarted or replaced' end
redis.call('HSET', key, 'last', string.format('%.6f', now))
if server then redis.call('HSET', key, 'run', server) end
if reason then
  until_ = now + lease + backoff
  redis.call('HSET', key, 'grace', string.format('%.6f', until_), 'reason', reason)
end
-- A lease that ends later than any may is one from before the clock went back. Who lives renews it; that of a worker
-- without a heartbeat would outlive it by as much as the clock went back.
if now < number(redis.call('HGET', key, 'back')) then
  local ahead = string.format('(%.6f', now + longest + 2)
  local alive, shorter = {}, {}
  for _, lid in ipairs(redis.call('ZRANGEBYSCORE', U .. 'lease', ahead, '+inf', 'LIMIT', 0, 1000)) do
    local worker = worker_of(lid)
    if alive[worker] == nil then alive[worker] = redis.call('EXISTS', U .. 'hb:worker:' .. worker) == 1 end
    if not alive[worker] then
      shorter[#shorter + 1] = string.format('%.6f', now + longest)
      shorter[#shorter + 1] = lid
    end
  end
  if #shorter > 0 then redis.call('ZADD', U .. 'lease', 'XX', unpack(shorter)) end
end
if now < until_ then return { 'grace', string.format('%.6f', until_), reason or '', string.format('%.6f', now) } end
local out = { 'ok', string.format('%.6f', now) }
local lids = redis.call('ZRANGEBYSCORE', U .. 'lease', '-inf', string.format('%.6f', now), 'LIMIT', 0, tonumber(ARGV[5]))
for _, lid in ipairs(lids) do
  out[#out + 1] = lid
  out[#out + 1] = redis.call('HGET', U .. 'unacked', lid) or ''
end
return out
