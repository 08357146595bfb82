-- aside: a page of what was laid aside. Reads about 256 KiB at most, so that nobody waits.
-- ARGV: prefix, 'dead' | 'quarantine', queue, first stream id, last stream id, '1' for the newest first, most entries,
--       '1' with the messages, a task id that they must have or ''.
-- Returns: the id to go on from or '' at the end, then for each entry: stream id, reason, task id, task name, attempts,
--          list, bytes of the message, the message or ''.
local key, first, last, is_reverse = U .. ARGV[2] .. ':' .. ARGV[3], ARGV[4], ARGV[5], ARGV[6] == '1'
local most, has_raw, id = tonumber(ARGV[7]), ARGV[8] == '1', ARGV[9]
local BYTES, CHUNK, LARGE = 262144, 64, 16384
local out, seen, read, chunk = { '' }, 0, 0, 1
local from = is_reverse and last or first
while true do
  local want = math.min(chunk, most - seen)
  local entries
  if is_reverse then
    entries = redis.call('XREVRANGE', key, from, first, 'COUNT', want)
  else
    entries = redis.call('XRANGE', key, from, last, 'COUNT', want)
  end
  chunk = math.min(2 * chunk, CHUNK)
  for _, entry in ipairs(entries) do
    local f = {}
    for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
    local raw = f.raw or ''
    read = read + #raw
    if #raw > LARGE then chunk = 1 end
    if id == '' or f.id == id then
      for _, value in ipairs({ entry[1], f.reason or '', f.id or '', f.task or '', f.attempts or '0', f.list or '',
        #raw, has_raw and raw or '' }) do
        out[#out + 1] = value
      end
    end
    from = '(' .. entry[1]
  end
  seen = seen + #entries
  if #entries < want then return out end
  if seen >= most or read >= BYTES then
    out[1] = from
    return out
  end
end
