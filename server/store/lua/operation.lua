-- What an operation id stood for.
-- KEYS: session, operations, their times. ARGV: clock, operation id, seconds that operations are remembered.
local time = now()
if not read(KEYS[1], time, {}) then
  return {"missing"}
end
local recorded = redis.call("ZSCORE", KEYS[3], ARGV[2])
if not recorded or tonumber(recorded) <= time - tonumber(ARGV[3]) then
  return {"unknown"}
end
return {"found", redis.call("HGET", KEYS[2], ARGV[2])}
