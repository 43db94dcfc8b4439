-- Asks the operator to promote: an annotation that git does not hold, so that neither a sync nor self-heal takes it away.
-- It is bound to the revision that ramps (else to the spec's), and unique by the version of the object it was asked of.
local revision = obj.status.revision
if obj.status.candidate ~= nil then
  revision = obj.status.candidate.revision
end
if obj.metadata.annotations == nil then
  obj.metadata.annotations = {}
end
obj.metadata.annotations["routing.funicular.dev/verb"] = "promote " .. revision .. " argocd-" .. obj.metadata.resourceVersion .. " argocd"
return obj
