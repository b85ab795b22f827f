#!/bin/bash -eu
# Builds every fuzz target into $OUT, with its corpus, dictionary and options.  OSS-Fuzz sets SRC (the checkout is
# $SRC/pkg), WORK, OUT, CC, CXX, CFLAGS, CXXFLAGS and LIB_FUZZING_ENGINE; tests/fuzz/run.py does so for this machine's clang.
cd "$SRC/pkg"
fuzz=tests/fuzz
compile() { $CC $CFLAGS -std=gnu11 -Iext -pthread -c "$1" -o "$WORK/$(basename "$1" .c).o"; }

objects=()
for source in ext/*/*.c; do
    compile "$source"
    objects+=("$WORK/$(basename "$source" .c).o")
done
# An archive: a target that includes a file of the core brings its functions with it, and the linker takes no others.
rm -f "$WORK/core.a"
${AR:-ar} rcs "$WORK/core.a" "${objects[@]}"

for source in $fuzz/fuzz_*.c; do
    name=$(basename "$source" .c)
    compile "$source"
    $CXX $CXXFLAGS "$WORK/$name.o" "$WORK/core.a" $LIB_FUZZING_ENGINE -pthread -o "$OUT/$name"
    printf '[libfuzzer]\nmax_len = 8192\ntimeout = 10\n' >"$OUT/$name.options"
    # Inputs of these are in the same language.
    case ${name#fuzz_} in
        eventloop | reader) languages="eventloop front" ;;
        *) languages=${name#fuzz_} ;;
    esac
    corpora=()
    for language in $languages; do
        if [ -d $fuzz/corpus/$language ]; then corpora+=("$fuzz/corpus/$language"); fi
        if [ -f $fuzz/dictionaries/$language.dict ]; then cp $fuzz/dictionaries/$language.dict "$OUT/$name.dict"; fi
    done
    rm -f "$OUT/${name}_seed_corpus.zip"
    python3 -m zipfile -c "$OUT/${name}_seed_corpus.zip" "${corpora[@]}"
done
