-- Puts something on a list of work, due after some seconds, unless it is due earlier. Returns what time it is.
-- KEYS: work list. ARGV: clock, member, seconds, "LT" to leave an earlier time as it is, "" to set the time anew.
local time = now()
local due = seconds(time + tonumber(ARGV[3]))
local known = redis.call("ZSCORE", KEYS[1], ARGV[2])
if not known or ARGV[4] == "" or tonumber(known) > tonumber(due) then
  redis.call("ZADD", KEYS[1], due, ARGV[2])
end
return {seconds(time)}
