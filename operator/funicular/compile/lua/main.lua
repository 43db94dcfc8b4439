-- One script for the listener and for every candidate's cluster: only filters with the same source share a VM, and with it
-- the scratch memory. Their contexts tell them apart.
local downstream, upstream = require "downstream", require "upstream"

function envoy_on_request(h)
  local model = h:filterContext():get("model")
  if model then upstream.request(h, model) else downstream.request(h) end
end

function envoy_on_response(h)
  local path = h:filterContext():get("id_key")
  if path then downstream.response(h, path) end
end
