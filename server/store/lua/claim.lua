-- Ties an operation to the session it makes, unless it was tied before.
-- KEYS: claim. ARGV: clock, digest, session, seconds that operations are remembered.
local time = now()
local known = redis.call("HMGET", KEYS[1], "digest", "session", "answer", "at")
if known[4] and tonumber(known[4]) > time - tonumber(ARGV[4]) then
  return {known[1] == ARGV[2] and "claimed" or "mismatch", known[2], known[3]}
end
redis.call("HSET", KEYS[1], "digest", ARGV[2], "session", ARGV[3], "at", seconds(time))
redis.call("HDEL", KEYS[1], "answer")
redis.call("PEXPIRE", KEYS[1], string.format("%.0f", (tonumber(ARGV[4]) + 60) * 1000))
return {"claimed", ARGV[3], false}
