-- Requests for wrk: POST /predict and POST /v2/models/digits/infer in turn.
local row = {}
for place = 1, 64 do
  row[place] = tostring((place * 7) % 17)
end
local values = "[" .. table.concat(row, ",") .. "]"
local headers = { ["Content-Type"] = "application/json" }
local predict = wrk.format("POST", "/predict", headers, '{"model":"digits","inputs":[' .. values .. "]}")
local infer = wrk.format(
  "POST",
  "/v2/models/digits/infer",
  headers,
  '{"inputs":[{"name":"features","shape":[1,64],"datatype":"FP32","data":' .. values .. "}]}"
)
local count = 0

function request()
  count = count + 1
  return count % 2 == 0 and predict or infer
end

function done(summary, latency, requests)
  local errors = summary.errors
  io.write(
    string.format(
      '{"requests":%d,"status":%d,"connect":%d,"read":%d,"write":%d,"timeout":%d}\n',
      summary.requests,
      errors.status,
      errors.connect,
      errors.read,
      errors.write,
      errors.timeout
    )
  )
end
