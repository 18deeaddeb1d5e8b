-- Takes back a pin, if one is named, and removes the snapshot if nobody points to it any more.
-- KEYS: pins, snapshot, session that wrote it. ARGV: clock, session that pinned it or "".
if ARGV[2] ~= "" then
  redis.call("ZREM", KEYS[1], KEYS[2] .. " " .. ARGV[2])
end
local pointers = redis.call("HMGET", KEYS[3], "current", "previous")
if key_of(pointers[1]) ~= KEYS[2] and key_of(pointers[2]) ~= KEYS[2] and not pinned(KEYS[1], KEYS[2]) then
  redis.call("UNLINK", KEYS[2])
end
return {"unpinned"}
