-- Remove every trace of a job, whatever its state.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
--      8 jobs  9 active  10 deleted:<id>  11 line
-- ARGV 1 id  2 prefix  3... all statuses
-- The names of further keys stand in the job itself: kind, owner, idempotency key, result.
local job = redis.call('HMGET', KEYS[1], 'kind', 'principal', 'idempotency', 'result_key')
redis.call('DEL', unpack(KEYS, 1, 7))
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('SREM', KEYS[9], ARGV[1])
redis.call('ZREM', KEYS[11], ARGV[1])
redis.call('SET', KEYS[10], '1', 'EX', 3600)
for i = 3, #ARGV do redis.call('ZREM', ARGV[2] .. ':status:' .. ARGV[i], ARGV[1]) end
if job[1] then redis.call('ZREM', ARGV[2] .. ':kind:' .. job[1], ARGV[1]) end
if job[2] then
  redis.call('ZREM', ARGV[2] .. ':owner:' .. job[2], ARGV[1])
  redis.call('SREM', ARGV[2] .. ':open:' .. job[2], ARGV[1])
end
if job[3] and redis.call('HGET', job[3], 'job') == ARGV[1] then redis.call('DEL', job[3]) end
if job[4] and job[4] ~= '' then
  local result = ARGV[2] .. ':result:' .. job[4]
  if redis.call('GET', result) == ARGV[1] then redis.call('DEL', result) end
end
return 1
