#!/usr/bin/env bash
# Runs the GPU tests on a host that has a GPU and no Rust toolchain.
#
#   scripts/gpu-tests.sh pack [CRATE...]    here: builds the tests with --features cuda into dist/gpu-tests.tar.gz
#   scripts/gpu-tests.sh run [OPTION...]    there: runs all tests that need a GPU; prints a line a binary, and
#                                           "N passed, N failed" last; exit status 1 where any failed
#     --sanitizer   each binary under compute-sanitizer's racecheck (test by test), memcheck, initcheck and synccheck, with 8
#                   random cases (or PROPTEST_CASES) and without the tests that have full_size in their names, since a
#                   kernel runs a hundred times slower there; SANITIZER_TOOLS="memcheck racecheck" chooses, COMPUTE_SANITIZER
#                   names the tool. "N passed, N failed, N reports" last; racecheck's reports on cuBLASLt's kernels are counted apart
#     --jobs N      with --sanitizer, so many at once (4; more take longer, as they share the card by turns)
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
limit_s=900  # of one binary or test under a sanitizer
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

# Runs one binary, adds a line "passed failed reports left_out" to $counts, prints its line, and what it said where it failed.
run_one() {
  local label=$1 log=$2 result ok bad reports=0 left_out=0 line status=0
  shift 2
  "$@" >"$log" 2>&1 || status=$?
  # libtest's summary: "test result: ok. 5 passed; 0 failed; ..."
  result=$(sed -n 's/^test result: .* \([0-9]*\) passed; \([0-9]*\) failed;.*/\1 \2/p' "$log" | tail -n 1)
  read -r ok bad <<<"${result:-0 0}"
  if [ -n "$sanitizer" ]; then
    # By racecheck's account cuBLASLt's kernels (nvjet) race. To exclude them makes the tool itself fail, so their reports are
    # taken out here.
    left_out=$(grep -c 'Race reported.*nvjet' "$log" || true)
    reports=$(sed -n 's/^=* [A-Z ]*SUMMARY: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
    reports=$((${reports:-0} - left_out))
    if [ "$status" -eq "$found" ] && [ "$reports" -eq 0 ]; then status=0; fi
  fi
  # It died before its summary, or had no test, or the sanitizer has something to report.
  if [ "$bad" -eq 0 ] && { [ "$status" -ne 0 ] || [ "$ok" -eq 0 ]; }; then bad=1; fi
  echo "$ok $bad $reports $left_out" >>"$counts"
  line=$(printf '%-28s %3d passed, %3d failed' "$label" "$ok" "$bad")
  if [ -n "$sanitizer" ]; then line+=$(printf ', %3d reports' "$reports"); fi
  if [ "$bad" -ne 0 ]; then
    if [ "$status" -eq 124 ]; then line+=", did not end in $limit_s s"; fi
    line+=$'\n'$(grep -v '^test .* ok$' "$log" | head -n 80 | sed 's/^/    /')
  fi
  printf '%s\n' "$line"
}

# Runs one binary under one tool of the sanitizer, as soon as fewer than $jobs run.
sanitize() {
  local label=$1 tool=$2 log
  shift 2
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n || true; done
  log=$work/$(tr -c 'A-Za-z0-9_\n' - <<<"$label-$tool").log
  # Failing driver calls are no finding: tests provoke them, and the code checks every status.
  run_one "$label ($tool)" "$log" env PEREGRINE_SANITIZER=1 PROPTEST_CASES="${PROPTEST_CASES:-8}" timeout "$limit_s" \
    "${COMPUTE_SANITIZER:-compute-sanitizer}" --tool "$tool" --report-api-errors no --error-exitcode "$found" "$@" &
}

run() {
  local mode=tests only="" filter="" dir="$root/dist" prefix="" binary name tool test work counts sanitizer="" jobs=4 failed=0
  local extra=() tools=()
  while [ $# -gt 0 ]; do
    case $1 in
      --sanitizer) mode=sanitizer sanitizer=yes ;;
      --jobs) jobs=${2:?--jobs needs a number}; shift ;;
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
  counts=$work/counts
  touch "$counts"
  # One test at a time: they share the card's memory, and a fault is easier to place.
  local arguments=(--ignored --test-threads=1 --nocapture) binaries=("$work"/gpu-tests/"$prefix"*"$only"*)
  [ -x "${binaries[0]}" ] || { echo "nothing packed has \"$only\" in its name" >&2; exit 2; }
  if [ "$mode" = bench ]; then
    for binary in "${binaries[@]}"; do
      "$binary" --bench ${filter:+"$filter"} "${extra[@]}" || { echo "$(basename "$binary") failed" >&2; failed=1; }
    done
    rm -rf "$work"
    return "$failed"
  fi
  if [ "$mode" = tests ]; then tools=(none); else read -ra tools <<<"${SANITIZER_TOOLS:-racecheck memcheck initcheck synccheck}"; fi
  for tool in "${tools[@]}"; do
    for binary in "${binaries[@]}"; do
      name=$(basename "$binary")
      if [[ $name == bench-* ]]; then continue; fi
      case $tool in
        none) run_one "$name" "$work/$name.log" "$binary" "${arguments[@]}" ;;
        racecheck)
          # The slowest: test by test, so that several run at once.
          for test in $("$binary" --list --ignored 2>/dev/null | sed -n '/full_size/d;s/: test$//p'); do
            sanitize "$name $test" "$tool" "$binary" "${arguments[@]}" --exact "$test"
          done ;;
        *) sanitize "$name" "$tool" "$binary" "${arguments[@]}" --skip full_size ;;
      esac
    done
  done
  wait
  local passed=0 reports=0 left_out=0 a b c d
  while read -r a b c d; do
    passed=$((passed + a)) failed=$((failed + b)) reports=$((reports + c)) left_out=$((left_out + d))
  done <"$counts"
  rm -rf "$work"
  if [ -n "$sanitizer" ]; then
    echo "$passed passed, $failed failed, $reports reports ($left_out on cuBLASLt's kernels left out)"
  else
    echo "$passed passed, $failed failed"
  fi
  [ "$failed" -eq 0 ]
}

case ${1:-} in
  pack) shift; pack "$@" ;;
  run) shift; run "$@" ;;
  *) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"; exit 2 ;;
esac
