-- A write as small as can be: what a full or read-only Redis refuses.
-- KEYS: heartbeat. ARGV: clock.
redis.call("SET", KEYS[1], "1", "PX", 60000)
return {"alive"}
