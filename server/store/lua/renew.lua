-- Prolongs a lease.
-- KEYS: session. ARGV: clock, fence, seconds.
local time = now()
local session = read(KEYS[1], time, {"fence", "owner"})
if not session then
  return {"missing"}
end
if session.fence ~= ARGV[2] or not session.owner then
  return {"stale", session.fence}
end
redis.call("HSET", KEYS[1], "leased_until", seconds(time + tonumber(ARGV[3])))
return {"renewed"}
