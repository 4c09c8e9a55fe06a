#!/usr/bin/env bash
# Measures the servers of this folder with `vllm bench sweep serve`; needs vLLM, nothing else.
# Run it again after an interruption: finished runs are kept, failed ones are tried again.
# VLLM=/path/to/vllm and PORT=8001 before the command choose another vLLM or port.
set -um
cd "$(dirname "$0")" || exit 1
VLLM=${VLLM:-vllm} PORT=${PORT:-8000}
source ./settings.sh
serve_args="--host 127.0.0.1 --port $PORT $serve_args"
bench="$(printf %q "$VLLM") bench serve --base-url http://127.0.0.1:$PORT $bench_args"
options=$("$VLLM" bench sweep serve --help=all 2>&1 || "$VLLM" bench sweep serve --help 2>&1)
if [[ $options != *--experiment-name* ]]; then
  echo "$VLLM has no 'bench sweep serve --experiment-name'; name a newer vLLM by VLLM=..." >&2
  exit 1
fi
keep_going=
[[ $options == *--continue-on-error* ]] && keep_going=--continue-on-error

# A sweep that is interrupted ends its server, one that is killed leaves it. Started in the
# background, this script ignores SIGINT and so would the sweep, but for this.
default_sigint=
env --default-signal=INT true 2>/dev/null && default_sigint="env --default-signal=INT"
sweep_pid=
interrupted() {
  trap '' INT TERM HUP
  if [ -n "$sweep_pid" ]; then
    kill -INT -- "-$sweep_pid" 2>/dev/null
    for _ in {1..60}; do kill -0 "$sweep_pid" 2>/dev/null && sleep 1; done
    kill -TERM -- "-$sweep_pid" 2>/dev/null
  fi
  echo "Interrupted; run $0 again to go on." >&2
  exit 130
}
trap interrupted INT TERM HUP

port_is_free() {
  for _ in {1..10}; do
    (exec 3<>"/dev/tcp/127.0.0.1/$PORT") 2>/dev/null || return 0
    sleep 1
  done
  return 1
}

count() { ls "$1"/runs/*/run=0.json 2>/dev/null | wc -l; }

sweep() {
  local name=$1 model=$2 serve runs resume= run
  serve="$(printf %q "$VLLM") serve $(printf %q "$model") $serve_args"
  runs=$(grep -c num_prompts "$name/bench_params.json")
  total=$((total + runs))
  # A run cut off while it was written would be taken for a finished one.
  for run in "$name"/runs/*/run=0.json; do
    [ -e "$run" ] || continue
    grep -q '"run_number"' "$run" && [ "$(tail -c 1 "$run")" = "}" ] || rm -f "$run"
  done
  if [ "$(count "$name")" -lt "$runs" ]; then
    if [[ $model == PUT-PATH-HERE ]] || grep -q PUT-PATH-HERE "$name/serve_params.json"; then
      echo "$name: put its models' paths into settings.sh and $name/serve_params.json" >&2
      return
    fi
    # Whatever answers on the port would be measured in place of the server that is meant.
    if ! port_is_free; then
      echo "Port $PORT is in use, perhaps by a server that was left; end it or set PORT." >&2
      exit 1
    fi
    [ -d "$name/runs" ] && resume=--resume
    find "$name" -name '*failure.json' -delete
    $default_sigint "$VLLM" bench sweep serve --serve-cmd "$serve" --bench-cmd "$bench" \
      --serve-params "$name/serve_params.json" --bench-params "$name/bench_params.json" \
      --output-dir "$name" --experiment-name runs --num-runs 1 \
      --server-ready-timeout "$startup_timeout_s" $keep_going $resume >>"$name/sweep.log" 2>&1 &
    sweep_pid=$!
    wait "$sweep_pid"
    sweep_pid=
  fi
  echo "$name: $(count "$name") of $runs runs are measured; details in $name/sweep.log"
  measured=$((measured + $(count "$name")))
}

total=0 measured=0
for i in "${!servers[@]}"; do
  sweep "${servers[i]}" "${models[i]}"
done
echo "$measured of $total runs are measured."
[ "$measured" -ge "$total" ]
