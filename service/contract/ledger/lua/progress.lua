-- Record how much of an item is done; the job's progress is the sum over its items.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events
-- ARGV 1 item  2 done, or '' for what it was  3 total or ''  4 unit or ''  5 message or ''
--      6 seconds to the end or '' (of samples: what is left at the job's rate so far)
-- Returns 1, or 0 where the job does not run.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end
if ARGV[2] ~= '' then redis.call('HSET', KEYS[6], ARGV[1], ARGV[2]) end
local done = 0
for _, value in ipairs(redis.call('HVALS', KEYS[6])) do done = done + tonumber(value) end
redis.call('HSET', KEYS[1], 'done', done)
if ARGV[3] ~= '' then redis.call('HSET', KEYS[1], 'total', ARGV[3]) end
if ARGV[4] ~= '' then redis.call('HSET', KEYS[1], 'unit', ARGV[4]) end
if ARGV[5] ~= '' then redis.call('HSET', KEYS[1], 'message', ARGV[5]) end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
if ARGV[2] == '' and done == 0 then
  -- What comes before the first sample (operator norms) is done once: it is no sample's time.
  redis.call('HDEL', KEYS[1], 'work_started')
else
  redis.call('HSETNX', KEYS[1], 'work_started', string.format('%.6f', now))
end
local job = redis.call('HMGET', KEYS[1], 'total', 'work_started', 'unit', 'message')
local eta = ARGV[6]
-- Steps of a training are done in many stretches, which only the worker in hand can time.
if eta == '' and job[3] ~= 'steps' and job[1] and done > 0 and now > tonumber(job[2]) then
  local rate = (now - tonumber(job[2])) / done
  eta = string.format('%.1f', math.max(0, tonumber(job[1]) - done) * rate)
end
redis.call('HSET', KEYS[1], 'eta_s', eta)
redis.call('XADD', KEYS[7], 'MAXLEN', '~', 1000, '*', 'type', 'progress', 'done', done,
  'total', job[1] or '', 'unit', job[3] or '', 'message', job[4] or '', 'eta_s', eta)
return 1
