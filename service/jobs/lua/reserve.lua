-- Take an idempotency key for a job that is about to be journalled, or tell whose it is.
-- KEYS 1 idempotency:<key>  2 memory  3 complete
-- ARGV 1 job id  2 fingerprint  3 ms until an unused reservation is void  4 prefix of job keys
-- Returns {'reserved'} | {'known', job id, fingerprint} | {'recovering'}
local memory = redis.call('GET', KEYS[2])
-- After a loss of data the keys of accepted jobs are not back yet: nobody can say 'unknown'.
if not memory or memory ~= redis.call('GET', KEYS[3]) then return {'recovering'} end
local job = redis.call('HMGET', KEYS[1], 'job', 'fingerprint')
-- A key without end whose job is not there: the job was deleted, and the key with it.
if job[1] and redis.call('PTTL', KEYS[1]) == -1 and redis.call('EXISTS', ARGV[4] .. job[1]) == 0 then
  redis.call('DEL', KEYS[1])
  job = {}
end
if job[1] then return {'known', job[1], job[2] or ''} end
redis.call('HSET', KEYS[1], 'job', ARGV[1], 'fingerprint', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return {'reserved'}
