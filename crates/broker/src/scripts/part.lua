-- part: counts parts of chords, as Celery 5.7 does and older versions understand. The last one claims the dispatch.
-- ARGV: prefix, TTL of the parts (s), TTL of the claim (s), TTL of the parts of a chord that has ended (s), '1' where a
--       chord is complete as soon as one part is no success, then for each chord:
--       its keys (group, .j parts, .t extra, .s size, .d counted, .c claim), number of parts, then for each part:
--       score, part, member of .d, token, '1' if it is no success.
-- Returns for each chord: { 'open' } | { 'done' }, late duplicates | { 'claimed', the place of the part whose token holds
-- the claim, the saved structure or '', then all parts in their order }.
-- Of a chord that has ended, parts are kept for a while: its producer may be sending it again under the same ids, which
-- is known only when its last member comes. Celery's workers lose the parts of members that are that fast.
-- A part that was counted before is not counted again, but may still claim: its worker died between part and body.
-- Celery's workers with `result_chord_ordered` off keep the parts in a list, in the order of their ends: then so do we.
local at, out = 6, {}
while at <= #ARGV do
  local group, parts, extra, size, counted, claim = unpack(ARGV, at, at + 5)
  local n, first = tonumber(ARGV[at + 6]), at + 7
  at = first + 5 * n
  local held = redis.call('GET', claim)
  local is_list = redis.call('TYPE', parts).ok == 'list'
  local added, noted, seen, is_failed = {}, {}, {}, false
  for i = first, at - 1, 5 do
    local member = ARGV[i + 2]
    if not seen[member] and redis.call('SISMEMBER', counted, member) == 0 then
      if not is_list then added[#added + 1] = ARGV[i] end
      added[#added + 1], noted[#noted + 1] = ARGV[i + 1], member
    end
    seen[member] = true
    is_failed = is_failed or ARGV[i + 4] == '1'
  end
  local length = is_list and 'LLEN' or 'ZCARD'
  local before = redis.call(length, parts)
  if #noted > 0 then
    redis.call(is_list and 'RPUSH' or 'ZADD', parts, unpack(added))
    redis.call('SADD', counted, unpack(noted))
  end
  local answer = { 'open' }
  if held == 'done' then
    for _, key in ipairs({ parts, counted }) do redis.call('EXPIRE', key, ARGV[4]) end
    answer[1] = 'done'
  else
    local is_over = false
    if ARGV[5] == '1' then
      -- Told to all parts that come: the first may fail before the chord's size is known.
      if is_failed then redis.call('SADD', counted, 'failed') end
      is_over = is_failed or redis.call('SISMEMBER', counted, 'failed') == 1
    end
    for _, key in ipairs({ parts, extra, size, counted, group }) do redis.call('EXPIRE', key, ARGV[2]) end
    local wanted = redis.call('GET', size)
    if wanted then
      local all, now = number(wanted) + number(redis.call('GET', extra)), redis.call(length, parts)
      -- One by one, the parts of this call would have met a size that is smaller than what they make of it.
      if is_over or now == all or (before < all and all < now) then
        for place = n, 1, -1 do
          local token = ARGV[first + 5 * place - 2]
          if not held or held == token then
            redis.call('SET', claim, token, 'EX', ARGV[3])
            answer = { 'claimed', place, redis.call('GET', group) or '' }
            for _, part in ipairs(redis.call(is_list and 'LRANGE' or 'ZRANGE', parts, 0, -1)) do
              answer[#answer + 1] = part
            end
            break
          end
        end
      end
    end
  end
  out[#out + 1] = answer
end
return out
