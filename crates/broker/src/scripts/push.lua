-- push: enqueues messages in their order, as far as their queue takes them.
-- ARGV: prefix, list, messages.
-- Returns: how many of them, the first ones, it took; the most that may wait there, or 0.
local list, last = ARGV[2], #ARGV
local free, most = room(queue_of(list))
if free then last = math.min(last, 2 + free) end
for at = 3, last do redis.call('LPUSH', list, ARGV[at]) end
return { last - 2, most or 0 }
