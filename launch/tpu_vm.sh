#!/usr/bin/env bash
# One run on a Cloud TPU slice, from nothing to the fetched folder: creates the slice or takes the one of that name,
# installs the wheel on all its hosts, runs the command on each, shows what host 0 says, and begins again where it was
# when the slice is preempted. The run's folder is kept in a bucket meanwhile: a slice's disks go with it.
#
#   launch/tpu_vm.sh --name NAME --zone ZONE --type v5litepod-8 --runtime v2-alpha-tpuv5-lite --bucket gs://B/runs/NAME \
#       --wheel dist/reangle_jax-0.1.0-py3-none-any.whl [--weights gs://B/weights/MODEL] [--input FILE]... \
#       [--project P] [--spot] [--queued] [--tries 10] [--keep] [--fetch DIR] [--dry-run] -- --config configs/dynamic.py ...
#
# What follows -- is reangle_jax.main's command line without --workdir. On the hosts, configs/ and the --input files lie
# in the folder that the command runs in, the weights in weights/ there.
set -euo pipefail

usage() { sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; }
fail() { echo "error: $*" >&2; exit 2; }

name='' zone='' type='' runtime='' bucket='' wheel='' weights='' project='' fetch='' tries=10
spot=false queued=false keep=false dry=false
inputs=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name|--zone|--type|--runtime|--bucket|--wheel|--weights|--project|--fetch|--tries)
      [[ $# -gt 1 ]] || fail "$1 has no value"
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    --input) [[ $# -gt 1 ]] || fail "$1 has no value"; inputs+=("$2"); shift 2 ;;
    --spot) spot=true; shift ;;
    --queued) queued=true; shift ;;
    --keep) keep=true; shift ;;
    --dry-run) dry=true; shift ;;
    --help|-h) usage; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown flag $1 (see --help)" ;;
  esac
done
for needed in name zone type runtime bucket wheel; do
  [[ -n "${!needed}" ]] || fail "--$needed is not set (see --help)"
done
[[ $# -gt 0 ]] || fail "nothing follows --: give reangle_jax.main's flags, such as --config configs/dynamic.py"
$dry || [[ -f "$wheel" ]] || fail "--wheel: no such file: $wheel: make it with python -m pip wheel --no-deps -w dist ."
[[ "$bucket" == gs://* ]] || fail "--bucket=$bucket is not possible: it must be gs://BUCKET/FOLDER"

[[ "$tries" =~ ^[1-9][0-9]*$ ]] || fail "--tries=$tries is not possible: it must be a whole number from 1 on"

here="$(cd "$(dirname "$0")/.." && pwd)"
place=(--zone "$zone")
[[ -z "$project" ]] || place+=(--project "$project")
work=reangle

do_it() { # runs a command, or says it
  if $dry; then printf '+'; printf ' %q' "$@"; printf '\n'; else "$@"; fi
}
tpus() { do_it gcloud compute tpus "$@" "${place[@]}"; }
on_all() { tpus tpu-vm ssh "$name" --worker=all --command "$1"; }
on_first() { tpus tpu-vm ssh "$name" --worker=0 --command "$1"; }
state() {
  if $dry; then echo MISSING; return; fi
  gcloud compute tpus tpu-vm describe "$name" "${place[@]}" --format 'value(state)' 2>/dev/null || echo MISSING
}

remove() {
  if $queued; then
    tpus queued-resources delete "$name" --force --quiet || true
  else
    tpus tpu-vm delete "$name" --quiet || true
  fi
}

create() {
  local kind=(--accelerator-type "$type")
  ! $spot || kind+=(--spot)
  if $queued; then
    tpus queued-resources create "$name" --node-id "$name" "${kind[@]}" --runtime-version "$runtime"
    $dry && return
    while [[ "$(state)" != READY ]]; do
      echo "waiting for the slice: $(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
        --format 'value(state.state)')" >&2
      sleep 60
    done
  else
    tpus tpu-vm create "$name" "${kind[@]}" --version "$runtime"
  fi
}

# The images' own Python is too old; uv brings one.
prepare() {
  on_all "mkdir -p $work && curl -LsSf https://astral.sh/uv/install.sh | sh" &&
    tpus tpu-vm scp --recurse --worker=all "$wheel" "$here/configs" "${inputs[@]}" "$name:$work/" &&
    on_all "cd $work && ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 venv && \
~/.local/bin/uv pip install --quiet --python venv/bin/python '$(basename "$wheel")[tpu]'" || return 1
  [[ -z "$weights" ]] ||
    on_all "cd $work && mkdir -p weights && gcloud storage cp --no-clobber --recursive '$weights' weights/" || return 1
  # What an earlier slice has kept: the last copy that became whole.
  on_first "cd $work && if [[ ! -d run ]] && slot=\$(gcloud storage cat '$bucket/latest' 2>/dev/null); then mkdir -p run && \
gcloud storage rsync --recursive \"$bucket/\$slot\" run; fi"
}

# Runs on the hosts: the command lives on when the connection does not. Host 0 copies the folder every two minutes to one
# of two places in turn, and says which is whole.
start() {
  local inner
  inner="echo \$\$ > pid; venv/bin/python -m reangle_jax.main --workdir run$(printf ' %q' "$@") > log 2>&1; echo \$? > code"
  on_all "cd $work && if [[ -f pid && ! -f code ]] && kill -0 \$(cat pid) 2> /dev/null; then exit 0; fi; \
rm -f code copied; setsid nohup bash -c $(printf %q "$inner") > /dev/null 2>&1 < /dev/null & sleep 1" || return 1
  on_first "cd $work && cat > copy.sh <<'COPY'
slot=0
while true; do
  if [[ -f code ]]; then last=true; else last=false; fi
  slot=\$((1 - slot))
  gcloud storage rsync --recursive --delete-unmatched-destination-objects run '$bucket'/\$slot --quiet &&
    printf %s \$slot | gcloud storage cp - '$bucket/latest' --quiet
  ! \$last || { touch copied; break; }
  for _ in {1..24}; do sleep 5; [[ ! -f code ]] || break; done
done
COPY
setsid nohup flock --nonblock copying bash copy.sh > copy.log 2>&1 < /dev/null &"
}

follow() { # prints what host 0 says; the run's exit code, or 255 where the connection broke
  on_first "cd $work && tail -n +1 -F log 2> /dev/null & while [[ ! -f ~/$work/copied ]]; do sleep 2; done; kill %1; \
exit \$(cat ~/$work/code)"
}

code=1
for ((try = 1; try <= tries; try++)); do
  case "$(state)" in
    READY) echo "taking the slice $name" >&2 ;;
    MISSING) create ;;
    CREATING|STARTING|RESTARTING|REPAIRING) sleep 30; continue ;;
    *) remove; create ;;  # preempted, stopped
  esac
  if prepare && start "$@"; then
    code=0
    follow || code=$?
    while [[ $code -eq 255 && "$(state)" == READY ]]; do  # the connection alone broke
      sleep 10
      code=0
      follow || code=$?
    done
    [[ $code -eq 255 || $code -eq 143 ]] || break
  elif [[ "$(state)" == READY ]]; then
    fail "the slice $name could not be prepared: what went wrong is said above; the slice is kept"
  fi
  echo "the slice was taken away: again" >&2
done
[[ -z "$fetch" ]] || {
  do_it mkdir -p "$fetch"
  if $dry; then slot=LATEST; else slot="$(gcloud storage cat "$bucket/latest")"; fi
  do_it gcloud storage rsync --recursive "$bucket/$slot" "$fetch"
}
$keep || remove
exit "$code"
