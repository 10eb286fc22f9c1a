-- Lease the first free item of a job, by this server's clock.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 status:queued  9 status:running
-- ARGV 1 id  2 ttl (s)  3 most tries  4 worker
-- Returns {'leased', item, token, tries} | {'busy', seconds until the next item may be free}
--       | {'exhausted', item, tries, last error} | {'cancelled'} | {'finished'} | {'unknown'}
local job = redis.call('HMGET', KEYS[1], 'status', 'cancel')
if not job[1] then return {'unknown'} end
if job[1] ~= 'queued' and job[1] ~= 'running' then return {'finished'} end
if job[2] then return {'cancelled'} end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local free = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', string.format('%.6f', now), 'LIMIT', 0, 1)
if #free == 0 then
  local next = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if #next == 0 then return {'busy', '1'} end
  return {'busy', string.format('%.3f', tonumber(next[2]) - now)}
end
local item = free[1]
local tries = tonumber(redis.call('HGET', KEYS[4], item) or '0')
if tries >= tonumber(ARGV[3]) then
  return {'exhausted', item, tries, redis.call('HGET', KEYS[1], 'last_error') or ''}
end
tries = redis.call('HINCRBY', KEYS[4], item, 1)
-- One counter per job: a token names one lease of one item, and later leases have larger ones.
local token = redis.call('HINCRBY', KEYS[1], 'token', 1)
redis.call('HSET', KEYS[3], item, token)
redis.call('ZADD', KEYS[2], string.format('%.6f', now + tonumber(ARGV[2])), item)
redis.call('HSET', KEYS[1], 'worker', ARGV[4])
redis.call('HDEL', KEYS[1], 'awaits')
if job[1] == 'queued' then
  redis.call('HSET', KEYS[1], 'status', 'running', 'started_at', string.format('%.6f', now))
  redis.call('ZREM', KEYS[8], ARGV[1])
  redis.call('ZADD', KEYS[9], 0, ARGV[1])
  redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'status', 'status', 'running')
end
return {'leased', item, token, tries}
