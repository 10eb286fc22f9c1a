-- Keep a lease alive.
-- KEYS 1 job  2 free  3 holder  4 tries
-- ARGV 1 item  2 token  3 ttl (s)  4 '1': this try counts as the first
-- Returns {valid, cancel}: valid is 0 once the lease is somebody else's, the item is done or the job has ended.
local job = redis.call('HMGET', KEYS[1], 'status', 'cancel')
local cancel = 0
if job[2] or job[1] == 'cancelled' then cancel = 1 end
if job[1] ~= 'running' then return {0, cancel} end
if redis.call('HGET', KEYS[3], ARGV[1]) ~= ARGV[2] then return {0, cancel} end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
redis.call('ZADD', KEYS[2], 'XX', string.format('%.6f', now + tonumber(ARGV[3])), ARGV[1])
if ARGV[4] == '1' then redis.call('HSET', KEYS[4], ARGV[1], 1) end
return {1, cancel}
