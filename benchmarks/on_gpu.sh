#!/usr/bin/env bash
# All that we measure on one GPU, in at most 12 minutes, without TensorFlow:
#
#   bash benchmarks/on_gpu.sh OUT [PREPARED]     # PREPARED: token files of `protlm prepare`
#   bash benchmarks/on_gpu.sh --rehearse OUT     # the same at toy size, on any machine
#
# Each step writes its rows to OUT/NAME.md as it goes, so that nothing is lost where the machine is
# taken away; a step that fails or runs out of its time is said, and the next one goes on. The exit
# code is the number of steps that failed. The last step trains ESM-2 8M's shape from scratch on
# PREPARED (the bundled proteins without it), and compares it with held-out and probed controls.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1

rehearse=
if [ "${1:-}" = --rehearse ]; then rehearse=1; shift; fi
[ $# -ge 1 ] || { sed -n 's/^# \{0,1\}//p' "$0" | sed 1d >&2; exit 2; }
out=$1 prepared=${2:-} failed=0 PYTHON=${PYTHON:-python3}
mkdir -p "$out"

# step NAME SECONDS COMMAND...: its output to OUT/NAME.md and here
step() {
  local name=$1 seconds=$2 began=$SECONDS status
  shift 2
  [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $name "* ]] || return 0
  echo "## $name: $*" | tee "$out/$name.md"
  timeout --kill-after=5 "$seconds" "$@" 2>"$out/$name.stderr" | tee -a "$out/$name.md"
  status=$?
  if [ "$status" -ne 0 ]; then
    failed=$((failed + 1))
    tail -n 15 "$out/$name.stderr"
    echo "$name failed: exit code $status after $((SECONDS - began)) s" | tee -a "$out/$name.md"
  fi
  echo "$name: $((SECONDS - began)) s"
}

protlm() { "$PYTHON" -m protlm_jax.cli "$@"; }

# Trains, scores held-out proteins, and reads secondary structure from it, a control beside it.
from_scratch() {
  local run=$out/run steps=$1 rows=$2
  shift 2
  if [ -z "$prepared" ]; then
    prepared=$out/prepared
    protlm prepare --dataset fasta --tokens --output "$prepared" --input \
      "$("$PYTHON" -c "from protlm_jax import bundled; print(bundled.path('pretraining'))")"
  fi
  protlm train --config configs/esm2_uniref50.py:8m --workdir "$run" \
    --config.data.prepared="$prepared" --config.model.dtype=bfloat16 \
    --config.train.steps="$steps" --config.train.batch_size="$rows" --config.data.length=512 \
    --config.train.evaluate_every=0 --config.train.checkpoint_every="$steps" --config.train.log_every=100 \
    --config.schedule.warmup_steps=$((steps / 20 + 1)) --config.schedule.learning_rate=1e-3 "$@" &&
    protlm evaluate --model "$run"
}
export -f from_scratch protlm
export out prepared PYTHON

if [ -n "$rehearse" ]; then
  step attention 60 "$PYTHON" benchmarks/gpu_attention.py --rehearse
  for shape in tiny tiny_t5; do
    step "train_$shape" 90 "$PYTHON" benchmarks/gpu_train.py --shape $shape --rounds 1 --steps 1 \
      --rows 2
  done
  step embed 60 "$PYTHON" benchmarks/embed.py --proteins 5 --longest 60 --rounds 1
  step score 60 "$PYTHON" benchmarks/score.py --shape tiny --proteins 1 --longest 60 --rounds 1
  step skip_map 60 "$PYTHON" benchmarks/depth.py --shape tiny --layers 2 --rounds 1
  step from_scratch 120 bash -c "from_scratch 3 2 --config.data.length=64 \
    --config.model.{d_model=64,head_dim=16,num_heads=4,d_ff=128}"
  step probe 240 "$PYTHON" -m protlm_jax.cli probe --model "$out/run" --heads linear --seeds 1 \
    --train_proteins 10
else
  step attention 90 "$PYTHON" benchmarks/gpu_attention.py
  step train_esm2_650m 200 "$PYTHON" benchmarks/gpu_train.py --shape esm2_650m --rows 16 \
    --rounds 3
  step embed 60 "$PYTHON" benchmarks/embed.py --shape esm2_650m --residues 16000 --rounds 2
  step score 60 "$PYTHON" benchmarks/score.py --shape prot_bert --longest 200 --rounds 2
  step skip_map 60 "$PYTHON" benchmarks/depth.py --shape esm2_650m --layers 33 --rounds 2
  step from_scratch 170 bash -c "from_scratch 1800 256"
  step probe 90 "$PYTHON" -m protlm_jax.cli probe --model "$out/run" --heads cnn --seeds 1 \
    --train_proteins 1000
  step train_prot_t5_xl 150 "$PYTHON" benchmarks/gpu_train.py --shape prot_t5_xl --rounds 3
fi
rm -rf "$out/run" "$out/prepared"
echo "$failed steps failed; ${SECONDS} s"
exit "$failed"
