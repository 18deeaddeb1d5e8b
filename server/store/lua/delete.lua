-- Removes a session and all that is only its own. Snapshots that a fork has pinned stay, and the pins with them.
-- KEYS: session, pins, times of its generations, its own snapshots, then every other key of it.
-- ARGV: clock, tenant, or "" to delete it only if it has expired, ETags, pointers as the caller read them, count of own snapshots.
local time = now()
local session = read(KEYS[1], time, {"tenant", "tag"})
if ARGV[2] ~= "" then
  if not session or session.tenant ~= ARGV[2] then
    return {"missing"}
  end
  local matched, etag = matches(session, ARGV[3])
  if not matched then
    return {"changed", etag}
  end
elseif session then
  return {"alive", session.expires_at}
end
local fields = redis.call("HMGET", KEYS[1], "tenant", "current", "previous")
if not fields[1] then
  return {"missing"}
end
if (fields[2] or "") ~= ARGV[4] or (fields[3] or "") ~= ARGV[5] then
  return {"moved"}
end
local generations = redis.call("ZRANGE", KEYS[3], 0, -1)
local own = tonumber(ARGV[6])
for number = 4, #KEYS do
  if number > 3 + own or not pinned(KEYS[2], KEYS[number]) then
    redis.call("UNLINK", KEYS[number])
  end
end
redis.call("UNLINK", KEYS[1], KEYS[3])
return {"deleted", fields[1], generations}
