-- For a candidate's cluster: its model (and include_usage for streams) into the body, byte-exact, at the offsets found
-- downstream; its path and host, since an earlier attempt may have left another's. filter_context: {model, path, host}
local scan = require "scan"
local match, tonumber = string.match, tonumber

local function rewrite(h, headers, body, model)
  local context = h:filterContext()
  local state = h:streamInfo():filterState()
  local edits = state:get("fun.edits")
  local relayed = not edits and state:get("fun.relayed")
  local who, first, last, a, b, path, options = match(edits or relayed, "^(%d+) (%d+) (%d+) (%-?%d+) (%-?%d+) (%S*) ?(.*)$")
  headers:replace(":path", context:get("path") .. path)
  headers:replace(":authority", context:get("host"))
  first, last, a, b = tonumber(first), tonumber(last), tonumber(a), tonumber(b)
  local n = scan.load(body, edits and who)  -- a relayed one may be numbered by another worker
  if a < 0 then return scan.splice(n, first, last, model) end
  return scan.splice(n, first, last, model, a, b, options)
end

local M = {}
function M.request(h, model)
  local body = h:body()                     -- waits; objects from before are void
  local headers = h:headers()
  local done, text = pcall(rewrite, h, headers, body, model)
  if not done then h:logErr(text) end
  local length = body:setBytes(done and text or "{}") -- never the original: it would go out under the endpoint's name
  headers:remove("transfer-encoding")
  headers:replace("content-length", tostring(length))
end
return M
