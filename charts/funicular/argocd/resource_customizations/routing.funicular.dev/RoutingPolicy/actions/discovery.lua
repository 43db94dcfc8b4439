-- Which requests of a person mean something now. Each is bound to the revision that it is offered for (see the actions): one
-- that comes too late is refused by the operator, with a reason in an Event and in status.lastVerb.
local actions = {
  pause = {disabled = true},
  resume = {disabled = true},
  promote = {disabled = true, displayName = "Promote without evidence"},
  approve = {disabled = true, displayName = "Approve this step"},
  abort = {disabled = true},
  retry = {disabled = true, displayName = "Retry from the first step"},
}

local status = obj.status
if status == nil or obj.metadata.deletionTimestamp ~= nil then
  return actions
end

local candidate, step = status.candidate, status.step
if candidate ~= nil then
  actions.abort.disabled = false
  if candidate.revision ~= status.revision or status.observedGeneration ~= obj.metadata.generation then
    return actions -- the spec was edited: this ramp is about to end
  end
  actions.pause.disabled = status.paused == true
  actions.resume.disabled = status.paused ~= true
  if step ~= nil and status.paused ~= true then
    actions.promote.disabled = step.startedAt == nil
    local declared = obj.spec.rollout.steps[step.index + 1]
    actions.approve.disabled = declared == nil or declared.approval ~= "Required" or step.approvedBy ~= nil
  end
  return actions
end

if status.observedGeneration ~= obj.metadata.generation then
  return actions
end
-- Of what is promoted: everything goes to the baseline.
local promoted = status.stable ~= nil and status.stable.revision == status.revision and status.phase ~= "Reverting"
actions.abort.disabled = not (promoted or status.phase == "Preparing" or status.phase == "Blocked")
if status.phase == "Degraded" then
  for _, rejected in ipairs(status.rejected or {}) do
    if rejected.revision == status.revision then
      actions.retry.disabled = false
    end
  end
end
return actions
