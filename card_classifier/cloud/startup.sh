#!/bin/bash
# What a training machine does, from its first second to its last: it starts the image, and whatever happens, success,
# failure, a Spot machine that is taken away, or too little time left, it tells the bucket and has itself deleted.
# The machine's own limit (max-run-duration with DELETE) stands behind all of this, should even this script fail.
set -uo pipefail
METADATA="http://${GCE_METADATA_HOST:-metadata.google.internal}/computeMetadata/v1"
LOG="${CARD_CLASSIFIER_MACHINE_LOG:-/var/log/card-classifier.log}"
STATE=failed
TIMERS=()
exec > >(tee -a "$LOG") 2>&1

say() { echo "$(date -u +%H:%M:%S) $*"; }
metadata() { curl --silent --fail --retry 5 --retry-connrefused --max-time 70 --header "Metadata-Flavor: Google" "$METADATA/$1"; }
attribute() { metadata "instance/attributes/$1"; }
token() { metadata instance/service-accounts/default/token | sed -n 's/.*"access_token" *: *"\([^"]*\)".*/\1/p'; }
root_of() { # The address of an API; a test has all of Google on this machine
  if [ "$1" = storage ] && [ -n "${STORAGE_EMULATOR_HOST:-}" ]; then echo "$STORAGE_EMULATOR_HOST"
  elif [ -n "${CARD_CLASSIFIER_GOOGLE_ENDPOINT:-}" ]; then echo "$CARD_CLASSIFIER_GOOGLE_ENDPOINT/$1.googleapis.com"
  else echo "https://$1.googleapis.com"; fi
}
google() { # api path arguments…
  local api=$1 path=$2; shift 2
  curl --silent --show-error --fail --retry 3 --retry-connrefused --max-time 20 --output /dev/null \
    --header "Authorization: Bearer $(token)" "$@" "$(root_of "$api")/$path"
}
store() { google storage "upload/storage/v1/b/$BUCKET/o?uploadType=media&name=$1" --request POST --data-binary "@$2"; }
tell() { # What has become of the run
  local file; file=$(mktemp)
  printf '{"run": "%s", "state": "%s", "machine": "%s", "zone": "%s", "attempt": %d, "time": "%s"}\n' \
    "$RUN" "$1" "$NAME" "$ZONE" "${ATTEMPT:-0}" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" > "$file"
  store "machines/$RUN/state.json" "$file" || say "the bucket doesn't take the state: $1"
  rm -f "$file"
}
run_image() { # Arguments of card-classifier
  docker run --rm --network host --shm-size 2g "${GPUS[@]}" "${ENVIRONMENT[@]}" --env CARD_CLASSIFIER_CLOUD_JOB "$IMAGE" "$@"
}
delete_machine() {
  local try
  for try in 1 2 3 4 5; do
    google compute "compute/v1/projects/$PROJECT/zones/$ZONE/instances/$NAME" --request DELETE && return
    say "the machine is not deleted yet (try $try)"; sleep "$try"
  done
  shutdown -h now # A machine that is off costs its disk only, until its time is up
}
finish() {
  trap - EXIT
  trap '' TERM INT HUP USR1
  for timer in "${TIMERS[@]}"; do kill "$timer" 2> /dev/null; done
  say "the run has $STATE"
  local successor=""
  if [ "$STATE" = preempted ] && [ -n "${CARD_CLASSIFIER_CLOUD_JOB:-}" ]; then
    run_image cloud elsewhere & successor=$!
  fi
  if [ -n "${WORKER:-}" ]; then docker stop --time 12 "card-classifier-$ATTEMPT" > /dev/null 2>&1; wait "$WORKER"; fi
  if [ -n "$successor" ] && wait "$successor"; then STATE=moved; fi
  if [ -n "${BUCKET:-}" ]; then
    tell "$STATE"
    sleep 0.3 # Until what was said is in the log
    store "machines/$RUN/log-${ATTEMPT:-0}.txt" "$LOG" || say "the bucket doesn't take the log"
  fi
  delete_machine
  exit 0
}
ended() { # A signal: the machine is taken away, or a person deletes it
  STATE=stopped
  [ "$(metadata instance/preempted)" = TRUE ] && STATE=preempted
  exit
}
trap finish EXIT
trap ended TERM INT HUP
trap 'STATE="timed out"; exit' USR1

PROJECT=$(metadata project/project-id)
NAME=$(metadata instance/name)
ZONE=$(metadata instance/zone); ZONE=${ZONE##*/}
RUN=$(attribute run) && BUCKET=$(attribute bucket) && IMAGE=$(attribute image) || exit 1
DEADLINE=$(attribute deadline) && ATTEMPT=$(attribute attempt) || exit 1
CARD_CLASSIFIER_CLOUD_JOB=$(attribute job) || exit 1
export CARD_CLASSIFIER_CLOUD_JOB
GPUS=(); ENVIRONMENT=()
for name in GCE_METADATA_HOST CARD_CLASSIFIER_GOOGLE_ENDPOINT STORAGE_EMULATOR_HOST; do
  [ -n "${!name:-}" ] && ENVIRONMENT+=(--env "$name")
done

LEFT=$((DEADLINE - $(date +%s))); MARGIN=$((LEFT / 10))
[ "$MARGIN" -gt 180 ] && MARGIN=180 # To save what there is
[ "$LEFT" -gt 0 ] || { STATE="timed out"; exit; }
( sleep "$((LEFT - MARGIN))"; kill -USR1 $$ ) & TIMERS+=($!)
( until [ "$(metadata 'instance/preempted?wait_for_change=true&timeout_sec=60')" = TRUE ]; do sleep 1; done; kill -TERM $$ ) &
TIMERS+=($!)

say "run $RUN on $NAME in $ZONE, at most $LEFT seconds"
tell running
if [ "$(attribute gpus)" = all ]; then
  GPUS=(--gpus all)
  for _ in $(seq 120); do nvidia-smi > /dev/null 2>&1 && break; sleep 5; done # The driver may be installed just now
  nvidia-smi || { say "the GPU's driver doesn't answer"; exit 1; }
fi
case "$IMAGE" in
  *-docker.pkg.dev/*) token | docker login --username oauth2accesstoken --password-stdin "https://${IMAGE%%/*}" || exit 1 ;;
esac
docker pull --quiet "$IMAGE" || { say "the image can't be had: $IMAGE"; exit 1; }
if [ "${#GPUS[@]}" -gt 0 ]; then # Training would go on without it, slowly and at the same price
  docker run --rm "${GPUS[@]}" --entrypoint python3 "$IMAGE" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
    || { say "the image can't use the GPU: its CUDA needs a newer driver, so a newer cloud.system"; exit 1; }
fi
docker run --rm --name "card-classifier-$ATTEMPT" --network host --shm-size 2g "${GPUS[@]}" "${ENVIRONMENT[@]}" \
  --env CARD_CLASSIFIER_CLOUD_JOB "$IMAGE" cloud work &
WORKER=$!
wait "$WORKER"; CODE=$?
WORKER=""
[ "$CODE" = 0 ] && STATE=finished
say "training ended with code $CODE"
exit
