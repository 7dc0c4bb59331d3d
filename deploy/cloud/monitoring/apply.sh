#!/usr/bin/env bash
# Sets up monitoring of the service on Cloud Run, once: channels, uptime check, dashboard, alert policies.
#   PROJECT=… HOST=card-classifier-….run.app ON_CALL_ADDRESS=… TICKET_ADDRESS=… deploy/cloud/monitoring/apply.sh
# The uptime check asks every minute, which keeps an instance of the service awake, and paid for, all month: see what
# card-classifier cloud check reckons. Without it the service sleeps when nobody asks, and CardClassifierUnwatched pages then.
# DRY_RUN=1 prints each request instead of sending it. Channels and policies that are there already are not looked for.
set -euo pipefail
cd "$(dirname "$0")"
export PROJECT HOST ON_CALL_ADDRESS TICKET_ADDRESS
: "${PROJECT:?the id of the project}" "${HOST:?the host of the service, without https://}"
: "${ON_CALL_ADDRESS:?where pages go}" "${TICKET_ADDRESS:?where tickets go}"

filled() { # FILE: with its ${NAMES} replaced by what they stand for, and no others
    python3 -c '
import json, os, re, sys
names = "PROJECT HOST ON_CALL_ADDRESS TICKET_ADDRESS ON_CALL_CHANNEL TICKET_CHANNEL UPTIME_CHECK".split()
def value(found):
    return json.dumps(os.environ.get(found[1], found[0]))[1:-1]
print(re.sub(r"\$\{(%s)\}" % "|".join(names), value, open(sys.argv[1]).read()))' "$1"
}

send() { # PATH FILE: prints the name of what was made
    if [ -n "${DRY_RUN:-}" ]; then
        echo "POST https://monitoring.googleapis.com/$1" >&2
        filled "$2" >&2
        echo "projects/$PROJECT/made/$(basename "$2" .json)"
        return
    fi
    filled "$2" | curl -sS --fail-with-body -X POST -H "Authorization: Bearer $(gcloud auth print-access-token)" \
        -H "Content-Type: application/json" --data @- "https://monitoring.googleapis.com/$1" |
        python3 -c 'import json, sys; print(json.load(sys.stdin)["name"])'
}

ON_CALL_CHANNEL=$(send "v3/projects/$PROJECT/notificationChannels" channel-on-call.json)
TICKET_CHANNEL=$(send "v3/projects/$PROJECT/notificationChannels" channel-tickets.json)
UPTIME_CHECK=$(basename "$(send "v3/projects/$PROJECT/uptimeCheckConfigs" uptime.json)")
export ON_CALL_CHANNEL TICKET_CHANNEL UPTIME_CHECK
send "v1/projects/$PROJECT/dashboards" dashboard.json
for policy in policies/*.json; do
    send "v3/projects/$PROJECT/alertPolicies" "$policy"
done
