-- A generation, and the tokens sampled since it began, each with the position it ends at.
-- KEYS: session, generations, their times, sampled tokens. ARGV: clock, generation id, seconds that generations are remembered.
local time = now()
local session = read(KEYS[1], time, {"tenant"})
local recorded = redis.call("ZSCORE", KEYS[3], ARGV[2])
if not session or not recorded or tonumber(recorded) <= time - tonumber(ARGV[3]) then
  return {"unknown"}
end
local id = ARGV[2]
local fields = redis.call("HMGET", KEYS[2], id, id .. "|start", id .. "|end", id .. "|finish")
local sampled = {}
if fields[3] then
  for _, entry in ipairs(redis.call("XRANGE", KEYS[4], fields[2], fields[3])) do
    if entry[2][2] == id then
      table.insert(sampled, {entry[1], entry[2][4]})
    end
  end
end
return {"found", session.tenant, fields[1], fields[4] or "", sampled}
