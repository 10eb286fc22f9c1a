-- What the reconciler wants to know of a job; changes nothing.
-- KEYS 1 job  2 free  3 holder  4 tries
-- ARGV 1 most tries
-- Returns {status or '', number of free items, number of leased items, exhausted item or '',
--          its tries, last error or '', devices that the free items need, what it waits for or ''}.
local job = redis.call('HMGET', KEYS[1], 'status', 'last_error', 'devices', 'awaits')
local time = redis.call('TIME')
local now = string.format('%.6f', tonumber(time[1]) + tonumber(time[2]) / 1000000)
local free = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now)
local leased = redis.call('ZCARD', KEYS[2]) - #free
local exhausted = ''
local most = 0
-- Only items that were tried are in the hash: few.
for _, item in ipairs(redis.call('HKEYS', KEYS[4])) do
  local tries = tonumber(redis.call('HGET', KEYS[4], item))
  if tries >= tonumber(ARGV[1]) then
    local score = redis.call('ZSCORE', KEYS[2], item)
    if score and tonumber(score) <= tonumber(now) then
      exhausted = item
      most = tries
    end
  end
end
-- Only a training needs several; it has no other item beside it.
local devices = free[1] == 'train' and job[3] or '1'
return {job[1] or '', #free, leased, exhausted, most, job[2] or '', devices, job[4] or ''}
