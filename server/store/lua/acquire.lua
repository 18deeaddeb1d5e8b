-- Gives the lease, or says who has it and whether to tell them that it is wanted.
-- KEYS: session. ARGV: clock, owner, "server/worker/" of it, seconds, a random number.
local time = now()
local names = {"fence", "owner", "leased_until", "declined_until", "asked_until", "tenant"}
local session = read(KEYS[1], time, names)
if not session then
  return {"missing"}
end
local owner = session.owner
if owner and string.match(owner, "^(.*/)[^/]*$") ~= ARGV[3] and tonumber(session.leased_until) > time then
  local tell = not session.asked_until or tonumber(session.asked_until) <= time
  if tell then
    redis.call("HSET", KEYS[1], "asked_until", seconds(time + 1))
  end
  local busy = session.declined_until and tonumber(session.declined_until) > time
  return {"held", owner, seconds(tonumber(session.leased_until) - time), busy and 1 or 0, tell and 1 or 0}
end
-- Grows with every lease, and past all that a store which lost its newest writes may have given before.
local fence = math.max(tonumber(session.fence) + 1, math.floor(time * 1000000)) + tonumber(ARGV[5])
fence = string.format("%.0f", fence)
redis.call("HSET", KEYS[1], "fence", fence, "owner", ARGV[2], "leased_until", seconds(time + tonumber(ARGV[4])))
redis.call("HDEL", KEYS[1], "declined_until", "asked_until")
return {"given", fence, session.tenant}
