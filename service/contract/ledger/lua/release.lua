-- Give an item back before its lease runs out.
-- KEYS 1 job  2 free  3 holder  4 tries
-- ARGV 1 item  2 token  3 delay (s)  4 error text or ''
--      5 '1': this try does not count; '2': nor do those before it
-- Returns {valid, tries so far}: valid is 0 where the lease is not the caller's any more.
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return {0, 0} end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('ZADD', KEYS[2], 'XX', string.format('%.6f', now + tonumber(ARGV[3])), ARGV[1])
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'last_error', ARGV[4]) end
if ARGV[5] == '1' then redis.call('HINCRBY', KEYS[4], ARGV[1], -1) end
if ARGV[5] == '2' then redis.call('HDEL', KEYS[4], ARGV[1]) end
return {1, tonumber(redis.call('HGET', KEYS[4], ARGV[1]) or '0')}
