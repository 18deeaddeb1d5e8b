-- Makes the staged snapshot the current one. The journal is trimmed to what the oldest kept snapshot covers.
-- KEYS: session, journal, staged snapshot, pins, own snapshots that nothing of the session will point to any more.
-- ARGV: clock, fence, pointers as the caller read them, new pointer, snapshots to keep, milliseconds that a replaced one is kept.
local session = read(KEYS[1], now(), {"fence", "current", "previous"})
if not session then
  return {"missing"}
end
if session.fence ~= ARGV[2] then
  return {"stale", session.fence}
end
if (session.current or "") ~= ARGV[3] or (session.previous or "") ~= ARGV[4] then
  return {"moved"}
end
if redis.call("EXISTS", KEYS[3]) == 0 then
  return {"late"}
end
redis.call("HSET", KEYS[1], "current", ARGV[5])
redis.call("PERSIST", KEYS[3])
local oldest
if ARGV[6] == "1" then
  redis.call("HDEL", KEYS[1], "previous")
  oldest = position_of(ARGV[5])
elseif session.current then
  redis.call("HSET", KEYS[1], "previous", session.current)
  oldest = position_of(session.current)
end
if oldest then
  redis.call("XTRIM", KEYS[2], "MINID", string.format("%.0f", oldest + 1))
end
-- The caller removes these in a moment. Should it die before, they go by themselves, unless a fork pins them.
for number = 5, #KEYS do
  if not pinned(KEYS[4], KEYS[number]) then
    redis.call("PEXPIRE", KEYS[number], ARGV[7])
  end
end
return {"pointed"}
