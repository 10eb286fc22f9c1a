#!/usr/bin/env bash
# Brings everything up, certifies the example through the published port, kills a worker in the middle
# of a job, sees the job finish, brings everything down. Exit status 0: all of this was seen.
#
# Needs docker, compose (either kind), curl, python3. Uses a project and a port of its own
# (CERTSERVE_SMOKE_PORT), so that a deployment on the same host is left alone.
set -euo pipefail
cd "$(dirname "$0")/.."

export COMPOSE_PROJECT_NAME=certserve-smoke
port=${CERTSERVE_SMOKE_PORT:-18000}
export CERTSERVE_PUBLISH=127.0.0.1:$port
# What a killed worker held is free again after so long; and many small items, so that there is a middle.
export CERTSERVE_LEASE_TTL_S=10 CERTSERVE_SAMPLES_PER_SHARD=25
if docker compose version >/dev/null 2>&1; then compose=(docker compose); else compose=(docker-compose); fi
url=http://127.0.0.1:$port
started=$SECONDS

say() { echo "[$((SECONDS - started)) s] $*"; }
fail() { set +e; say "FAILED: $*" >&2; "${compose[@]}" logs --tail=30 >&2; exit 1; }
down() { "${compose[@]}" down --volumes --timeout 20 >/dev/null 2>&1 || true; }
trap down EXIT
# member NAME...: a part of the JSON on standard input.
member() {
    python3 -c '
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[1:]:
    value = value[int(name) if isinstance(value, list) else name]
print(value)' "$@"
}

docker/init >/dev/null
key=$(sed -n 's/^admin=//p' docker/secrets/api_keys)
# The key goes by a file descriptor, not on the command line.
api() { curl -sS --max-time 60 -H @<(echo "Authorization: Bearer $key") "$@"; }

wait_for() { # SECONDS JOB: until it has ended
    local end=$((SECONDS + $1)) state
    while ((SECONDS < end)); do
        state=$(api "$url/jobs/$2" | member status)
        case $state in succeeded) return 0 ;; queued | running) sleep 0.5 ;; *) fail "job $2 is $state" ;; esac
    done
    fail "job $2 has not ended within $1 s"
}

"${compose[@]}" build
say "images are built"
docker images --format '    {{.Repository}} {{.Size}}' | grep certserve- || true

up=$SECONDS
"${compose[@]}" up -d --scale worker-cpu=2
until [ "$(curl -s -o /dev/null -w '%{http_code}' "$url/readyz")" = 200 ]; do
    ((SECONDS - up < 180)) || fail "not ready within 180 s"
    sleep 0.5
done
say "ready $((SECONDS - up)) s after up"

code=$(curl -s -o /dev/null -w '%{http_code}' "$url/jobs")
[ "$code" = 401 ] || fail "without a key: $code instead of 401"

page=$(curl -s -H 'Accept: text/html' "$url/login")
grep -q csrf-token <<<"$page" || fail "no page to log in"
for asset in $(grep -o '"/console/[^"]*"' <<<"$page" | tr -d '"'); do
    curl -sf -o /dev/null "$url$asset" || fail "the page asks for $asset, which is not in the image"
done
say "the console and its files are there"

# force: computed anew, though an equal job has been done.
submit() { api -F model=@examples/mnist_certified.onnx -F dataset=@examples/mnist_test.npz -F "spec=$1" -F force=true "$url/certify" | member id; }
spec='{"norm": "l2", "epsilons": ["3/10", 1], "samples": 300, "attack": {"steps": 100, "restarts": 1, "audit": 1.0, "seed": 0}}'

calm=$(submit "$spec")
wait_for 300 "$calm"
report=$(api "$url/jobs/$calm/report")
say "certified at l2 0.3: $(member results 0 certified_accuracy <<<"$report") of 300 samples"

job=$(submit "$spec")
victim=
until [ -n "$victim" ]; do # the container that computes, once a first shard is done
    state=$(api "$url/jobs/$job")
    [ "$(member status <<<"$state")" != succeeded ] || fail "the job was done before a worker could be killed"
    if [ "$(member progress done <<<"$state" 2>/dev/null || echo 0)" -gt 0 ]; then
        for container in $("${compose[@]}" ps -q worker-cpu); do
            # A work horse is named "horse"; one that has ended stays as a zombie until the next.
            if docker top "$container" -eo pid,stat,comm | awk '$2 !~ /^Z/ && $3 == "horse" { found = 1 } END { exit !found }'; then victim=$container; fi
        done
    fi
    sleep 0.2
done
docker kill "$victim" >/dev/null
state=$(api "$url/jobs/$job")
say "killed worker ${victim:0:12} at $(member progress done <<<"$state") of $(member progress total <<<"$state")"
[ "$(member status <<<"$state")" = running ] || fail "the job was not in its middle"
wait_for 300 "$job"
digest=$(api "$url/jobs/$job/report" | member result_digest)
[ "$digest" = "$(member result_digest <<<"$report")" ] || fail "another result than in the calm run"
say "the job finished with the same result as the calm run: $digest"

"${compose[@]}" up -d --scale worker-cpu=4 >/dev/null 2>&1
end=$((SECONDS + 60))
until curl -s "$url/readyz" | member checks workers detail 2>/dev/null | grep -q '^4 alive'; do
    ((SECONDS < end)) || fail "not 4 workers within 60 s"
    sleep 0.5
done
say "4 workers"

"${compose[@]}" down --volumes --timeout 20 >/dev/null 2>&1
[ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")" ] || fail "containers are left"
trap - EXIT
say "down; everything was seen"
