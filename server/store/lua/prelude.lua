-- Stands before every script. ARGV[1] is a test's clock in seconds, or empty: then time is this server's own, so that no
-- client whose clock jumps can expire anything.

local function now()
  if ARGV[1] ~= "" then
    return tonumber(ARGV[1])
  end
  local time = redis.call("TIME")
  return tonumber(time[1]) + tonumber(time[2]) / 1000000
end

local function seconds(number)
  return string.format("%.6f", number)
end

-- Fields of the session by name, `version` and `expires_at` always among them; nil when it is not there or has expired.
local function read(key, time, names)
  local values = redis.call("HMGET", key, "version", "expires_at", unpack(names))
  if not values[1] or (values[2] and tonumber(values[2]) <= time) then
    return nil
  end
  local found = {version = values[1], expires_at = values[2]}
  for number, name in ipairs(names) do
    found[name] = values[number + 2]
  end
  return found
end

-- `wanted` is "any", or ETags with a line feed before and behind each.
local function matches(session, wanted)
  local etag = session.version .. "-" .. session.tag
  return wanted == "any" or string.find(wanted, "\n" .. etag .. "\n", 1, true) ~= nil, etag
end

-- A pointer is "<position> <number> <session that wrote it> <key>".
local function position_of(pointer)
  return tonumber(string.match(pointer, "^%d+"))
end

local function key_of(pointer)
  return pointer and string.match(pointer, "^%d+ %d+ [^ ]+ (.+)$")
end

-- Members of `pins` are "<snapshot key> <session that points to it>".
local function pinned(pins, snapshot)
  return #redis.call("ZRANGEBYLEX", pins, "[" .. snapshot .. " ", "(" .. snapshot .. "!", "LIMIT", 0, 1) > 0
end
