-- part: counts a chord's part, as Celery 5.7 does and older versions understand. The last one claims the dispatch.
-- ARGV: prefix, the chord's keys (group, .j parts, .t extra, .s size, .d counted, .c claim), score, part, member of .d,
--       token, TTL of the parts (s), TTL of the claim (s), how it counts: 'all', when all parts are in; 'soon', as soon as
--       one has failed; 'failed', this one has; TTL of the parts of a chord that has ended (s).
-- Returns: 'open' | 'done', a late duplicate | 'claimed', the saved structure or '', then the parts in their order.
-- Of a chord that has ended, parts are kept for a while: its producer may be sending it again under the same ids, which
-- is known only when its last member comes. Celery's workers lose the parts of members that are that fast.
-- A part that was counted before is not counted again, but may still claim: its worker died between part and body.
-- Celery's workers with `result_chord_ordered` off keep the parts in a list, in the order of their ends: then so do we.
local group, parts, extra, size, counted, claim = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local is_done = redis.call('GET', claim) == 'done'
local is_list = redis.call('TYPE', parts).ok == 'list'
if redis.call('SISMEMBER', counted, ARGV[10]) == 0 then
  if is_list then
    redis.call('RPUSH', parts, ARGV[9])
  else
    redis.call('ZADD', parts, ARGV[8], ARGV[9])
  end
  redis.call('SADD', counted, ARGV[10])
end
if is_done then
  for _, key in ipairs({ parts, counted }) do redis.call('EXPIRE', key, ARGV[15]) end
  return { 'done' }
end
-- Told to all parts that come: the first may fail before the chord's size is known.
local is_over = ARGV[14] == 'failed'
if is_over then
  redis.call('SADD', counted, 'failed')
elseif ARGV[14] == 'soon' then
  is_over = redis.call('SISMEMBER', counted, 'failed') == 1
end
for _, key in ipairs({ parts, extra, size, counted, group }) do redis.call('EXPIRE', key, ARGV[12]) end
local wanted = redis.call('GET', size)
if not wanted then return { 'open' } end
local all = number(wanted) + number(redis.call('GET', extra))
if not is_over and redis.call(is_list and 'LLEN' or 'ZCARD', parts) ~= all then return { 'open' } end
local held = redis.call('GET', claim)
if held and held ~= ARGV[11] then return { 'open' } end
redis.call('SET', claim, ARGV[11], 'EX', ARGV[13])
local out = { 'claimed', redis.call('GET', group) or '' }
for _, part in ipairs(redis.call(is_list and 'LRANGE' or 'ZRANGE', parts, 0, -1)) do out[#out + 1] = part end
return out
