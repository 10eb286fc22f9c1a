-- Take requests from a key's bucket, several at once, so that not every request is a write.
-- KEYS 1 rate:<owner>
-- ARGV 1 requests per second  2 size of the bucket  3 most to take
-- Returns {taken, seconds until there is one (text)}; where none is left nothing is
-- written, but for a clock that was put back.
local rate, size = tonumber(ARGV[1]), tonumber(ARGV[2])
local clock = redis.call('TIME')
local moment = clock[1] + clock[2] / 1000000
local held = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local tokens = size
if held[1] then
  if moment < tonumber(held[2]) then
    -- The clock was put back: no key waits until it has caught up.
    held[2] = moment
    redis.call('HSET', KEYS[1], 'at', string.format('%.6f', moment))
  end
  tokens = math.min(size, held[1] + math.max(0, moment - held[2]) * rate)
end
if tokens < 1 then return {0, string.format('%.6f', (1 - tokens) / rate)} end
local taken = math.floor(math.min(tokens, tonumber(ARGV[3])))
redis.call('HSET', KEYS[1], 'tokens', string.format('%.6f', tokens - taken),
  'at', string.format('%.6f', moment))
redis.call('PEXPIRE', KEYS[1], math.ceil(1000 * size / rate) + 1000)
return {taken, '0'}
