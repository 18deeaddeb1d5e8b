-- Ends a lease; its fence stays the newest.
-- KEYS: session. ARGV: clock, fence.
if redis.call("HGET", KEYS[1], "fence") == ARGV[2] then
  redis.call("HDEL", KEYS[1], "owner", "leased_until", "declined_until", "asked_until")
end
return {"released"}
