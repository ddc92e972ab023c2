#!/usr/bin/env bash
# One run on a GKE cluster's TPU slices by JobSet, weights and the run's folder in a bucket (gcsfuse, a hierarchical one).
#
#   launch/gke/run.sh --name NAME --image IMAGE --bucket BUCKET --accelerator tpu-v5-lite-podslice --topology 2x4 \
#       --hosts 1 --chips 8 [--slices 1] [--account reangle] [--restarts 10] [--many] [--dry-run] -- FLAGS
#
# FLAGS are reangle_jax.main's: --config /configs/dynamic.py --workdir /data/runs/first --config.weights=/data/weights/...
# HOSTS x CHIPS are a slice's. With --many they are reangle_jax.many's, and each pod takes its share of the clips.
set -euo pipefail

fail() { echo "error: $*" >&2; exit 2; }

# shellcheck disable=SC2034  # each is read by its name
name='' image='' bucket='' accelerator='' topology='' hosts='' chips='' slices=1 account=reangle restarts=10
dry=false module=reangle_jax.main
while [[ $# -gt 0 ]]; do
  case "$1" in
    --name|--image|--bucket|--accelerator|--topology|--hosts|--chips|--slices|--account|--restarts)
      [[ $# -gt 1 ]] || fail "$1 has no value"
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    --many) module=reangle_jax.many; shift ;;
    --dry-run) dry=true; shift ;;
    --help|-h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 0 ;;
    --) shift; break ;;
    *) fail "unknown flag $1 (see --help)" ;;
  esac
done
for needed in name image bucket accelerator topology hosts chips; do
  [[ -n "${!needed}" ]] || fail "--$needed is not set (see --help)"
done
for number in hosts chips slices restarts; do
  [[ "${!number}" =~ ^[1-9][0-9]*$ || "$number ${!number}" == "restarts 0" ]] ||
    fail "--$number=${!number} is not possible: it must be a whole number, 1 or more (--restarts: 0 or more)"
done
[[ "$name" =~ ^[a-z]([-a-z0-9]*[a-z0-9])?$ && ${#name} -le 40 ]] ||
  fail "--name=$name is not possible: Kubernetes takes small letters, digits and -, beginning with a letter, here 40 at most"
[[ "$topology" =~ ^[0-9]+(x[0-9]+){1,2}$ ]] || fail "--topology=$topology is not possible: it must be as 4x4 or 2x2x1"
[[ $((${topology//x/*})) -eq $((hosts * chips)) ]] ||
  fail "--topology=$topology has $((${topology//x/*})) chips, and --hosts=$hosts x --chips=$chips are $((hosts * chips)): they must be the same"
[[ $# -gt 0 ]] || fail "nothing follows --: give the run's flags"
if [[ $module == reangle_jax.many ]]; then set -- --share auto "$@"; fi

arguments=''
for word in "$@"; do  # a JSON list, which YAML reads
  word="${word//\\/\\\\}"
  arguments+="${arguments:+, }\"${word//\"/\\\"}\""
done
text="$(cat "$(dirname "$0")/jobset.yaml")"
for key in name image bucket accelerator topology hosts chips slices account restarts module; do
  text="${text//"{$key}"/"${!key}"}"
done
text="${text//"{arguments}"/"[$arguments]"}"
if $dry; then
  printf '%s\n' "$text"
  exit 0
fi
kubectl apply -f - <<< "$text"
echo "its log: kubectl logs --follow --selector jobset.sigs.k8s.io/jobset-name=$name,batch.kubernetes.io/job-completion-index=0"
