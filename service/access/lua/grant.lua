-- Allow bytes of an upload before they come.
-- KEYS 1 uploaded:<owner>:<day>
-- ARGV 1 bytes wished for  2 bytes that are of use at least  3 most bytes of a day  4 seconds kept
-- Returns the bytes allowed, or -1 where fewer than ARGV 2 are left.
local left = tonumber(ARGV[3]) - tonumber(redis.call('GET', KEYS[1]) or 0)
if left < tonumber(ARGV[2]) then return -1 end
local granted = math.max(0, math.min(left, tonumber(ARGV[1])))
if granted > 0 then
  redis.call('INCRBY', KEYS[1], string.format('%.0f', granted))
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return granted
