-- Load for wrk: multipart requests with the images of a folder in turn, and a summary as one line of JSON.
-- wrk -s wrk.lua URL -- FIELD FILE...
local requests, turn = {}, 0

function init(arguments)
  for place = 2, #arguments do
    local file = assert(io.open(arguments[place], "rb"))
    local body = "--edge\r\nContent-Disposition: form-data; name=\"" .. arguments[1] ..
      "\"; filename=\"card.jpg\"\r\nContent-Type: image/jpeg\r\n\r\n" .. file:read("*a") .. "\r\n--edge--\r\n"
    file:close()
    requests[#requests + 1] = wrk.format("POST", nil, {["Content-Type"] = "multipart/form-data; boundary=edge"}, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %d, "seconds": %.3f, "failed": %d, "p50": %.3f, "p95": %.3f, "p99": %.3f}\n',
    summary.requests, summary.duration / 1e6, errors.connect + errors.read + errors.write + errors.status + errors.timeout,
    latency:percentile(50) / 1e3, latency:percentile(95) / 1e3, latency:percentile(99) / 1e3))
end
