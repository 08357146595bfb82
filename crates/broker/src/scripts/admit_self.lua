-- admit_self: a worker that has seen no leader for long opens its own gate, unless a scale-down step is under way.
-- ARGV: prefix, install, worker, pool uid, seconds a leader's heartbeat counts.
-- Returns: 'open' | 'leader' | 'step' | 'unknown'.
local beat = redis.call('GET', U .. 'hb:operator:' .. ARGV[2])
local at = beat and tonumber(string.match(beat, '^([%d%.]+)|'))
local age = at and micros() / 1000000 - at
-- One that is ahead by more than clocks are read apart is from before the server's clock went back.
if age and age > -2 and age < tonumber(ARGV[5]) then return 'leader' end
if redis.call('EXISTS', U .. 'step:' .. ARGV[4]) == 1 then return 'step' end
local g = gate(ARGV[3])
if not g then return 'unknown' end
g.state = 'open'
set_gate(ARGV[3], g)
return 'open'
