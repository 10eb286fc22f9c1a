-- The first scheduled job with a free item that a worker can do; removes ended jobs from the
-- schedule.
-- KEYS 1 line
-- ARGV 1 prefix  2 devices that the worker owns  3... jobs to pass over
-- Returns {job id, ''} | {'', seconds until the next item may be free, or '' where nothing is open}
local time = redis.call('TIME')
local now = tonumber(time[1]) + tonumber(time[2]) / 1000000
local passed = {}
for i = 3, #ARGV do passed[ARGV[i]] = true end
local owned = tonumber(ARGV[2])
-- Only a training needs several devices; it has no other item beside it.
local function enough(job, item)
  return item ~= 'train' or tonumber(redis.call('HGET', job, 'devices') or '1') <= owned
end
local soonest = nil
local start = 0
while true do
  local page = redis.call('ZRANGE', KEYS[1], start, start + 99)
  if #page == 0 then break end
  start = start + #page
  for _, id in ipairs(page) do
    local job = ARGV[1] .. ':job:' .. id
    local first = redis.call('ZRANGE', job .. ':free', 0, 0, 'WITHSCORES')
    if #first > 0 and not passed[id] and enough(job, first[1]) then
      local at = tonumber(first[2])
      if at <= now then return {id, ''} end
      if not soonest or at < soonest then soonest = at end
    elseif #first == 0 then
      local status = redis.call('HGET', job, 'status')
      if status ~= 'queued' and status ~= 'running' then
        redis.call('ZREM', KEYS[1], id)
        start = start - 1
      end
    end
  end
end
if not soonest then return {'', ''} end
return {'', string.format('%.3f', soonest - now)}
