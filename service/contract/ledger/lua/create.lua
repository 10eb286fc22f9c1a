-- Enter a job; a job that is known already, or deleted, is left alone.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 jobs  9 active  10 status:queued  11 kind:<kind>  12 owner:<principal>
--      13 open:<principal>  14 deleted:<id>  15 line  16 idempotency:<key> or ''
--      17 entering:<principal>
-- ARGV 1 id  2 kind  3 submission (JSON)  4 first item  5 principal  6 attempt
--      7 fingerprint  8 result key or ''  9 entered at (s)  10 priority time (s)
--      11 devices that its training needs
-- Returns 1 where the job was entered, else 0.
redis.call('ZREM', KEYS[17], ARGV[1])
if redis.call('EXISTS', KEYS[1], KEYS[14]) > 0 then return 0 end
redis.call('HSET', KEYS[1], 'status', 'queued', 'kind', ARGV[2], 'submission', ARGV[3],
  'principal', ARGV[5], 'attempt', ARGV[6], 'result_key', ARGV[8], 'entered', ARGV[9],
  'devices', ARGV[11])
redis.call('ZADD', KEYS[15], ARGV[10], ARGV[1])
redis.call('ZADD', KEYS[2], 0, ARGV[4])
redis.call('ZADD', KEYS[8], 0, ARGV[1])
redis.call('SADD', KEYS[9], ARGV[1])
redis.call('ZADD', KEYS[10], 0, ARGV[1])
redis.call('ZADD', KEYS[11], 0, ARGV[1])
redis.call('ZADD', KEYS[12], 0, ARGV[1])
redis.call('SADD', KEYS[13], ARGV[1])
if KEYS[16] ~= '' then
  redis.call('HSET', KEYS[1], 'idempotency', KEYS[16])
  local job = redis.call('HGET', KEYS[16], 'job')
  -- Of two jobs with one key (a reservation that ran out) the first one keeps it.
  if not job or job == ARGV[1] then
    redis.call('HSET', KEYS[16], 'job', ARGV[1], 'fingerprint', ARGV[7])
    redis.call('PERSIST', KEYS[16])
  end
end
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'status', 'status', 'queued')
return 1
