-- Tells an owner, once until it has looked, that somebody would have its session.
-- KEYS: the owner's list. ARGV: clock, session, milliseconds that the list is kept.
if not redis.call("LPOS", KEYS[1], ARGV[2]) then
  redis.call("RPUSH", KEYS[1], ARGV[2])
end
redis.call("PEXPIRE", KEYS[1], ARGV[3])
return {"told"}
