-- Commit an item; the first commit wins, also one whose lease has run out (same input, same result).
-- When nothing is left open, 'merge' becomes the next item.
-- KEYS 1 job  2 free  3 holder  4 tries  5 done  6 progress  7 events  8 line
-- ARGV 1 id  2 item  3 token  4 result  5 total or ''  6 unit or ''  7 new delay (s) or ''
--      8... next items, in their order
-- Returns 'committed' | 'duplicate' | 'finished' | 'unknown'.
local status = redis.call('HGET', KEYS[1], 'status')
if not status then return 'unknown' end
if status ~= 'running' then return 'finished' end
if redis.call('HSETNX', KEYS[5], ARGV[2], ARGV[4]) == 0 then return 'duplicate' end
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('HDEL', KEYS[3], ARGV[2])
local time = redis.call('TIME')
if ARGV[5] ~= '' then
  -- What was counted so far is counted in another unit (a training's steps).
  redis.call('DEL', KEYS[6])
  redis.call('HSET', KEYS[1], 'done', 0, 'total', ARGV[5], 'unit', ARGV[6], 'work_started',
    string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1000000))
end
if ARGV[7] ~= '' then
  local entered = tonumber(redis.call('HGET', KEYS[1], 'entered') or '0')
  redis.call('ZADD', KEYS[8], 'XX', string.format('%.3f', entered + tonumber(ARGV[7])), ARGV[1])
end
for i = 8, #ARGV do
  -- The score is the time from which an item is free: a moment in 1970, in the items' order.
  redis.call('ZADD', KEYS[2], i - 8, ARGV[i])
end
if redis.call('ZCARD', KEYS[2]) == 0 and ARGV[2] ~= 'merge' then
  redis.call('ZADD', KEYS[2], 0, 'merge')
end
return 'committed'
