-- Ids of a tenant's sessions behind one of them, in order.
-- KEYS: index. ARGV: clock, "asc" or "desc", count, id to begin behind or "", its creation time.
local rank = redis.call(ARGV[2] == "asc" and "ZRANK" or "ZREVRANK", KEYS[1], ARGV[4])
if not rank then
  -- It went since the page before: begin where its time was.
  rank = -1
  if ARGV[4] ~= "" then
    local before = ARGV[2] == "asc" and {"-inf", "(" .. ARGV[5]} or {"(" .. ARGV[5], "+inf"}
    rank = redis.call("ZCOUNT", KEYS[1], before[1], before[2]) - 1
  end
end
return redis.call(ARGV[2] == "asc" and "ZRANGE" or "ZREVRANGE", KEYS[1], rank + 1, rank + tonumber(ARGV[3]), "WITHSCORES")
