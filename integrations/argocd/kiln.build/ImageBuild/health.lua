local hs = { status = "Progressing", message = "Waiting for Kiln to look at it" }
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
-- The status speaks of a former spec.
local generation = obj.metadata.generation
if generation ~= nil and (obj.status.observedGeneration == nil or obj.status.observedGeneration < generation) then
  hs.message = "Waiting for Kiln to look at the changed spec"
  return hs
end
local suspended = obj.spec ~= nil and obj.spec.suspend == true
for _, condition in ipairs(obj.status.conditions) do
  if condition.type == "Ready" then
    hs.message = condition.message
    if condition.status == "True" then
      hs.status = "Healthy"
      return hs
    end
    if suspended or condition.reason == "Suspended" then
      hs.status = "Suspended"
      return hs
    end
  end
end
for _, condition in ipairs(obj.status.conditions) do
  -- Why is told by Ready.
  if condition.type == "Stalled" and condition.status == "True" then
    hs.status = "Degraded"
  end
end
return hs
