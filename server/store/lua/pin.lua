-- Keeps a snapshot for a session that is going to point to it. The snapshot may have been replaced a moment ago.
-- KEYS: pins, snapshot. ARGV: clock, session that will point to it.
if redis.call("EXISTS", KEYS[2]) == 0 then
  return {"missing"}
end
redis.call("ZADD", KEYS[1], 0, KEYS[2] .. " " .. ARGV[2])
redis.call("PERSIST", KEYS[2])
return {"pinned"}
