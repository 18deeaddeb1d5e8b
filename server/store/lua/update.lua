-- Changes metadata or lifetime.
-- KEYS: session. ARGV: clock, tenant, ETags, new tag, sealed metadata or "", lifetime, "" for none, or "keep".
local time = now()
local session = read(KEYS[1], time, {"tenant", "tag", "ttl_seconds"})
if not session or session.tenant ~= ARGV[2] then
  return {"missing"}
end
local matched, etag = matches(session, ARGV[3])
if not matched then
  return {"changed", etag}
end
if ARGV[5] ~= "" or ARGV[6] ~= "keep" then
  redis.call("HSET", KEYS[1], "tag", ARGV[4], "version", session.version + 1, "updated_at", seconds(time))
  if ARGV[5] ~= "" then
    redis.call("HSET", KEYS[1], "metadata", ARGV[5])
  end
  local ttl = ARGV[6]
  if ttl == "keep" then
    ttl = session.ttl_seconds or ""
  end
  if ttl ~= "" then
    redis.call("HSET", KEYS[1], "ttl_seconds", ttl, "expires_at", seconds(time + tonumber(ttl)))
  else
    redis.call("HDEL", KEYS[1], "ttl_seconds", "expires_at")
  end
end
return {"found", redis.call("HGETALL", KEYS[1])}
