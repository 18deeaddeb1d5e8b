-- One whole journal entry: refused before the first write, or written altogether.
-- KEYS: session, journal, operations, their times, generations, their times, sampled tokens.
-- ARGV: see `_arguments` in redis_journal.py, in the order of these locals.
local time = now()
local _, fence, start, finish_at, sealed, silent, etags, tag, open_text, open_tokens, turn, ttl,
  op_id, op_digest, op_record, begun, begun_start, begun_record, begun_finish, sampler, finish = unpack(ARGV)
local forgotten = time - tonumber(ttl)

local session = read(KEYS[1], time, {"fence", "journaled", "tag", "ttl_seconds"})
if not session then
  return {"missing"}
end
if session.fence ~= fence then
  return {"stale", session.fence}
end
if op_id ~= "" then
  local recorded = redis.call("ZSCORE", KEYS[4], op_id)
  if recorded and tonumber(recorded) > forgotten then
    local known = cmsgpack.unpack(redis.call("HGET", KEYS[3], op_id))
    return {known[1] == op_digest and "applied" or "mismatch"}
  end
end
local matched, etag = matches(session, etags)
if not matched then
  return {"changed", etag}
end
if session.journaled ~= start then
  return {"gap", session.journaled}
end
if begun ~= "" and redis.call("HEXISTS", KEYS[5], begun) == 1 then
  return {"begun"}
end
if sampler ~= "" then
  local ended = redis.call("HEXISTS", KEYS[5], sampler .. "|finish") == 1
  if sampler == begun then
    ended = begun_finish ~= ""
  elseif redis.call("HEXISTS", KEYS[5], sampler) == 0 then
    return {"unknown"}
  end
  if ended then
    return {"ended"}
  end
end

-- The first write is one that a full Redis refuses; after it, it refuses none of the others. Tokens come first of all: if a user
-- who lacks a right stops the script, then before anything counts them.
if sealed ~= "" then
  redis.call("XADD", KEYS[2], finish_at .. "-0", "t", sealed)
end
if silent == "" then
  etag = string.format("%.0f", session.version + 1) .. "-" .. tag
  redis.call("HSET", KEYS[1], "version", session.version + 1, "tag", tag, "updated_at", seconds(time), "journaled", finish_at,
    "open_text", open_text, "open_tokens", open_tokens, "turn", turn)
  if session.ttl_seconds then
    redis.call("HSET", KEYS[1], "expires_at", seconds(time + tonumber(session.ttl_seconds)))
  end
end
if op_id ~= "" then
  redis.call("HSET", KEYS[3], op_id, op_record .. cmsgpack.pack(etag))
  redis.call("ZADD", KEYS[4], seconds(time), op_id)
end
if begun ~= "" then
  redis.call("HSET", KEYS[5], begun, begun_record, begun .. "|start", begun_start)
  redis.call("ZADD", KEYS[6], seconds(time), begun)
  if begun_finish ~= "" then
    redis.call("HSET", KEYS[5], begun .. "|finish", begun_finish)
  end
end
if sampler ~= "" then
  redis.call("ZADD", KEYS[6], seconds(time), sampler)
  if sealed ~= "" then
    redis.call("XADD", KEYS[7], finish_at .. "-0", "g", sampler, "t", sealed)
    redis.call("HSET", KEYS[5], sampler .. "|end", finish_at)
  end
  if finish ~= "" then
    redis.call("HSET", KEYS[5], sampler .. "|finish", finish)
  end
end

-- What is too old goes a few at a time; the keys go altogether when nothing new comes.
for _, old in ipairs(redis.call("ZRANGEBYSCORE", KEYS[4], "-inf", forgotten, "LIMIT", 0, 16)) do
  redis.call("HDEL", KEYS[3], old)
  redis.call("ZREM", KEYS[4], old)
end
for _, old in ipairs(redis.call("ZRANGEBYSCORE", KEYS[6], "-inf", forgotten, "LIMIT", 0, 4)) do
  local range = redis.call("HMGET", KEYS[5], old .. "|start", old .. "|end")
  if range[2] then
    for _, entry in ipairs(redis.call("XRANGE", KEYS[7], range[1], range[2])) do
      if entry[2][2] == old then
        redis.call("XDEL", KEYS[7], entry[1])
      end
    end
  end
  redis.call("HDEL", KEYS[5], old, old .. "|start", old .. "|end", old .. "|finish")
  redis.call("ZREM", KEYS[6], old)
end
if op_id ~= "" or begun ~= "" or sampler ~= "" then
  for number = 3, 7 do
    redis.call("PEXPIRE", KEYS[number], string.format("%.0f", (tonumber(ttl) + 60) * 1000))
  end
end
return {"written", etag}
