-- Whether a job with an earlier priority time has waited for long and no worker has it, though
-- this one could.
-- KEYS 1 line
-- ARGV 1 prefix  2 job id  3 least time since it was entered (s)
--      4 devices that the worker owns
-- Returns 1 or 0.
local place = redis.call('ZSCORE', KEYS[1], ARGV[2])
if not place then return 0 end
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local start = 0
while true do
  local page = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. place, 'LIMIT', start, 100)
  if #page == 0 then return 0 end
  start = start + #page
  for _, id in ipairs(page) do
    local job = ARGV[1] .. ':job:' .. id
    local open = redis.call('ZCARD', job .. ':free')
    -- Scores of leased items lie in the future: all that are open must be free.
    local free = redis.call('ZCOUNT', job .. ':free', '-inf', string.format('%.6f', now))
    local entered = tonumber(redis.call('HGET', job, 'entered') or '0')
    if open > 0 and free == open and now - entered >= tonumber(ARGV[3]) then
      local first = redis.call('ZRANGE', job .. ':free', 0, 0)[1]
      local devices = tonumber(redis.call('HGET', job, 'devices') or '1')
      if first ~= 'train' or devices <= tonumber(ARGV[4]) then return 1 end
    end
  end
end
