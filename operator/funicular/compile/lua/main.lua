-- One script for the listener and for every candidate's cluster: only filters with the same source share a VM, and with it
-- the scratch memory. A candidate's filter has a context, the listener's has none.
local downstream, upstream = require "downstream", require "upstream"

function envoy_on_request(h)
  local model = h:filterContext():get("model")
  if model then upstream.request(h, model) else downstream.request(h) end
end

function envoy_on_response(h)
  if not h:filterContext():get("model") then downstream.response(h) end
end
