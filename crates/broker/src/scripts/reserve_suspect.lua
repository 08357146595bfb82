-- reserve_suspect: takes one message that has killed a worker before, only for a worker that holds nothing else, so
-- that no neighbour is blamed.
-- ARGV: prefix, worker, epoch, lease (s), install, queues.
-- Returns: 'ok', term, token, list, message, Redis time in seconds | 'none' | 'busy' | 'epoch' | 'gate' | 'unknown'.
local worker = ARGV[2]
local g = gate(worker)
if not g then return { 'unknown' } end
if g.epoch ~= tonumber(ARGV[3]) then return { 'epoch' } end
if g.state ~= 'open' then return { 'gate' } end
if number(redis.call('HGET', U .. 'held', 'w:' .. worker)) > 0 then return { 'busy' } end
-- Before anything is written: what is taken without its worker hearing of it costs the message a delivery.
local term = ARGV[5] ~= '' and redis.call('GET', U .. 'term:' .. ARGV[5]) or '0'
for i = 6, #ARGV do
  local suspects = U .. 'suspect:' .. ARGV[i]
  local rec = redis.call('LINDEX', suspects, -1)
  if rec and redis.call('EXISTS', U .. 'limited') == 1 then
    local policy = redis.call('HMGET', U .. 'queue:' .. ARGV[i], 'paused', 'max_in_flight')
    local most = tonumber(policy[2] or '')
    local is_full = most and number(redis.call('HGET', U .. 'held', 'q:' .. ARGV[i])) >= most
    if policy[1] == '1' or is_full then rec = nil end
  end
  if rec then
    local list, raw = unrecord(rec)
    local token = math.max(number(redis.call('GET', U .. 'fence')) + 1, micros())
    local lid = worker .. ':' .. string.format('%.0f', token)
    redis.call('HSET', U .. 'unacked', lid, rec)
    redis.call('ZADD', U .. 'lease', seconds(micros() + tonumber(ARGV[4]) * 1000000), lid)
    redis.call('HINCRBY', U .. 'held', 'w:' .. worker, 1)
    redis.call('HINCRBY', U .. 'held', 'q:' .. queue_of(list), 1)
    redis.call('SET', U .. 'fence', string.format('%.0f', token))
    redis.call('DEL', U .. 'taker:' .. ARGV[i])
    redis.call('RPOP', suspects)
    return { 'ok', term or '0', string.format('%.0f', token), list, raw, seconds(micros()) }
  end
end
return { 'none' }
