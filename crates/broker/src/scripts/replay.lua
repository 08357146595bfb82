-- replay: what was laid aside goes back to the end of its list, byte for byte, and its deaths are forgotten. Each message
-- is in one of the two places at any time.
-- ARGV: prefix, 'dead' | 'quarantine', queue, stream ids.
-- Returns: for each 'ok' | 'gone' | 'type', and the list.
local kind, queue = ARGV[2], ARGV[3]
local key, out = U .. kind .. ':' .. queue, {}
for at = 4, #ARGV do
  local entry = redis.call('XRANGE', key, ARGV[at], ARGV[at])[1]
  local word, list = 'gone', ''
  if entry then
    local f = {}
    for i = 1, #entry[2], 2 do f[entry[2][i]] = entry[2][i + 1] end
    list = f.list or ''
    -- Of a record that could not be read nobody knows the list.
    if list == '' or string.sub(list, 1, #U) == U then list = P .. queue end
    local pushed = redis.pcall('LPUSH', list, f.raw or '')
    if type(pushed) == 'number' then
      word = 'ok'
      if f.id and f.id ~= '' then redis.call('HDEL', U .. 'att', f.id) end
      took_out(kind, queue, size_of(entry[2]))
      redis.call('XDEL', key, entry[1])
    else
      word = 'type'
    end
  end
  out[#out + 1] = word
  out[#out + 1] = list
end
return out
