#!/usr/bin/env bash
# Runs the GPU tests on a host that has a GPU and no Rust toolchain.
#
#   scripts/gpu-tests.sh pack [CRATE...]    here: builds the tests with --features cuda into dist/gpu-tests.tar.gz
#   scripts/gpu-tests.sh run [OPTION...]    there: runs all tests that need a GPU; prints a line a binary, and
#                                           "N passed, N failed" last; exit status 1 where any failed
#     --sanitizer   each binary four times, under compute-sanitizer's memcheck, racecheck, initcheck and synccheck, with 8
#                   random cases (or PROPTEST_CASES) and without the tests that have full_size in their names, since a
#                   kernel runs a hundred times slower there; SANITIZER_TOOLS="memcheck racecheck" chooses
#     --bench       the benchmarks instead, with their output
#     --filter RE   with --bench, only benchmarks whose name matches
#     --only WORD   only binaries with WORD in their name
#     --from DIR    where the archive lies (dist/)
#     -- ARGS       with --bench, last: what each benchmark is given (--table --json FOLDER, or criterion's options)
#
# `pack` needs nvcc (scripts/get-nvcc.sh). It takes every crate that has tests/gpu.rs and the benchmarks of kernels, or those
# named (`benches` is the benchmarks). `run` needs this script and the archive, an NVIDIA driver, and
# cuBLASLt 13 for products: from LD_LIBRARY_PATH, from /usr/local/cuda, or from python3's nvidia-cublas package.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
archive=gpu-tests.tar.gz
limit_mb=60
found=3  # exit status of a sanitizer that has something to report

# Reads cargo's JSON messages, one object a line, and copies each executable into $stage, stripped, under the name of its
# package (tests) or as bench-NAME.
collect() {
  local kind=$1 line manifest name binary
  while read -r line; do
    binary=$(sed -n 's/.*"executable":"\([^"]*\)".*/\1/p' <<<"$line")
    manifest=$(sed -n 's/.*"manifest_path":"\([^"]*\)".*/\1/p' <<<"$line")
    name=$(sed -n "s/.*\"kind\":\[\"$kind\"\][^}]*\"name\":\"\([^\"]*\)\".*/\1/p" <<<"$line")
    if [ -z "$binary" ] || [ -z "$name" ]; then continue; fi
    if [ "$kind" = bench ]; then name=bench-$name; else name=$(basename "$(dirname "$manifest")"); fi
    strip -o "$stage/$name" "$binary"
  done
}

pack() {
  cd "$root"
  local crates=("$@") packages=() features=() crate benches="" kb
  stage=dist/gpu-tests
  rm -rf "$stage"
  mkdir -p "$stage"
  if [ ${#crates[@]} -eq 0 ]; then
    for crate in crates/*/tests/gpu.rs; do crates+=("$(basename "$(dirname "$(dirname "$crate")")")"); done
    crates+=(benches)
  fi
  for crate in "${crates[@]}"; do
    if [ "$crate" = benches ]; then benches=yes; continue; fi
    packages+=(-p "$crate")
    features+=("$crate/cuda")
  done
  if [ -n "$benches" ]; then
    # Those of kernels; model_step reads files of the checkout, and needs no card. The host stands between no two launches, so
    # the profile that the tests are built with will do.
    cargo bench --profile dev -p benches --features cuda --bench awq_gemm --bench fp8 --bench gqa_attention --bench kv_cache \
      --bench layers --bench sampling --bench sustained --no-run --message-format=json | collect bench
  fi
  if [ ${#packages[@]} -ne 0 ]; then
    cargo test "${packages[@]}" --features "$(IFS=,; echo "${features[*]}")" --test gpu --no-run --message-format=json |
      collect test
  fi
  [ -n "$(ls "$stage")" ] || { echo "no test binary was built" >&2; exit 1; }
  tar -C dist -czf "dist/$archive" gpu-tests
  kb=$(du -k "dist/$archive" | cut -f 1)
  [ "$kb" -le $((limit_mb * 1024)) ] || { echo "dist/$archive has $kb KB, more than $limit_mb MB" >&2; exit 1; }
  echo "dist/$archive: $kb KB: $(ls "$stage" | tr '\n' ' ')"
}

# Adds a folder with cuBLASLt to LD_LIBRARY_PATH, unless the loader finds it already.
find_cublaslt() {
  local folder path=${LD_LIBRARY_PATH:-}
  if ldconfig -p 2>/dev/null | grep -q 'libcublasLt\.so\.13'; then return; fi
  for folder in ${path//:/ } /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib \
    $(python3 -c 'import nvidia, glob; print(*(f"{p}/cu13/lib" for p in nvidia.__path__))' 2>/dev/null || true); do
    if [ -e "$folder/libcublasLt.so.13" ]; then
      export LD_LIBRARY_PATH="$folder${path:+:$path}"
      return
    fi
  done
  echo "warning: libcublasLt.so.13 not found; tests of products will fail" >&2
}

# Runs one binary, adds to `passed` and `failed`, prints its line.
run_one() {
  local label=$1 log=$2 counts ok bad status=0
  shift 2
  "$@" >"$log" 2>&1 || status=$?
  # By racecheck's account cuBLASLt's kernels (nvjet) race. To exclude them makes the tool itself fail, so their reports are
  # taken out here.
  if [ "$status" -eq "$found" ] && grep -q 'Race reported' "$log" && ! grep 'Race reported' "$log" | grep -qv nvjet; then
    status=0
  fi
  # libtest's summary: "test result: ok. 5 passed; 0 failed; ..."
  counts=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$log" | tail -n 1)
  read -r ok bad <<<"${counts:-0 0}"
  # It died before its summary, or had no test, or the sanitizer has something to report.
  if [ "$bad" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$ok" -eq 0 ]; }; then bad=1; fi
  passed=$((passed + ok)) failed=$((failed + bad))
  printf '%-28s %3d passed, %3d failed\n' "$label" "$ok" "$bad"
  if [ "$bad" -ne 0 ]; then
    grep -v '^test .* ok$' "$log" | head -n 80 | sed 's/^/    /'
  fi
}

run() {
  local mode=tests only="" filter="" dir="$root/dist" prefix="" binary name tool work extra=()
  while [ $# -gt 0 ]; do
    case $1 in
      --sanitizer) mode=sanitizer ;;
      --bench) mode=bench prefix=bench- ;;
      --filter) filter=${2:?--filter needs a pattern}; shift ;;
      --only) only=${2:?--only needs a word}; shift ;;
      --from) dir=${2:?--from needs a folder}; shift ;;
      --) shift; extra=("$@"); break ;;
      *) echo "unknown option $1" >&2; exit 2 ;;
    esac
    shift
  done
  find_cublaslt
  work=$(mktemp -d)
  tar -C "$work" -xzf "$dir/$archive"
  passed=0 failed=0
  # One test at a time: they share the card's memory, and a fault is easier to place.
  local arguments=(--ignored --test-threads=1 --nocapture)
  for binary in "$work"/gpu-tests/"$prefix"*"$only"*; do
    [ -x "$binary" ] || { echo "nothing packed has \"$only\" in its name" >&2; exit 2; }
    name=$(basename "$binary")
    if [ "$mode" = bench ]; then
      "$binary" --bench ${filter:+"$filter"} "${extra[@]}" || { echo "$name failed" >&2; failed=1; }
      continue
    fi
    if [[ $name == bench-* ]]; then continue; fi
    if [ "$mode" = tests ]; then
      run_one "$name" "$work/$name.log" "$binary" "${arguments[@]}"
      continue
    fi
    for tool in ${SANITIZER_TOOLS:-memcheck racecheck initcheck synccheck}; do
      # Failing driver calls are no finding: tests provoke them, and the code checks every status.
      run_one "$name ($tool)" "$work/$name.$tool.log" env PROPTEST_CASES="${PROPTEST_CASES:-8}" compute-sanitizer \
        --tool "$tool" --report-api-errors no --error-exitcode "$found" "$binary" "${arguments[@]}" --skip full_size
    done
  done
  rm -rf "$work"
  if [ "$mode" = bench ]; then return "$failed"; fi
  echo "$passed passed, $failed failed"
  [ "$failed" -eq 0 ]
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  run) shift; run "$@" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
