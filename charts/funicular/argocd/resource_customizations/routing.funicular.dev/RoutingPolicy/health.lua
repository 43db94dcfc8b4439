-- Health of a RoutingPolicy, from the phase that Funicular's operator computed. The status also follows kstatus.
--
-- A ramp takes days. A resource that is Progressing or Suspended in a sync wave keeps the sync operation running, so that no
-- later commit is applied; that is why a policy is Progressing only until the gateways carry what was committed, and Healthy,
-- with a message, while it ramps. Who wants a pipeline to wait for the end of the ramp sets this to true:
local progressing_while_ramping = false

local function health(status, message)
  return {status = status, message = message or ""}
end

local status = obj.status
-- The guard comes first: what the status says of an older generation is not about what was just synced.
if status == nil or status.phase == nil or status.observedGeneration ~= obj.metadata.generation then
  return health("Progressing", "waiting for the operator to see this spec")
end

local function condition(kind)
  for _, found in ipairs(status.conditions or {}) do
    if found.type == kind then
      return found
    end
  end
  return {}
end

local phase, message = status.phase, status.message
local synced = condition("GatewaysSynced")

-- What a person must mend. Degraded, not Progressing: the commit that mends it must get through.
if phase == "Invalid" or phase == "Conflicted" or phase == "Blocked" then
  return health("Degraded", message)
end

-- The revision that git asks for was rejected, by an SLO or by a person; traffic is, or goes, back to the last good one.
if phase == "Degraded" then
  return health("Degraded", message)
end
if phase == "Reverting" then
  return health("Degraded", condition("Regressed").message or message)
end

if phase == "AwaitingApproval" then
  return health("Suspended", message)
end

if phase == "Preparing" or phase == "Ramping" or phase == "Paused" then
  -- Later steps move shares of what the gateways carry already.
  local step = status.step
  local carried = step ~= nil and (step.index > 0 or step.startedAt ~= nil) or phase == "Preparing" and synced.status == "True"
  if not carried and synced.reason == "NotTaken" then
    return health("Degraded", synced.message)
  end
  if carried and not progressing_while_ramping then
    return health("Healthy", message)
  end
  return health("Progressing", message)
end

-- Promoted; all on the baseline; or Reverted: the spec that is here serves, the message says what was taken back.
if phase == "Promoted" or phase == "Baseline" or phase == "Reverted" then
  return health("Healthy", message)
end

-- Pending, Superseded, Deleting: seconds, on the way to one of the above.
return health("Progressing", message)
