-- Has those who want the session told that it is busy.
-- KEYS: session. ARGV: clock, fence, seconds.
if redis.call("HGET", KEYS[1], "fence") == ARGV[2] then
  redis.call("HSET", KEYS[1], "declined_until", seconds(now() + tonumber(ARGV[3])))
end
return {"declined"}
