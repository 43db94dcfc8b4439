-- For the listener. Request: model, unit and replicate into filter state, and the offsets of what the candidate's filter
-- replaces. Response: signs x-funicular-id, and notices an answer whose first byte came too late.
local ffi = require "ffi"
local scan, hash = require "scan", require "hash"
local sub, find, format, gmatch = string.sub, string.find, string.format, string.gmatch
local REPLICATE_SEED = 0x66756e6963756c61ULL -- compile/assignment.py has it too; no arm uses it
local CHAT, FEEDBACK = "/chat/completions", "/feedback"

ffi.cdef "struct funicular_time { long s; long ns; }; int clock_gettime(int, struct funicular_time *);"
local clock = ffi.new("struct funicular_time")
local function now()
  ffi.C.clock_gettime(1, clock)
  return tonumber(clock.s) + tonumber(clock.ns) * 1e-9
end

local function refuse(h, code, message, kind)
  h:respond({[":status"] = tostring(code), ["content-type"] = "application/json"},
    '{"error":{"message":"' .. message .. '","type":"invalid_request_error","param":null,"code":"' .. kind .. '"}}')
end

-- "hx-user-id buser hauthorization" -> {{"h", "x-user-id"}, ...}; the same few texts come again and again.
local parsed = {}
local function sources(text)
  local list = parsed[text]
  if not list then
    list = {}
    for kind, name in gmatch(text, "(%a)(%S+)") do list[#list + 1] = {kind, name} end
    parsed[text] = list
  end
  return list
end

local function unit_of(text, headers, first, last)
  local list = sources(text)
  for i = 1, #list do
    local name, value = list[i][2], nil
    if list[i][1] == "h" then value = headers:get(name) elseif first[name] then value = scan.scalar(first[name], last[name]) end
    if value and value ~= "" then return value end
  end
end

local function extract(h, path)
  local began = now()
  local body = h:body()
  if not body then return refuse(h, 400, "The body is empty; a JSON object is expected.", "empty_body") end
  local who = scan.next()
  local first, last, open, twice = scan.top(scan.load(body, who))
  if not first then return refuse(h, 400, "The body is not a JSON object.", "invalid_json") end
  local at = first.model
  if twice then return refuse(h, 400, "The member 'model' appears twice.", "duplicate_model") end
  local model = at and scan.is_string(at) and scan.scalar(at, last.model)
  if not model then return refuse(h, 400, "The member 'model' is missing or is not a string.", "missing_model") end

  local state, chat = h:streamInfo():filterState(), find(path, "?", 1, true)
  chat = sub(path, 1, (chat or 0) - 1) == CHAT
  local a, b = -1, -1                       -- where include_usage goes: over a value, or after the opening brace
  if chat and first.stream and scan.text(first.stream, last.stream) == "true" then
    a, b = first.stream_options or open, last.stream_options or -1
  end
  state:set("fun.edits", "envoy.string", format("%d %d %d %d %d %s", who, at, last.model, a, b, path))
  if not chat then state:set("fun.other", "envoy.string", "1") end
  state:set("fun.model", "envoy.string", model)
  h:clearRouteCache()
  if not chat then return end

  local policy = h:metadata()               -- of the control route, since there is no unit yet
  local units = policy:get("units")
  if not units then return end
  local unit = unit_of(units, h:headers(), first, last)
  if not unit then return state:set("fun.no_unit", "envoy.string", "1") end
  state:set("fun.unit", "envoy.string", unit)
  state:set("fun.replicate", "envoy.string", format("%d", tonumber(hash.xxh64(unit, REPLICATE_SEED) % 64)))
  local bound = policy:get("ttft")
  if bound then state:set("fun.deadline", "envoy.string", format("%.6f", began + bound)) end
  h:clearRouteCache()
end

local M = {}
function M.request(h)
  local headers = h:headers()
  local path = headers:get(":path")
  if headers:get(":method") ~= "POST" or sub(path, 1, 4) ~= "/v1/" then return end
  path = sub(path, 4)
  if path == FEEDBACK then return end
  local done, why = pcall(extract, h, path)
  if not done then h:logErr(why); refuse(h, 500, "The gateway could not read the request.", "internal_error") end
end

function M.response(h)
  local headers = h:headers()
  local id = headers:get("x-funicular-id")
  if not id then return end
  if sub(id, 1, 1) == ";" then headers:remove("x-funicular-id"); return end -- no policy answered
  local state = h:streamInfo():filterState()
  local key = state:get("fun.key")
  if key then headers:replace("x-funicular-id", id .. ";" .. hash.hmac(key, id, 4)) end
  local deadline = state:get("fun.deadline")
  if not deadline then return end
  for _ in h:bodyChunks() do                -- the first piece only; the others pass without us
    if now() > tonumber(deadline) then h:streamInfo():dynamicMetadata():set("fun", "late", "1") end
    break
  end
end
return M
