-- Adds a session with all it begins with, unless there is one.
-- KEYS: session, journal, and the staged snapshot if it has one of its own.
-- ARGV: clock, latest moment or "", lifetime or "", end of the journal, sealed tail or "", a random number,
-- fields and values.
local time = now()
if ARGV[2] ~= "" and time > tonumber(ARGV[2]) then
  return {"late"}
end
local there = redis.call("HGETALL", KEYS[1])
if #there > 0 then
  return {read(KEYS[1], time, {}) and "exists" or "expired", there}
end
if KEYS[3] and redis.call("EXISTS", KEYS[3]) == 0 then
  return {"late"}
end
-- Fences begin with the time: leases of an earlier session of this id, or of a history that was lost, stay void.
redis.call("HSET", KEYS[1], "fence", string.format("%.0f", time * 1000000 + tonumber(ARGV[6])), unpack(ARGV, 7))
if ARGV[3] ~= "" then
  redis.call("HSET", KEYS[1], "ttl_seconds", ARGV[3], "expires_at", seconds(time + tonumber(ARGV[3])))
end
if KEYS[3] then
  redis.call("PERSIST", KEYS[3])
end
if ARGV[5] ~= "" then
  redis.call("XADD", KEYS[2], ARGV[4] .. "-0", "t", ARGV[5])
end
return {"created", redis.call("HGETALL", KEYS[1])}
