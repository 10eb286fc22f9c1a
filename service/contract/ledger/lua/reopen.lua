-- Begin a later attempt of a job. The counter of tokens stays: a straggler's lease is never valid.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 active  9 open:<principal>  10 line  11 status:queued  12... the other status:<status>
-- ARGV 1 id  2 submission (JSON)  3 first item  4 attempt  5 entered at (s)  6 priority time (s)
--      7 devices that its training needs
-- Returns 1 where the attempt is new, else 0 (also where there is no such job).
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local known = redis.call('HGET', KEYS[1], 'attempt') or '1'
if tonumber(known) >= tonumber(ARGV[4]) then return 0 end
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7])
redis.call('HDEL', KEYS[1], 'error', 'started_at', 'finished_at', 'done', 'total', 'unit',
  'message', 'eta_s', 'work_started', 'last_error', 'cancel', 'model_id', 'worker',
  'awaits')
redis.call('HSET', KEYS[1], 'status', 'queued', 'submission', ARGV[2], 'attempt', ARGV[4],
  'entered', ARGV[5], 'devices', ARGV[7])
redis.call('ZADD', KEYS[10], ARGV[6], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[3])
for i = 12, #KEYS do redis.call('ZREM', KEYS[i], ARGV[1]) end
redis.call('ZADD', KEYS[11], 0, ARGV[1])
redis.call('SADD', KEYS[8], ARGV[1])
redis.call('SADD', KEYS[9], ARGV[1])
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'status', 'status', 'queued')
return 1
