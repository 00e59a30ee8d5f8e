#!/bin/sh
# Times the models of this folder on a phone, turn by turn, and writes result.json. See README.md.
set -eu
cd "$(dirname "$0")"
: "${PERF_TEST:?set PERF_TEST to an onnxruntime_perf_test built for the phone}"
PROVIDERS=${PROVIDERS:-cpu xnnpack}
THREADS=${THREADS:-1}
ROUNDS=${ROUNDS:-7}
RUNS=${RUNS:-30}
DEVICE_DIR=${DEVICE_DIR:-/data/local/tmp/onnxprune}
ADB=${ADB:-adb}
DIMS="@DIMS@"

"$ADB" shell mkdir -p "$DEVICE_DIR/micro"
"$ADB" push "$PERF_TEST" "$DEVICE_DIR/perf_test" >/dev/null
"$ADB" shell chmod 755 "$DEVICE_DIR/perf_test"
"$ADB" push ../model.ort "$DEVICE_DIR/model.ort" >/dev/null
models=model.ort
if [ -f dense.ort ]; then
    "$ADB" push dense.ort "$DEVICE_DIR/dense.ort" >/dev/null
    models="dense.ort model.ort"
fi
for file in micro/*.ort; do
    [ -f "$file" ] || continue # a model without any
    "$ADB" push "$file" "$DEVICE_DIR/$file" >/dev/null
done

property() { "$ADB" shell getprop "$1" | tr -d '\r"\\'; }
lines=$(mktemp)
trap 'rm -f "$lines"' EXIT

# One line of JSON per model and round, of perf_test's latencies in seconds.
time_model() { # provider, model, dimensions
    "$ADB" shell "cd $DEVICE_DIR && ./perf_test -I -m times -r $RUNS -x $THREADS -y 1 -e $1 $3 $2 2>&1" </dev/null | tr -d '\r' |
        awk -v provider="$1" -v model="$2" '
            /^Min Latency:/ { low = $3 } /^P50 Latency:/ { p50 = $3 } /^P90 Latency:/ { p90 = $3 } /^P99 Latency:/ { p99 = $3 }
            END { if (p50 != "") printf "{\"provider\": \"%s\", \"model\": \"%s\", \"p50\": %.6f, \"p90\": %.6f, \"p99\": %.6f, \"min\": %.6f}\n",
                         provider, model, p50 * 1000, p90 * 1000, p99 * 1000, low * 1000;
                  else printf "%s on %s: no latencies in what perf_test printed\n", model, provider > "/dev/stderr" }' >>"$lines"
}

round=1
while [ "$round" -le "$ROUNDS" ]; do
    echo "round $round of $ROUNDS" >&2
    for provider in $PROVIDERS; do
        for model in $models; do time_model "$provider" "$model" "$DIMS"; done
        if [ "$round" -le 3 ]; then
            for file in micro/*.ort; do
                case $file in
                    micro/uncut*) time_model "$provider" "$file" "$DIMS" ;; # the whole model, rewritten
                    *) [ ! -f "$file" ] || time_model "$provider" "$file" "" ;;
                esac
            done
        fi
    done
    round=$((round + 1))
done

[ -s "$lines" ] || { echo "nothing was measured" >&2; exit 1; }
{
    printf '{"format": 2, "threads": %s, "device": {"model": "%s", "chip": "%s", "android": "%s"},\n"setup": ' "$THREADS" \
        "$(property ro.product.model)" "$(property ro.soc.model)" "$(property ro.build.version.release)"
    cat setup.json
    printf ',\n"runs": [\n'
    sed '$!s/$/,/' "$lines"
    printf ']}\n'
} >result.json
echo "wrote $(pwd)/result.json: onnxprune bench --import result.json" >&2
