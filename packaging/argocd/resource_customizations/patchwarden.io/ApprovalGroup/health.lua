-- Follows kstatus: what is observed is of the present spec, and Reconciling, Stalled and Ready say how far it is.
local health = { status = "Progressing", message = "Waiting for the controller" }
if obj.status == nil or obj.status.observedGeneration ~= obj.metadata.generation then
  return health
end
local conditions = {}
for _, condition in ipairs(obj.status.conditions or {}) do
  conditions[condition.type] = condition
end
local reconciling, stalled, ready = conditions.Reconciling, conditions.Stalled, conditions.Ready
if reconciling ~= nil and reconciling.status == "True" then
  health.message = reconciling.message
elseif stalled ~= nil and stalled.status == "True" then
  health.status = "Degraded"
  health.message = stalled.message
elseif ready ~= nil then
  health.message = ready.message
  if ready.status == "True" then
    health.status = "Healthy"
    if ready.reason == "Suspended" then
      health.status = "Suspended"
    end
  end
end
return health
