-- Numbers a snapshot that is about to be written, if it would be taken.
-- KEYS: session. ARGV: clock, fence, position.
local session = read(KEYS[1], now(), {"fence", "journaled", "current", "previous", "tenant"})
if not session then
  return {"missing"}
end
if session.fence ~= ARGV[2] then
  return {"stale", session.fence}
end
local position = tonumber(ARGV[3])
if position < 0 or position > tonumber(session.journaled) then
  return {"beyond", session.journaled}
end
if session.current and position < position_of(session.current) then
  return {"older"}
end
local number = redis.call("HINCRBY", KEYS[1], "snapshots", 1)
return {"numbered", number, session.tenant, session.current or "", session.previous or ""}
