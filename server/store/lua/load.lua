-- A session with the tail of its journal, of one moment.
-- KEYS: session, journal.
-- ARGV: clock, pointer to begin behind ("current", "previous"; "" for the whole journal), tenant or "", ETags.
local session = read(KEYS[1], now(), {"tenant", "tag", "current", "previous"})
if not session or (ARGV[3] ~= "" and session.tenant ~= ARGV[3]) then
  return {"missing"}
end
local matched, etag = matches(session, ARGV[4])
if not matched then
  return {"changed", etag}
end
local pointer = session[ARGV[2]]
local from = pointer and position_of(pointer) or 0
local tail = {}
for _, entry in ipairs(redis.call("XRANGE", KEYS[2], string.format("%.0f", from + 1), "+")) do
  table.insert(tail, {entry[1], entry[2][2]})
end
return {"found", redis.call("HGETALL", KEYS[1]), tail}
