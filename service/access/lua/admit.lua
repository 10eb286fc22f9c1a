-- Make room for a job that is about to be accepted; create.lua takes the note away again.
-- KEYS 1 open:<owner>  2 entering:<owner>
-- ARGV 1 job id  2 most jobs that have not ended  3 seconds until the note is void
-- Returns 1 where there is room, else 0.
local clock = redis.call('TIME')
local moment = clock[1] + clock[2] / 1000000
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', moment)
-- Notes that a clock which was put back would keep for too long.
local latest = string.format('(%.6f', moment + ARGV[3] + 1)
redis.call('ZREMRANGEBYSCORE', KEYS[2], latest, '+inf')
-- Asked again, for the answer came late: the job's own note does not stand in its way.
if redis.call('ZSCORE', KEYS[2], ARGV[1]) then return 1 end
if redis.call('SCARD', KEYS[1]) + redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZADD', KEYS[2], moment + ARGV[3], ARGV[1])
redis.call('EXPIRE', KEYS[2], 2 * ARGV[3])
return 1
