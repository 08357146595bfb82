-- hello: a worker's connection that reserves introduces itself; older reserves of it are refused from now on.
-- ARGV: prefix, worker, '1' when standalone, candidate for the id of this data set, policies as
--       count then (queue, 'max deliveries|result ttl|dead letters kept;their bytes|their age (s)') each, then the lease
--       ids it holds.
-- Returns: epoch, state of the gate, id of the data set, leases handed back, Redis time in microseconds, why results
--          cannot be published or ''.
local worker, standalone = ARGV[2], ARGV[3] == '1'
local at = 6
for _ = 1, tonumber(ARGV[5]) do
  local policy, keep = string.match(ARGV[at + 1], '^([^;]*);?(.*)$')
  redis.call('HSET', U .. 'policy', ARGV[at], policy)
  if keep ~= '' then redis.call('HSET', U .. 'keep', ARGV[at], keep) end
  at = at + 2
end
local g = gate(worker)
if not g then g = { state = standalone and 'open' or 'new', epoch = 0, term = 0, n = 0 } end
g.epoch = g.epoch + 1
set_gate(worker, g)
if not redis.call('GET', U .. 'gen') then redis.call('SET', U .. 'gen', ARGV[4]) end

local named, count = {}, 0
for i = at, #ARGV do
  named[ARGV[i]] = true
  -- Of those that it names some may be over: settled, and the answer was never heard.
  if worker_of(ARGV[i]) == worker and redis.call('ZSCORE', U .. 'lease', ARGV[i]) then count = count + 1 end
end
local back = {}
if number(redis.call('HGET', U .. 'held', 'w:' .. worker)) ~= count then
  for _, lid in ipairs(redis.call('ZRANGE', U .. 'lease', 0, -1)) do
    if worker_of(lid) == worker and not named[lid] then
      back[#back + 1] = { lid = lid, token = tonumber(string.match(lid, ':(%d+)$')) }
    end
  end
  -- The oldest goes back last, so it is taken first again.
  table.sort(back, function(a, b) return a.token > b.token end)
  for _, b in ipairs(back) do
    local list, raw = leased(b.lid)
    -- A list of another type keeps its message leased, and does not keep the worker from all other queues.
    -- One that was acknowledged before its run is never handed back: its lease runs out, and its caller is told.
    if list and not is_early(raw) and pcall(hand_back, b.lid, list, raw) then end_lease(b.lid, list) end
  end
end
local published = publish(P .. 'celery-task-meta-umbel', '')
return { g.epoch, g.state, redis.call('GET', U .. 'gen'), #back, string.format('%.0f', micros()),
  type(published) == 'table' and published.err or '' }
