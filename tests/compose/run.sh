#!/bin/sh
# Builds and starts docker-compose.yml, waits until every service is healthy, makes one picture through the gateway
# from outside, and takes everything down again. Needs a running engine and docker-compose, v1 or v2; and `triptych`
# on PATH or named by TRIPTYCH. With UP=no the services of PROJECT are taken as they run, and left running.
set -eu
cd "$(dirname "$0")/../.."

PROJECT=${PROJECT:-triptych-test}
TRIPTYCH=${TRIPTYCH:-triptych}
TRIPTYCH_PORT=${TRIPTYCH_PORT:-50050}
UP=${UP:-yes}
OUT=$(mktemp -d)
export TRIPTYCH_PORT

if docker compose version >/dev/null 2>&1; then
    compose() { docker compose -p "$PROJECT" "$@"; }
else
    compose() { docker-compose -p "$PROJECT" "$@"; }
fi

finish() {
    code=$?
    rm -rf "$OUT"
    if [ "$UP" = yes ]; then
        [ "$code" = 0 ] || compose logs --no-color --tail=50
        compose down --volumes --remove-orphans
    fi
    exit "$code"
}
trap finish EXIT

# All four, not just those that run: a service that has ended is not healthy either.
num_healthy() {
    docker ps -q --filter "label=com.docker.compose.project=$PROJECT" --filter health=healthy | wc -l
}

if [ "$UP" = yes ]; then
    compose build
    compose up -d
fi
# The first start compiles for minutes on a slow or busy machine.
waited=0
until [ "$(num_healthy)" -eq 4 ]; do
    [ "$waited" -lt 900 ] || { echo "not healthy after $waited s"; compose ps; exit 1; }
    sleep 2
    waited=$((waited + 2))
done

"$TRIPTYCH" run "a red house under a full moon" --gateway "127.0.0.1:$TRIPTYCH_PORT" --seed 7 --out "$OUT/pictures" \
    --candidates 2 --variations 2
for name in generate-0 generate-1 refine-0 refine-1 upscale-0 contact-sheet; do
    test -s "$OUT/pictures/$name.png" || { echo "$name.png is missing"; exit 1; }
done
# The page's door, too, and the run is there.
python3 - "http://127.0.0.1:${TRIPTYCH_HTTP_PORT:-8080}/runs" <<'END'
import json, sys, urllib.request
runs = json.load(urllib.request.urlopen(sys.argv[1], timeout=10))["runs"]
assert any(run["spec"]["prompt"] == "a red house under a full moon" for run in runs), runs
END
echo "one picture came through the composed services"
