-- Enter a job; a job that is known already is left alone.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 jobs  9 active  10 status:queued  11 kind:<kind>
-- ARGV 1 id  2 kind  3 submission (JSON)  4 first item
-- Returns 1 where the job was entered, else 0.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'kind', ARGV[2], 'submission', ARGV[3])
redis.call('ZADD', KEYS[2], 0, ARGV[4])
redis.call('ZADD', KEYS[8], 0, ARGV[1])
redis.call('SADD', KEYS[9], ARGV[1])
redis.call('ZADD', KEYS[10], 0, ARGV[1])
redis.call('ZADD', KEYS[11], 0, ARGV[1])
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'status', 'status', 'queued')
return 1
