-- Keeps the first answer of a claimed operation.
-- KEYS: claim. ARGV: clock, sealed answer.
if redis.call("EXISTS", KEYS[1]) == 1 then
  redis.call("HSETNX", KEYS[1], "answer", ARGV[2])
end
return {"settled"}
