-- End an attempt of a job, once: a terminal state never changes but by a later attempt.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 active  9 status:queued  10 status:running  11 status:<new status>  12 line
-- ARGV 1 id  2 new status  3 error (JSON) or ''  4 started_at or ''  5 finished_at
--      6 seconds to keep the events  7 model id or ''  8 samples done or ''  9 attempt  10 prefix
-- The names of further keys stand in the job itself: owner, result.
-- Returns the job's status afterwards ('unknown' where there is no job).
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if status ~= 'queued' and status ~= 'running' then return status end
local job = redis.call('HMGET', KEYS[1], 'attempt', 'principal', 'result_key')
if (job[1] or '1') ~= ARGV[9] then return status end
redis.call('HSET', KEYS[1], 'status', ARGV[2], 'finished_at', ARGV[5], 'eta_s', '')
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'error', ARGV[3]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'started_at', ARGV[4]) end
if ARGV[7] ~= '' then redis.call('HSET', KEYS[1], 'model_id', ARGV[7]) end
if ARGV[8] ~= '' then redis.call('HSET', KEYS[1], 'done', ARGV[8], 'total', ARGV[8]) end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6])
redis.call('SREM', KEYS[8], ARGV[1])
redis.call('ZREM', KEYS[12], ARGV[1])
redis.call('ZREM', KEYS[9], ARGV[1])
redis.call('ZREM', KEYS[10], ARGV[1])
redis.call('ZADD', KEYS[11], 0, ARGV[1])
redis.call('SREM', ARGV[10] .. ':open:' .. (job[2] or ''), ARGV[1])
if ARGV[2] == 'succeeded' and job[3] and job[3] ~= '' then
  redis.call('SET', ARGV[10] .. ':result:' .. job[3], ARGV[1])
end
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'status', 'status', ARGV[2])
redis.call('EXPIRE', KEYS[7], ARGV[6])
return ARGV[2]
