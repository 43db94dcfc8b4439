-- For the listener. Request: model, unit and replicate into filter state, and the offsets of what the candidate's filter
-- replaces. Response: signs x-funicular-id, and notices an answer whose first byte came too late.
local ffi = require "ffi"
local scan, hash = require "scan", require "hash"
local sub, find, format, gmatch, gsub = string.sub, string.find, string.format, string.gmatch, string.gsub
local REPLICATE_SEED = 0x66756e6963756c61ULL -- compile/assignment.py has it too; no arm uses it
local CHAT, FEEDBACK = "/chat/completions", "/feedback"
-- What else of the API goes to the baseline: a client must not reach every path of a provider with the gateway's key.
local OTHERS = {["/completions"] = true, ["/embeddings"] = true, ["/responses"] = true, ["/messages"] = true, ["/moderations"] = true}

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

-- Tokens of a stream are only reported on request. Returns what to write over the bytes from a to b; a is -1 where the client
-- asks by itself. Whoever did not ask shall not see the event that answers: see M.response.
local function usage_wanted(a, b, open)
  if not a then return open + 1, open, '"stream_options":{"include_usage":true},' end
  local text = gsub(scan.text(a, b), "%c", " ") -- it may travel in a header
  if find(text, '"include_usage"%s*:%s*true') then return -1, -1, "" end
  local changed, found = gsub(text, '("include_usage"%s*:%s*)[%w]+', "%1true")
  if found == 0 then changed, found = gsub(text, "^{(%s*[^%s}])", '{"include_usage":true,%1') end
  return a, b, found > 0 and changed or '{"include_usage":true}'
end

local function extract(h, path)
  local began, question = now(), find(path, "?", 1, true)
  local bare = sub(path, 1, (question or 0) - 1)
  local chat = bare == CHAT
  if not chat and not OTHERS[bare] then return refuse(h, 404, "This gateway has no such path.", "unknown_path") end
  local body = h:body()
  if not body then return refuse(h, 400, "The body is empty; a JSON object is expected.", "empty_body") end
  local who = scan.next()
  local first, last, open, twice = scan.top(scan.load(body, who))
  if not first then return refuse(h, 400, "The body is not a JSON object.", "invalid_json") end
  local at = first.model
  if twice then return refuse(h, 400, "The member 'model' appears twice.", "duplicate_model") end
  local model = at and scan.is_string(at) and scan.scalar(at, last.model)
  if not model then return refuse(h, 400, "The member 'model' is missing or is not a string.", "missing_model") end

  local state = h:streamInfo():filterState()
  local a, b, options = -1, -1, ""          -- where include_usage goes: over a value, or after the opening brace
  if chat and first.stream and scan.text(first.stream, last.stream) == "true" then
    a, b, options = usage_wanted(first.stream_options, last.stream_options, open)
  end
  state:set("fun.edits", "envoy.string", format("%d %d %d %d %d %s %s", who, at, last.model, a, b, path, options))
  if not chat then state:set("fun.other", "envoy.string", "1") end
  state:set("fun.model", "envoy.string", model)
  h:clearRouteCache()
  if not chat then return end

  local policy = h:metadata()               -- of the control route, since there is no unit yet
  local units, bound = policy:get("units"), policy:get("ttft")
  if bound or a >= 0 then                   -- for the answer: when its first byte is due, whether to hide its usage
    state:set("fun.watch", "envoy.string", format("%.6f %d", bound and began + bound or 0, a >= 0 and 1 or 0))
  end
  if not units then return end
  local unit = unit_of(units, h:headers(), first, last)
  if not unit then return state:set("fun.no_unit", "envoy.string", "1") end
  state:set("fun.unit", "envoy.string", unit)
  state:set("fun.replicate", "envoy.string", format("%d", tonumber(hash.xxh64(unit, REPLICATE_SEED) % 64)))
  h:clearRouteCache()
end

-- The key that signs, from its SDS file: read at most once a second, since asking Envoy for it in every request costs more than
-- the signature itself. An unreadable file keeps the last key.
local key, read_at = nil, -1
local function signing_key(path)
  local t = now()
  if t - read_at < 1 then return key end
  read_at = t
  local file = io.open(path, "rb")
  if not file then return key end
  local text = file:read("*a")
  file:close()
  local _, from = find(text, '"inline_string"%s*:%s*"')
  local to = from
  repeat                                    -- the closing quote: the first one that is not escaped
    to = to and find(text, '["\\]', to + 1)
    local escape = to and string.byte(text, to) == 92
    if escape then to = to + 1 end
  until not escape
  if to and to > from + 1 then key = scan.unescape(sub(text, from + 1, to - 1)) end
  return key
end

-- Takes out the event that has usage and no choices, where it lies whole in one piece: applications that did not ask for it
-- read choices[0]. False once it is found: it is the last one but [DONE].
local function hide_usage(piece)
  local n = piece:length()
  if n > 65536 then return true end
  local text = piece:getBytes(0, n)
  local at = find(text, '"choices"%s*:%s*%[%s*%]')
  if not at or not find(text, '"usage"%s*:%s*{') then return true end
  local from, to, stop = 1, 0, nil
  while true do                             -- the event around `at`
    local _, last = find(text, "\r?\n\r?\n", from)
    if not last then return true end
    if last > at then to, stop = from, last; break end
    from = last + 1
  end
  local event = sub(text, to, stop)
  if sub(event, 1, 5) ~= "data:" or not find(event, '"usage"%s*:%s*{') then return true end
  piece:setBytes(sub(text, 1, to - 1) .. sub(text, stop + 1))
  return false
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

function M.response(h, path)
  local headers = h:headers()
  local id = headers:get("x-funicular-id")
  if not id then return end
  if sub(id, 1, 1) == ";" then headers:remove("x-funicular-id"); return end -- no policy answered
  local secret = signing_key(path)
  if secret then headers:replace("x-funicular-id", id .. ";" .. hash.hmac(secret, id, 4)) end
  local watch = h:streamInfo():filterState():get("fun.watch")
  if not watch then return end
  local due, hide = string.match(watch, "^(%S+) (%d)")
  due, hide = tonumber(due), hide == "1" and sub(headers:get("content-type") or "", 1, 17) == "text/event-stream"
  if due == 0 and not hide then return end
  for piece in h:bodyChunks() do
    if due > 0 and now() > due then h:streamInfo():dynamicMetadata():set("fun", "late", "1") end
    due = 0
    if not hide then break end              -- the other pieces pass without us
    if not hide_usage(piece) then break end
  end
end
return M
