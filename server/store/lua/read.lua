-- The fields of a session.
-- KEYS: session. ARGV: clock.
if not read(KEYS[1], now(), {}) then
  return {"missing"}
end
return {"found", redis.call("HGETALL", KEYS[1])}
