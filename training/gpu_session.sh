#!/usr/bin/env bash
# Trains one network of the built-in family on a GPU for some minutes, and leaves what ships of it in a folder.
#
#   training/gpu_session.sh PART MINUTES OUT [RECIPE OPTIONS]
#
# PART: generator, clip, unet, autoencoder, text_encoder or swinir. Starts from the weights in the repository, or from those of an
# earlier session that were copied over them. OUT gets the model's folder (a tar file), the log and the sample sheets; unpack the
# tar file in the repository's root to go on or to ship. Only the generator's scenes are drawn by all processors: the other
# recipes wait for theirs. Needs build/training/sprites (`npm pack @lobehub/fluent-emoji-3d@1.1.0`).
set -euo pipefail
part=$1 minutes=$2 out=$3
shift 3
python=${PYTHON:-python3}
export OMP_NUM_THREADS=1 PYTHONUNBUFFERED=1
mkdir -p "$out"
case $part in
generator)
    # Half of a minute for the tokenizer and the text encoder, two for the pool of 150,000 scenes on 16 cores, then the transformer.
    "$python" -m training.generator.train_tokenizer --extend
    "$python" -m training.generator.train_dalle --from-weights --world wide --device cuda --painters "$(nproc)" --bfloat16 \
        --batch 256 --learning-rate 1.2e-3 --pool 150000 --first-pool 150000 --steps 1000000 --minutes "$minutes" \
        --report-every 1000 "$@" 2>&1 | tee "$out/log.txt"
    "$python" -m training.generator.export --world wide
    cp build/training/generator.png "$out/sheet.png"
    # The VQGAN stays as it is.
    model="services/generator/models/tiny/dalle services/generator/models/tiny/manifest.json"
    ;;
clip | unet | autoencoder | text_encoder | swinir)
    model=services/refiner/models/tiny
    recipe=training.refiner.train_$part
    if [ "$part" = swinir ]; then
        model=services/upscaler/models/tiny
        recipe=training.upscaler.train_swinir
    fi
    "$python" -m "$recipe" --from-weights --device cuda --steps 1000000 --minutes "$minutes" --measure-every 2000 --export "$@" 2>&1 |
        tee "$out/log.txt"
    cp "build/training/$part/sheet.png" "$out/" 2>/dev/null || true
    ;;
*)
    echo "unknown part '$part'" >&2
    exit 2
    ;;
esac
# shellcheck disable=SC2086 - several paths
tar -czf "$out/$part.tar.gz" $model
ls -l "$out"
