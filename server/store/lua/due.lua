-- Work that is due.
-- KEYS: work list. ARGV: clock, most.
return redis.call("ZRANGEBYSCORE", KEYS[1], "-inf", seconds(now()), "LIMIT", 0, ARGV[2])
