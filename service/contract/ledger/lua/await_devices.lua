-- Let an open job say what it waits for.
-- KEYS 1 job  2 events
-- ARGV 1 message, or '' where it waits no longer
-- Returns 1 where that is new, else 0.
local job = redis.call('HMGET', KEYS[1], 'status', 'awaits')
if job[1] ~= 'queued' and job[1] ~= 'running' then return 0 end
if (job[2] or '') == ARGV[1] then return 0 end
if ARGV[1] == '' then
  redis.call('HDEL', KEYS[1], 'awaits')
else
  redis.call('HSET', KEYS[1], 'awaits', ARGV[1])
end
local told = redis.call('HMGET', KEYS[1], 'done', 'total', 'unit', 'message', 'eta_s')
local message = ARGV[1]
if message == '' then message = told[4] or '' end
redis.call('XADD', KEYS[2], 'MAXLEN', '~', 1000, '*', 'type', 'progress', 'done', told[1] or 0,
  'total', told[2] or '', 'unit', told[3] or '', 'message', message, 'eta_s', told[5] or '')
return 1
