-- store_result: result documents in a database that is not the broker's.
-- ARGV: prefix, then for each: key, TTL (s), document, '1' if SUCCESS.
for at = 2, #ARGV, 4 do store_result(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3] == '1') end
return (#ARGV - 1) / 4
